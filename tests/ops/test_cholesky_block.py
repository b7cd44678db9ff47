"""The compiled Cholesky kernels as ops: against the definition, schemas and fakes, threads, instruction sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_backend import available, run_with_isa
from torch import Tensor

from incline_fast.ops import explain, reference
from incline_fast.ops._extension import EXTENSION
from incline_fast.ops.cholesky_block import MAX_SIZE, cholesky_block, cholesky_block_, triangular_inverse

pytestmark = pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation")
# Around the kernel's eight pivots, its 32 columns, its 64-row panels and the blocks of 128.
SIZES = (0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-14}
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


def spd(*shape: int, dtype: torch.dtype) -> Tensor:
    X = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (X @ X.mT / max(shape[-1], 1) + torch.eye(shape[-1], dtype=torch.float64)).to(dtype)


@by_dtype
@pytest.mark.parametrize("n", SIZES)
def test_against_the_definition(n: int, dtype: torch.dtype) -> None:
    A = spd(2, n, dtype=dtype)
    expected, _ = reference.cholesky_ex(A.double())
    inverse = reference.triangular_inverse(expected)
    L, info = cholesky_block(A)
    in_place, X, pivots = A.clone(), torch.full_like(A, float("nan")), torch.zeros(2, dtype=torch.int32)
    cholesky_block_(in_place, X, pivots, 0)
    assert not info.any()
    assert not pivots.any()
    assert torch.equal(in_place, L)
    bound = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(L.double(), expected, **bound)
    torch.testing.assert_close(X.double(), inverse, **bound)
    torch.testing.assert_close(triangular_inverse(L + torch.ones_like(L).triu(1)).double(), inverse, **bound)


@by_dtype
def test_broken_matrices(dtype: torch.dtype) -> None:
    """The one that breaks down here is named with its place in the whole; the one that came in broken is left alone."""
    A = spd(3, 20, dtype=dtype)
    A[1, 11, 11] = 0
    before = A.clone()
    info = torch.tensor([0, 0, 3], dtype=torch.int32)
    inverse = torch.full_like(A, float("nan"))
    cholesky_block_(A, inverse, info, 100)
    assert info.tolist() == [0, 112, 3]
    assert torch.equal(A[2], before[2])
    assert not inverse[1:].any()
    assert bool(inverse[0].any())


@by_dtype
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    A = spd(3, 300, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = cholesky_block(A)[0]
        torch.set_num_threads(2)
        assert torch.equal(cholesky_block(A)[0], expected)
        assert torch.equal(cholesky_block(A[1])[0], expected[1])
    finally:
        torch.set_num_threads(threads)


@by_dtype
def test_opcheck(dtype: torch.dtype) -> None:
    A = spd(2, 9, dtype=dtype)
    namespace = torch.ops.incline_fast
    info = torch.zeros(2, dtype=torch.int32)
    torch.library.opcheck(namespace.cholesky_block.default, (A,))
    torch.library.opcheck(namespace.triangular_inverse.default, (A,))
    for inverse in (torch.empty_like(A), None):
        torch.library.opcheck(namespace.cholesky_block_.default, (A, inverse, info, 5))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_refused_arguments(device: str) -> None:
    for function in (cholesky_block, triangular_inverse):
        with pytest.raises(ValueError, match=r"has dtype float16; allowed: float32, float64"):
            function(torch.ones(2, 2, dtype=torch.float16, device=device))
        with pytest.raises(ValueError, match=rf"has shape \(2, 3\); expected \[..., n, n\] with n <= {MAX_SIZE}"):
            function(torch.ones(2, 3, device=device))
        with pytest.raises(ValueError, match=r"has shape \(1025, 1025\)"):
            function(torch.ones(1025, 1025, device=device))


def test_refused_outputs() -> None:
    A, info = torch.eye(3), torch.zeros((), dtype=torch.int32)
    with pytest.raises(ValueError, match="A has stride 0 in dimension 0"):
        cholesky_block_(torch.ones(3).expand(3, 3), None, info, 0)
    with pytest.raises(ValueError, match=r"inverse has shape \(2, 2\); expected \(3, 3\), the shape of A"):
        cholesky_block_(A, torch.ones(2, 2), info, 0)
    with pytest.raises(ValueError, match="inverse has dtype float64; allowed: float32"):
        cholesky_block_(A, A.double(), info, 0)
    with pytest.raises(ValueError, match="info has dtype int64; allowed: int32"):
        cholesky_block_(A, None, info.long(), 0)
    with pytest.raises(ValueError, match=r"info has shape \(2,\); expected \(\), one per matrix of A"):
        cholesky_block_(A, None, torch.zeros(2, dtype=torch.int32), 0)


@pytest.mark.parametrize("isa", available())
def test_every_instruction_set(isa: str) -> None:
    """The default one runs in this process; the others run the same tests in their own."""
    if isa == torch.ops.incline_fast.cpu_isa():
        assert isa in explain()
        return
    command = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "definition or broken or threads", __file__)
    answer = run_with_isa(isa, *command, f"--rootdir={Path(__file__).parents[2]}")
    assert answer.returncode == 0, answer.stdout[-3000:]
