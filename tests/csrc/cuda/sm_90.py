"""The kernels that there are for compute capability 9.0 and later give the bits of those that there are for all."""

from __future__ import annotations

from cuda.decode_cases import both_equal
from cuda.launcher import launches, prepare, run_fibers
from op_cases import Case
from tolerances import assert_close
from torch import Tensor


def names(case: Case, *, bulk_copies: bool = True) -> str:
    """The kernels of a call's launches."""
    return " ".join(launch.kernel.decode() for launch in launches(prepare(case, bulk_copies=bulk_copies)))


def same_bits_by(kernel: str, case: Case, *, seed: int = 0, resident: int = 4) -> tuple[Tensor, Tensor]:
    """(y, r'): right, by one launch of ``kernel``, with the bits of the other kernels."""
    assert names(case).count(kernel) == len(launches(prepare(case, bulk_copies=True))) == 1
    first = run_fibers(prepare(case, bulk_copies=True), seed=seed, resident=resident)
    length = case.x.shape[-1]
    assert_close(first[1], case.expected()[1], length)
    assert_close(first[0], case.normed(first[1]), length)
    assert kernel not in names(case, bulk_copies=False)
    assert both_equal(run_fibers(prepare(case)), first)
    return first
