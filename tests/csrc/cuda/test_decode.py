"""The decode kernels against the fp64 reference: as fibers under several schedules, and as the PTX that nvcc makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda.decode_cases import BF16, FP32, KINDS, UNIFORM, both_equal, decode_case
from cuda.launcher import launches, prepare, run_fibers, run_ptx, source_of
from op_cases import Case, make
from tolerances import assert_close

from emulator.build import sanitized_environment

pytestmark = pytest.mark.gpu_emulated
by_kind = pytest.mark.parametrize("kind", KINDS)
by_form = pytest.mark.parametrize("low_rank", [False, True], ids=["dense", "low rank"])


def check(case: Case, y: torch.Tensor, edited: torch.Tensor) -> None:
    length = case.x.shape[-1]
    assert_close(edited, case.expected()[1], length)
    assert_close(y, case.normed(edited), length)


@by_form
@by_kind
def test_fibers_under_several_schedules(kind: str, low_rank: bool) -> None:
    """Right, the same bits whatever runs first and however few blocks are resident, in place as well."""
    for index in range(2):
        case = decode_case(kind, low_rank, 5 * index)
        first = run_fibers(prepare(case))
        check(case, *first)
        assert both_equal(run_fibers(prepare(case), seed=7, resident=1), first)
        assert both_equal(run_fibers(prepare(case, in_place=True), seed=8, resident=3), first)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@by_form
@by_kind
def test_ptx_is_the_fibers_bit_for_bit(kind: str, low_rank: bool, arch: str) -> None:
    case = decode_case(kind, low_rank, 0 if arch == "sm_80" else 1)
    y, edited, report = run_ptx(prepare(case), arch)
    check(case, y, edited)
    assert both_equal((y, edited), run_fibers(prepare(case)))
    assert report.worst_bank_conflict <= 2, report


def uniform_case(kind: str, low_rank: bool, rows: int) -> Case:
    x, map_dtype, residual = UNIFORM[kind]
    case = make(
        ("rms", "layer")[rows % 2],
        128,
        (rows,),
        rank=40 if low_rank else None,
        dtype=x,
        map_dtype=map_dtype,
        residual_dtype=residual,
        num_maps=2,
        alpha=0.75,
    )
    # With a row_map the rows are looked up before the weights are requested, without after.
    return case if rows % 2 else case.but(row_map=torch.arange(rows, dtype=torch.int32) % 3 - 1)


@by_form
@pytest.mark.parametrize("kind", UNIFORM)
def test_kernels_that_know_the_types_have_the_bits_of_those_that_do_not(kind: str, low_rank: bool) -> None:
    """A weight of another type leads to the general kernels; so does x two bytes off, which tests the products."""
    for rows in (1, 2, 9, 40):
        case = uniform_case(kind, low_rank, rows)
        first = run_fibers(prepare(case))
        check(case, *first)
        shifted = torch.empty(rows * 128 + 1, dtype=case.x.dtype)[1:].view(rows, 128).copy_(case.x)
        general = case.but(x=shifted)
        names = [[launch.kernel for launch in launches(prepare(each))] for each in (case, general)]
        if kind != "fp16 x int8":  # int8 maps are multiplied in bf16
            assert not set(names[0]).intersection(names[1])
        assert both_equal(run_fibers(prepare(general)), first)
        assert both_equal(run_fibers(prepare(case, in_place=True), seed=3, resident=1), first)


@by_form
@pytest.mark.parametrize("kind", UNIFORM)
def test_ptx_of_kernels_that_know_the_types(kind: str, low_rank: bool) -> None:
    for rows in (1, 9):
        case = uniform_case(kind, low_rank, rows)
        y, edited, report = run_ptx(prepare(case), "sm_80")
        assert both_equal((y, edited), run_fibers(prepare(case)))
        assert report.worst_bank_conflict <= 2, report


@by_form
def test_one_launch_for_up_to_64_rows(low_rank: bool) -> None:
    for rows, count in ((1, 1), (2, 1), (64, 1), (65, 2)):
        assert len(launches(prepare(uniform_case("bf16", low_rank, rows)))) == count, rows


@by_form
@pytest.mark.parametrize("rows", [2, 9, 33])
def test_rows_are_shared_out_however_few_blocks_are_resident(low_rank: bool, rows: int) -> None:
    """One block after another: the last one has all rows. All at once: a row each, if there are as many blocks."""
    case = uniform_case("bf16", low_rank, rows)
    first = run_fibers(prepare(case))
    check(case, *first)
    for seed in range(3):
        for resident in (1, 2, 40):
            assert both_equal(run_fibers(prepare(case), seed=seed, resident=resident), first), (seed, resident)


@by_form
def test_no_data_race_and_no_missing_fence(low_rank: bool) -> None:
    for kind in ("bf16", "fp32", "fp32 x int8"):
        for seed in (1, 2, 3):
            case = decode_case(kind, low_rank, seed)
            run_fibers(prepare(case, sanitizer="races"), seed=seed, resident=3, sanitizer="races")
    for rows in (1, 9):
        case = uniform_case("bf16", low_rank, rows)
        run_fibers(prepare(case, sanitizer="races"), seed=rows, resident=3, sanitizer="races")


def test_nothing_beside_the_tensors_is_touched() -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own that loads their runtime first."""
    script = Path(__file__).with_name("run_sanitized.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=sanitized_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.split() == ["checked", str(2 * len(KINDS)), "cases"]


@by_form
def test_rows_without_a_map_race_with_nothing(low_rank: bool) -> None:
    """No tile needs the pieces of a low-rank map then, but the counters must outlive them."""
    case = make("rms", 40, (2,), rank=20 if low_rank else None, row_map=torch.tensor([-1, -1], dtype=torch.int32))
    for seed in range(1, 6):
        _, edited = run_fibers(prepare(case, sanitizer="races"), seed=seed, resident=6, sanitizer="races")
        assert torch.equal(edited, case.x)


@by_form
@pytest.mark.parametrize("kind", ["bf16", "fp16+fp32", "fp32", "bf16 x int8"])
def test_a_row_keeps_its_bits_in_any_company(kind: str, low_rank: bool) -> None:
    """Alone, among 8, 9, 16, 17, 64 and 70 rows: other kernels, other launches, other places, the same bits."""
    x, maps, residual = KINDS[kind]
    case = make(
        "layer", 100, (70,), rank=20 if low_rank else None, dtype=x, map_dtype=maps, residual_dtype=residual, num_maps=3
    )
    row_map = torch.arange(70, dtype=torch.int32) % 4 - 1
    whole = run_fibers(prepare(case.but(row_map=row_map)))
    for rows in ([0], [5], range(8), range(9), range(3, 19), range(17), range(6, 70)):
        part = torch.tensor(list(rows))
        changes = {"x": case.x[part], "row_map": row_map[part]}
        if residual is not None:
            changes["residual"] = case.options["residual"][part]
        again = run_fibers(prepare(case.but(**changes)))
        assert both_equal(again, (whole[0][part], whole[1][part])), rows


@pytest.mark.parametrize(("hidden", "rank"), [(5125, 8), (64, 64), (31, 31), (31, 1)])
def test_low_rank_of_any_width(hidden: int, rank: int) -> None:
    """Six pieces of an odd depth; a rank that is the hidden size; a rank of one."""
    case = make("layer", hidden, (3,), rank=rank, dtype=BF16, residual_dtype=FP32, alpha=0.5)
    first = run_fibers(prepare(case))
    check(case, *first)
    assert both_equal(run_fibers(prepare(case, in_place=True), seed=4, resident=2), first)


@by_form
def test_replay_without_resetting(low_rank: bool) -> None:
    """A captured launch runs again on the same counters and the workspace that it left behind."""
    case = decode_case("bf16", low_rank, 2)
    call = prepare(case)
    first = [tensor.clone() for tensor in run_fibers(call)]
    call.y.fill_(torch.nan)
    call.edited.fill_(torch.nan)
    assert both_equal(run_fibers(call, seed=3), first)


@by_form
def test_strides_and_misaligned_rows(low_rank: bool) -> None:
    """Rows that begin anywhere, elements apart from each other, leading dimensions in another order."""
    rank = 24 if low_rank else None
    plain = make("rms", 64, (2, 3, 2), rank=rank, dtype=BF16, residual_dtype=FP32, alpha=torch.linspace(0, 1, 12))
    expected = run_fibers(prepare(plain))
    check(plain, *expected)
    x, residual = plain.x, plain.options["residual"]
    shifted = torch.empty(12 * 65 + 1, dtype=BF16)[1:].view(2, 3, 2, 65)[..., :64].copy_(x)
    gaps = torch.empty(2, 3, 2, 128)[..., ::2].copy_(residual)
    turned = torch.empty(2, 2, 3, 64, dtype=BF16).transpose(1, 2).copy_(x)
    for changes in ({"x": shifted}, {"residual": gaps}, {"x": turned}, {"x": shifted, "residual": gaps}):
        case = plain.but(**changes)
        assert both_equal(run_fibers(prepare(case)), expected)
        assert both_equal(run_fibers(prepare(case, in_place=True)), expected)


def test_maps_that_no_row_uses_are_not_read() -> None:
    """Their memory is not even given to the emulator's launch: only the used one is."""
    case = make("rms", 64, (3,), dtype=BF16, num_maps=256, row_map=torch.tensor([250, -1, 250], dtype=torch.int32))
    call = prepare(case)
    call.buffers["up"] = case.map.up[250:251]
    y, edited, _ = run_ptx(call, "sm_80")
    check(case, y, edited)


def test_a_map_that_is_not_there_makes_its_row_nan() -> None:
    case = make("rms", 64, (3,), dtype=BF16, row_map=torch.tensor([0, 1, -1], dtype=torch.int32))
    y, edited = run_fibers(prepare(case))
    assert edited[1].isnan().all()
    assert y[1].isnan().all()
    assert not y[::2].isnan().any()


def test_large_mean_does_not_cancel() -> None:
    """With mean 1e4 and deviation 1, E[x^2] - mean^2 in fp32 has no correct digit."""
    case = make("layer", 768, (2,), alpha=0.0)
    case = case.but(x=case.x + 1e4)
    y, expected = run_fibers(prepare(case))[0], case.expected()[0]
    assert (y - expected).abs().max() < 2.0**-10 * case.weight.abs().max()


def test_nothing_to_do() -> None:
    case = make("rms", 64, (0,), dtype=BF16)
    y, edited = run_fibers(prepare(case))
    assert y.shape == edited.shape == (0, 64)


def test_products_of_16_bits_are_left_to_the_tensor_cores() -> None:
    (launch,) = launches(prepare(decode_case("bf16", low_rank=False)))
    assert "mma.sync.aligned.m16n8k16" in source_of(launch.kernel.decode(), "sm_80")
