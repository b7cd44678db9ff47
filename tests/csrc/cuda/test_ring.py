"""The kernel with bulk copies: the bits of the kernels without, under every schedule, in both emulators."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cuda.decode_cases import BF16, FP16, FP32, INT8, UNIFORM, both_equal
from cuda.launcher import launches, prepare, run_fibers, run_ptx, source_of
from cuda.sm_90 import names, same_bits_by
from op_cases import Case, make

from benchmarks.gpu import checks
from emulator.errors import EmulationError

pytestmark = pytest.mark.gpu_emulated

# The kernel takes rows of the map's type, bf16 for int8.
KINDS = {kind: dtypes for kind, dtypes in UNIFORM.items() if kind != "fp16 x int8"}
by_kind = pytest.mark.parametrize("kind", KINDS)


def ring_case(kind: str, rows: int, hidden: int, **options: Any) -> Case:
    x, map_dtype, residual = KINDS[kind]
    norm = ("rms", "layer")[rows % 2]
    options = {"alpha": 0.75, "bias": rows % 3 != 0, "weight_offset": float(rows % 2), **options}
    return make(norm, hidden, (rows,), dtype=x, map_dtype=map_dtype, residual_dtype=residual, **options)


check = partial(same_bits_by, "ring_kernel")


@by_kind
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16])
def test_the_bits_of_the_other_kernels(kind: str, rows: int) -> None:
    """Hidden sizes within a stage, and of two or three with a shorter last one."""
    for hidden, seed, resident in ((64, rows, 1), (640, 0, 3)):
        case = ring_case(kind, rows, hidden)
        first = check(case, seed=seed, resident=resident)
        again = run_fibers(prepare(case, in_place=True, bulk_copies=True), seed=7 - seed, resident=2)
        assert both_equal(again, first)


@pytest.mark.parametrize("rows", [1, 9])
@by_kind
def test_two_tiles_of_columns_to_a_block(kind: str, rows: int) -> None:
    """From 129 tiles on; then slots are used again. int8 maps have one tile with nine rows; strengths of rows."""
    alpha, beta = torch.linspace(-1, 1, rows), torch.linspace(0.5, 1, rows, dtype=BF16)
    check(ring_case(kind, rows, 2112, alpha=alpha, beta=beta))


def test_int8_slots_that_are_used_again() -> None:
    check(ring_case("bf16 x int8", 1, 3136))


def test_what_a_gpu_is_checked_with() -> None:
    """The shapes of benchmarks.gpu.checks that are there for this kernel are served by it."""
    for norm, tokens, hidden, rank, dtype, map_dtype, residual, num_maps in checks.RING:
        assert (rank, num_maps) == (None, 1)
        residual_dtype = dtype if residual else None
        case = make(norm, hidden, (tokens,), dtype=dtype, map_dtype=map_dtype, residual_dtype=residual_dtype)
        assert "ring_kernel" in names(case)


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_rows_are_shared_out_however_few_blocks_are_resident(rows: int) -> None:
    """One block after another: the last one has all rows. All at once: a row each, if there are as many blocks."""
    for hidden in (64, 192):
        case = ring_case("bf16", rows, hidden)
        first = check(case)
        for seed in range(4):
            for resident in (1, 2, 5, 40):
                again = run_fibers(prepare(case, bulk_copies=True), seed=seed, resident=resident)
                assert both_equal(again, first), (hidden, seed, resident)


@pytest.mark.parametrize("kind", ["bf16", "bf16+bf16", "bf16 x int8"])
def test_no_data_race_and_no_missing_fence(kind: str) -> None:
    for rows, hidden, resident in ((1, 320, 3), (9, 640, 2)):
        case = ring_case(kind, rows, hidden)
        call = prepare(case, sanitizer="races", bulk_copies=True)
        found = run_fibers(call, seed=rows, resident=resident, sanitizer="races")
        assert both_equal(run_fibers(prepare(case)), found)


def test_replay_without_resetting() -> None:
    """A captured launch runs again on the same counters and the workspace that it left behind."""
    for rows in (1, 9):
        call = prepare(ring_case("bf16", rows, 320), bulk_copies=True)
        first = [tensor.clone() for tensor in run_fibers(call)]
        call.y.fill_(torch.nan)
        call.edited.fill_(torch.nan)
        assert both_equal(run_fibers(call, seed=3, resident=1), first)


def test_calls_that_the_other_kernels_serve() -> None:
    """More rows, several maps, low rank, other types, widths and places."""
    plain = ring_case("bf16", 2, 128)
    shifted = torch.empty(257, dtype=BF16)[1:].view(2, 128).copy_(plain.x)
    row_map = torch.tensor([0, -1], dtype=torch.int32)
    others = {
        "17 rows": ring_case("bf16", 17, 128),
        "row_map": plain.but(row_map=row_map),
        "low rank": make("rms", 128, (2,), rank=32, dtype=BF16),
        "width": make("rms", 96, (2,), dtype=BF16),
        "fp32": make("rms", 128, (2,), dtype=FP32),
        "fp32 residual": make("rms", 128, (2,), dtype=BF16, residual_dtype=FP32),
        "fp32 weight": make("rms", 128, (2,), dtype=BF16, vector_dtype=FP32),
        "fp16 x int8": make("rms", 128, (2,), dtype=FP16, map_dtype=INT8),
        "misaligned": plain.but(x=shifted),
    }
    for name, case in others.items():
        assert "ring_kernel" not in names(case), name
        assert both_equal(run_fibers(prepare(case, bulk_copies=True)), run_fibers(prepare(case)))


def test_strided_rows() -> None:
    """Any stride between rows that keeps them aligned."""
    case = ring_case("bf16+bf16", 3, 256)
    apart = torch.full((3, 320), torch.nan, dtype=BF16)[:, :256].copy_(case.x)
    again = case.but(x=apart)
    assert both_equal(check(again), check(case))


@by_kind
@pytest.mark.parametrize("rows", [1, 9])
def test_ptx_is_the_fibers_bit_for_bit(kind: str, rows: int) -> None:
    """Also where nothing but the map may be touched before the launch ahead has ended, and block by block."""
    case = ring_case(kind, rows, 640)
    wanted = run_fibers(prepare(case))
    for programmatic, resident in ((False, None), (True, 3)):
        call = prepare(case, bulk_copies=True, programmatic=programmatic)
        y, edited, report = run_ptx(call, "sm_90", resident=resident)
        assert both_equal((y, edited), wanted)
        assert report.worst_bank_conflict <= 2, report


def test_ptx_of_slots_that_are_used_again() -> None:
    case = ring_case("bf16+bf16", 9, 2112)
    y, edited, _ = run_ptx(prepare(case, bulk_copies=True, in_place=True), "sm_90", seed=3)
    assert both_equal((y, edited), run_fibers(prepare(case)))


def test_no_race_in_slots_that_are_used_again() -> None:
    case = ring_case("bf16", 1, 2112)
    call = prepare(case, sanitizer="races", bulk_copies=True)
    assert both_equal(run_fibers(call, seed=1, resident=2, sanitizer="races"), run_fibers(prepare(case)))


def test_the_map_is_requested_before_the_dependency_wait() -> None:
    (launch,) = launches(prepare(ring_case("bf16", 1, 128), bulk_copies=True, programmatic=True))
    kernel = launch.kernel.decode()
    text = source_of(kernel, "sm_90").split(f".entry {kernel}(")[1].split(".entry ")[0]
    assert "cp.async.bulk.shared::cluster.global" in text.split("griddepcontrol.wait")[0]


def test_older_architectures_trap() -> None:
    """The launcher does not choose the kernel there; were it launched, it would not compute something else."""
    case = ring_case("bf16", 1, 128)
    with pytest.raises(EmulationError, match="trap"):
        run_ptx(prepare(case, bulk_copies=True), "sm_80")
