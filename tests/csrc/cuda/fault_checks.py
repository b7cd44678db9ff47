"""One check on some cases, in a process of its own: python -m cuda.fault_checks CHECK CASE...

Prints "passed", or in one line what was found. CHECK: "fibers" (several schedules), "races" (fibers with the race
detector), "ptx" (nvcc's code for sm_80; for sm_90 of a launch that is programmatic or uses bulk copies).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cuda.launcher import Call, prepare, run_fibers, run_ptx
from op_cases import Case, make
from tolerances import assert_close
from torch import Tensor

from emulator.errors import EmulationError

BF16, FP32, INT8 = torch.bfloat16, torch.float32, torch.int8
ROW_MAP = torch.tensor([2, -1, 0], dtype=torch.int32)
SCHEDULES = ((0, 4), (7, 1), (8, 3), (9, 6))


def after_a_gemm(sanitizer: str, *, hidden: int = 100, programmatic: bool = False) -> Call:
    """The launch that finishes what torch's GEMM began; of a hidden size that is not even, with a product in fp32."""
    case = make("layer", hidden, (3,), dtype=BF16)
    mapped = case.x.double() @ case.map.up[0].double().T
    product = mapped.to(FP32 if hidden % 64 else BF16)
    return prepare(case, mapped=product, sanitizer=sanitizer, programmatic=programmatic)


def ring(rows: int, hidden: int, norm: str = "layer") -> Callable[[str], Call]:
    """A call of the kernel with bulk copies."""
    case = make(norm, hidden, (rows,), dtype=BF16)
    return lambda sanitizer: prepare(case, sanitizer=sanitizer, bulk_copies=True)


def one_cluster(rows: int, hidden: int, rank: int, **options: Any) -> Callable[[str], Call]:
    """A call of the kernel for one cluster."""
    case = make("layer", hidden, (rows,), rank=rank, dtype=BF16, map_dtype=options.pop("map_dtype", BF16))
    return lambda sanitizer: prepare(case, sanitizer=sanitizer, bulk_copies=True, **options)


def misaligned() -> Case:
    """Rows that begin two bytes behind a multiple of 16."""
    case = make("rms", 64, (2,), dtype=BF16)
    return case.but(x=torch.empty(129, dtype=BF16)[1:].view(2, 64).copy_(case.x))


CASES: dict[str, Callable[[str], Call]] = {
    "dense": lambda san: prepare(make("rms", 96, (3,), dtype=BF16, num_maps=3, row_map=ROW_MAP), sanitizer=san),
    "low rank": lambda san: prepare(
        make("layer", 96, (3,), rank=40, dtype=BF16, num_maps=3, row_map=ROW_MAP), sanitizer=san
    ),
    "one row": lambda san: prepare(make("layer", 128, (1,), dtype=BF16), sanitizer=san),
    "one row, low rank": lambda san: prepare(make("rms", 128, (1,), rank=40, dtype=BF16), sanitizer=san),
    "one row, unedited": lambda san: prepare(
        make("rms", 128, (1,), dtype=BF16, num_maps=3, row_map=torch.tensor([-1], dtype=torch.int32)), sanitizer=san
    ),
    "fp32 weight": lambda san: prepare(make("rms", 64, (2,), dtype=BF16, vector_dtype=FP32), sanitizer=san),
    "narrow": lambda san: prepare(make("rms", 72, (2,), dtype=BF16), sanitizer=san),
    "misaligned": lambda san: prepare(misaligned(), sanitizer=san),
    "many rows": lambda san: prepare(
        make("rms", 48, (33,), dtype=BF16, num_maps=2, row_map=torch.arange(33, dtype=torch.int32) % 2), sanitizer=san
    ),
    "wide": lambda san: prepare(make("layer", 1040, (1,), dtype=BF16), sanitizer=san),
    "odd": lambda san: prepare(make("rms", 39, (1,), dtype=BF16, map_dtype=FP32), sanitizer=san),
    "fp32 rows": lambda san: prepare(make("rms", 64, (2,), map_dtype=BF16), sanitizer=san),
    "int8": lambda san: prepare(make("rms", 64, (2,), dtype=BF16, map_dtype=INT8), sanitizer=san),
    "low rank int8": lambda san: prepare(make("rms", 64, (2,), rank=24, dtype=BF16, map_dtype=INT8), sanitizer=san),
    "after a GEMM": lambda san: after_a_gemm(san),
    "after a GEMM, uniform": lambda san: after_a_gemm(san, hidden=128),
    "ring": ring(3, 128),
    "ring, many rows": ring(9, 64, "rms"),
    "ring, slots used again": ring(2, 2112),
    "one cluster": one_cluster(3, 640, 40),
    "one cluster, in place": one_cluster(2, 128, 16, in_place=True),
    "one cluster, int8": one_cluster(2, 192, 32, map_dtype=INT8),
    "one cluster, two pieces": one_cluster(1, 1088, 128),
    "programmatic, one cluster": one_cluster(2, 128, 16, programmatic=True),
    "programmatic, ring": lambda san: prepare(
        make("rms", 128, (2,), dtype=BF16), sanitizer=san, programmatic=True, bulk_copies=True
    ),
    "programmatic": lambda san: prepare(make("rms", 128, (1,), dtype=BF16), sanitizer=san, programmatic=True),
    "programmatic, low rank": lambda san: prepare(
        make("rms", 128, (1,), rank=40, dtype=BF16), sanitizer=san, programmatic=True
    ),
    "programmatic, row_map": lambda san: prepare(
        make("rms", 96, (3,), dtype=BF16, num_maps=3, row_map=ROW_MAP), sanitizer=san, programmatic=True
    ),
    "programmatic, after a GEMM": lambda san: after_a_gemm(san, programmatic=True),
}


def main() -> None:
    """Run the check that the command line names."""
    check, *names = sys.argv[1:]
    for name in names:
        try:
            for call, results in CHECKS[check](CASES[name]):
                judge(call.case, *results)
        except EmulationError as error:
            print(str(error).splitlines()[0])
            return
        except AssertionError as error:
            print("a counter did not return to zero" if "counter" in str(error) else "wrong numbers")
            return
    print("passed")


def run_several_schedules(make_call: Callable[[str], Call]) -> Iterator[tuple[Call, tuple[Tensor, Tensor]]]:
    for seed, resident in SCHEDULES:
        call = make_call("none")
        yield call, run_fibers(call, seed=seed, resident=resident)


def run_with_race_detector(make_call: Callable[[str], Call]) -> Iterator[tuple[Call, tuple[Tensor, Tensor]]]:
    call = make_call("races")
    yield call, run_fibers(call, seed=1, resident=3, sanitizer="races")


def run_nvccs_code(make_call: Callable[[str], Call]) -> Iterator[tuple[Call, tuple[Tensor, Tensor]]]:
    call = make_call("none")
    y, edited, _ = run_ptx(
        call, "sm_90" if call.programmatic or call.bulk_copies else "sm_80", resident=2, max_steps=200_000
    )
    yield call, (y, edited)


CHECKS = {"fibers": run_several_schedules, "races": run_with_race_detector, "ptx": run_nvccs_code}


def judge(case: Case, y: Tensor, edited: Tensor) -> None:
    length = case.x.shape[-1]
    assert_close(edited, case.expected()[1], length)
    assert_close(y, case.normed(edited), length)


if __name__ == "__main__":
    main()
