"""The model's arithmetic, by hand; what it prints and writes says that it is a prediction."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import decode_model, roofline, served
from benchmarks.decode_model import BEFORE, GPUS, Gpu, decode_us, pair_us, prefill_us
from benchmarks.roofline import find_gpu, predict
from incline_fast.bench.problems import Problem

BF16 = torch.bfloat16
ROUND = Gpu("round", bandwidth=1.0, tensor=100, vector=10, multiprocessors=100, clock_ghz=1.0, source="made up")
# No step takes any time: what is left is bytes over bandwidth.
FREE = replace(
    BEFORE,
    prologue_clocks=0,
    tile_clocks=0,
    release_clocks=0,
    acquire_clocks=0,
    steps_requested=(64, 64),
    shares_rows=True,
)
CLOCKS = (
    "L2_CLOCKS",
    "ATOMIC_CLOCKS",
    "BARRIER_CLOCKS",
    "DIVISION_CLOCKS",
    "NOTICE_CLOCKS",
    "_REDUCE",
    "ROW_CLOCKS",
    "STEP_CLOCKS",
)


def problem(tokens: int, width: int, rank: int | None = None) -> Problem:
    return Problem("rms", tokens, width, rank, BF16, BF16)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assumptions that are easy to reckon with: launches of 2 us, trips to memory of 1 us, everything else at once."""
    values = {"ATTAINABLE_BANDWIDTH": 1, "ATTAINABLE_FLOPS": 0.5, "LAUNCH_US": 2, "DRAM_US": 1, "LOADED_DRAM_US": 1}
    values |= {
        "DEPENDENCY_US": 0.5,
        "L2_SHARE": 1,
        "SM_BYTES_PER_CLOCK": 100,
        "GEMM_SLOWDOWN": 1,
        "GEMM_TAIL_US": 0,
        "SECOND_CLOCKS": 0,
    }
    for name, value in (values | dict.fromkeys(CLOCKS, 0)).items():
        monkeypatch.setattr(decode_model, name, value)


def row_us(width: int, bytes_per_element: float) -> float:
    """One multiprocessor receives a row, at 100 bytes a nanosecond."""
    return width * bytes_per_element / 100 / 1e3


def test_dense_is_its_weights_where_no_step_takes_time(plain: None) -> None:
    """1600 columns are 100 blocks; slots of 4 bytes, a weight of 2, and moments of 8 bytes for every 16 elements."""
    time = decode_us(ROUND, problem(1, 1600), FREE)
    assert time == pytest.approx(2 + 1 + 1600 * 1600 * 2 / 1e6 + row_us(1600, 4 + 2 + 0.5))
    assert pair_us(ROUND, problem(1, 1600)) == pytest.approx(
        (2 + 1 + (1600 * 1600 + 2 * 1600) * 2 / 1e6) + 2 + row_us(1600, 8)
    )


def test_bandwidth_is_limited_by_what_has_been_requested(plain: None) -> None:
    """Columns of 3200 bytes are 7 steps of 8 warps x 64 bytes; with one under way the memory is waited for 7 times."""
    one = replace(FREE, steps_requested=(1, 1))
    slower = decode_us(ROUND, problem(1, 1600), one) - decode_us(ROUND, problem(1, 1600), FREE)
    weights = 1600 * 1600 * 2
    assert slower == pytest.approx((7 - 1) * 1.0 - weights / 1e6)


def test_every_block_reads_x_from_l2(plain: None) -> None:
    """100 blocks with 64 rows of 3200 bytes, and the weights: more than memory has to bring."""
    fast = replace(ROUND, bandwidth=1e3, tensor=1e6)
    slower = decode_us(fast, problem(64, 1600), FREE) - decode_us(fast, problem(1, 1600), FREE)
    l2 = 10e6  # bytes a microsecond: 100 a nanosecond for each of 100 multiprocessors
    one, many = ((1600 * 1600 * 2 + 100 * m * 3200) / l2 for m in (1, 64))
    assert slower == pytest.approx(many - one)


def test_each_dependent_step_adds_its_clocks(plain: None) -> None:
    """A clock is a nanosecond here."""
    base = decode_us(ROUND, problem(1, 1600), FREE)
    for change in ("prologue_clocks", "tile_clocks", "release_clocks", "acquire_clocks"):
        assert decode_us(ROUND, problem(1, 1600), replace(FREE, **{change: 500})) == pytest.approx(base + 0.5), change


def test_blocks_with_a_share_of_the_rows_have_to_notice_the_last_one(plain: None, monkeypatch: Any) -> None:
    """That of a single row is the last one, and acquires; four blocks have two of eight rows each."""
    monkeypatch.setattr(decode_model, "NOTICE_CLOCKS", 700)
    design = replace(FREE, acquire_clocks=100)
    one, two = (decode_us(ROUND, problem(m, 1600), design) for m in (1, 2))
    l2 = 100 * 3200 / 10e6  # a second row of x for 100 blocks, which memory does not have to bring
    assert two - one == pytest.approx(0.7 - 0.1, abs=l2)
    few = [decode_us(ROUND, problem(m, 64), design) for m in (4, 8)]
    assert few[1] - few[0] == pytest.approx(row_us(64, 4 + 2 + 0.5), abs=1e-3)


def test_the_ring_reads_x_once_for_two_tiles_of_columns(plain: None, monkeypatch: Any) -> None:
    """4096 columns are 128 blocks with bulk copies, 256 without; what is in flight is what the slots hold."""
    for name in ("STAGE_CLOCKS", "COPY_CLOCKS"):
        monkeypatch.setattr(decode_model, name, 0)
    fast = replace(ROUND, bandwidth=1e3, tensor=1e6)
    ring, p = replace(FREE, sm_90=True), problem(10, 4096)
    l2 = 10e6
    weights, x = 4096 * 4096 * 2, 10 * 4096 * 2
    shared = row_us(4096, 4 + 2 + 0.5)
    assert decode_us(fast, p, ring) == pytest.approx(2 + 1 + (weights + 128 * x) / l2 + shared)
    assert decode_us(fast, p, FREE) == pytest.approx(2 + 1 + (weights + 256 * x) / l2 + shared)
    # Slots of 32 segments of 1 KB and 64 bytes: three in 104 KB.
    monkeypatch.setattr(decode_model, "SM_BYTES_PER_CLOCK", 1e9)
    assert decode_us(fast, p, ring) == pytest.approx(2 + 1 + weights / (128 * 3 * 32 * 1024) * 1.0, abs=1e-3)
    # Eight stages of 32 copies, one after the other.
    monkeypatch.setattr(decode_model, "COPY_CLOCKS", 40)
    assert decode_us(fast, p, ring) == pytest.approx(2 + 1 + 8 * 32 * 40 / 1e3, abs=1e-3)


def test_the_ring_serves_dense_maps_of_16_bit_rows_on_newer_gpus() -> None:
    def kernel(gpu: str, tokens: int, rank: int | None = None, dtype: torch.dtype = BF16) -> tuple[str, bool]:
        p = Problem("rms", tokens, 4096, rank, dtype, dtype)
        return predict(GPUS[gpu], p).kernel, decode_model.NOW.takes_ring(GPUS[gpu], p)

    assert kernel("H100", 9) == ("decode_dense", True)
    assert kernel("H200", 10) == ("gemm_dense+epilogue", True)  # it could, but torch's product is faster
    assert kernel("H100", 16) == ("decode_dense", True)
    assert kernel("H100", 17) == ("gemm_dense+epilogue", False)
    assert kernel("A100", 10) == ("gemm_dense+epilogue", False)
    assert kernel("H100", 1, 64) == ("decode_low_rank", False)
    assert kernel("H100", 1, dtype=torch.float32) == ("decode_dense", False)


def test_a_cluster_serves_small_maps_of_low_rank_on_newer_gpus() -> None:
    """Up to 32 pieces of down r: 16 rows of the map by 512 of its depth."""
    taken = [
        (m, d, rank)
        for m in (1, 8, 9)
        for d in (1024, 4096, 8192)
        for rank in (16, 64, 80, 128, 144)
        if decode_model.NOW.takes_cluster(GPUS["H100"], problem(m, d, rank))
    ]
    ranks = {1024: (16, 64, 80, 128), 4096: (16, 64), 8192: (16,)}
    assert taken == [(m, d, rank) for m in (1, 8) for d in ranks for rank in ranks[d]]
    assert not decode_model.NOW.takes_cluster(GPUS["A100"], problem(1, 1024, 16))
    assert not served.in_one_cluster(Problem("rms", 1, 1024, 16, torch.float32, torch.float32))
    assert not served.in_one_cluster(problem(1, 1024, None))
    # Eight tokens of wide rows, which torch's product has otherwise.
    assert predict(GPUS["H100"], problem(8, 8192, 16)).kernel == "decode_low_rank"
    assert predict(GPUS["A100"], problem(8, 8192, 16)).kernel == "gemm_low_rank+epilogue"


def test_a_sixteenth_of_the_map_for_each_block_of_the_cluster() -> None:
    """Twice the rank is twice the bytes for each of 16 multiprocessors, at the share of L2 that all would have."""
    gpu = GPUS["H100"]
    more = decode_us(gpu, problem(1, 4096, 32)) - decode_us(gpu, problem(1, 4096, 16))
    assert more == pytest.approx(gpu.us(2 * 4096 * 16 * 2 / 16 / (64 * 0.35)))
    # Two pieces of down r a block are two stages, one after the other.
    more = decode_us(gpu, problem(1, 4096, 64)) - decode_us(gpu, problem(1, 4096, 32))
    assert more == pytest.approx(gpu.us(2 * 4096 * 32 * 2 / 16 / (64 * 0.35) + 300 + 8 * 4))
    # The second token's sums are stored by other lanes, two of them in one more store.
    more = decode_us(gpu, problem(2, 4096, 64)) - decode_us(gpu, problem(1, 4096, 64))
    assert more == pytest.approx(gpu.us(2 * 4))


def test_short_pieces_are_read_by_more_blocks() -> None:
    """A warp with three steps of weights under way has a piece of 1024 in two trips to memory, one of 512 in one.

    In return there are eight pieces to add up, not four: two trips to L2 more."""
    gpu, long = GPUS["H100"], replace(BEFORE, steps_requested=(3, 2))
    short = replace(long, short_pieces=512)
    saved = decode_us(gpu, problem(1, 4096, 64), long) - decode_us(gpu, problem(1, 4096, 64), short)
    streamed = 64 * 4096 * 2 / (3.35e6 * 0.91)  # hidden by the second trip
    assert saved == pytest.approx(0.85 - streamed - gpu.us(2 * 270 + 4 * 64 * 4 / 64))
    assert decode_us(gpu, problem(1, 4096, 500), short) == decode_us(gpu, problem(1, 4096, 500), long)


def test_the_first_kernels_have_the_times_that_their_machine_code_was_read_to_have() -> None:
    """18 us at one token, 28 at 8, 40 at 16, within a tenth: an H100, d = 4096, where bytes alone take 11."""
    for tokens, expected in ((1, 18), (8, 28), (16, 40)):
        assert decode_us(GPUS["H100"], problem(tokens, 4096), BEFORE) == pytest.approx(expected, rel=0.1)
        assert predict(GPUS["H100"], problem(tokens, 4096)).us_roofline < 11


def test_many_tokens_are_bound_by_the_products_flops(plain: None) -> None:
    row = predict(ROUND, problem(10_000, 1600))
    assert (row.kernel, row.design) == ("gemm_dense+epilogue", "now")
    product = 2 * 10_000 * 1600 * 1600 / (100 * 0.5) / 1e6
    finish = 10_000 * 1600 * 2 / 1e6 * 4
    assert pair_us(ROUND, problem(10_000, 1600)) == pytest.approx(2 + 1 + product + 2 + finish)
    assert row.us_predicted == prefill_us(ROUND, problem(10_000, 1600))
    # Of operands of one type it is written and read in that type, otherwise in fp32.
    assert row.us_predicted == pair_us(ROUND, problem(10_000, 1600))
    mixed = replace(problem(10_000, 1600), map_dtype=torch.int8)
    assert prefill_us(ROUND, mixed) == pytest.approx(pair_us(ROUND, mixed) + finish * 0.5)
    for tokens, kernel in ((16, "decode_dense"), (17, "gemm_dense+epilogue"), (64, "gemm_dense+epilogue")):
        row = predict(ROUND, problem(tokens, 1600))
        assert row.kernel == kernel
        assert (row.ratio == 1.0) == (tokens > 16)


@pytest.mark.parametrize("gpu", ["H100", "H200"])
def test_no_call_of_a_decode_step_takes_longer_than_the_pair(gpu: str) -> None:
    """What decode_limit() is there for: every count of tokens, widths and ranks between those of the page as well.

    Of the multiples of 256 one would not pass: at 4352 a few blocks do not fit beside the others, 1.01 on an H200.
    """
    for rank in (None, 8, 63, 64, 128, 129, 176, 177, 384, 385, 500, 512, 1000, 2000):
        for width in range(1024, 8193, 512):
            for tokens in (*range(1, 26), 64):
                row = predict(GPUS[gpu], problem(tokens, width, rank))
                assert row.ratio is not None
                assert round(row.ratio, 2) <= 1, (rank, width, tokens)


def test_programmatic_launches_hide_what_comes_before_the_first_weights(plain: None) -> None:
    """A launch of 2 us and a trip to memory become a hand-over of 0.5."""
    slow = replace(FREE, prologue_clocks=700)
    for p in (problem(1, 1600), problem(2, 1600)):
        saved = decode_us(ROUND, p, slow) - decode_us(ROUND, p, slow, programmatic=True)
        assert saved == pytest.approx(2 + 0.7 + 1 - 0.5)
    for rank, kernels in ((None, 1.5), (16, 1.5 + 1.5 + 1)):
        p = problem(1, 1600, rank)
        assert pair_us(ROUND, p) - pair_us(ROUND, p, programmatic=True) == pytest.approx(kernels)


def test_gpus_and_designs_without_programmatic_launches_have_no_time_for_them() -> None:
    assert predict(GPUS["A100"], problem(1, 4096)).us_predicted_pdl is None
    assert predict(GPUS["H100"], problem(1, 4096), BEFORE).ratio_pdl is None
    row = predict(GPUS["H100"], problem(1, 4096))
    assert row.us_predicted_pdl == decode_us(GPUS["H100"], problem(1, 4096), programmatic=True)
    assert row.us_unfused_pdl == pair_us(GPUS["H100"], problem(1, 4096), programmatic=True)


def test_devices_are_found_by_the_drivers_names() -> None:
    assert find_gpu("NVIDIA H100 80GB HBM3") is GPUS["H100"]
    assert find_gpu("NVIDIA GeForce RTX 4090") is None


def test_every_output_says_that_it_is_a_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main(tmp_path, tmp_path, tmp_path / "page.md")
    shown = capsys.readouterr().out
    assert "Predictions of a model, not measurements" in shown
    assert "predicted, not measured" in shown
    assert "the model says" in shown
    written = (tmp_path / "roofline-predicted.csv").read_text()
    rows = list(csv.DictReader(written.splitlines()))
    assert {row["status"] for row in rows} == {"predicted, not measured"}
    assert {row["gpu"] for row in rows} == set(GPUS)
    assert (tmp_path / "roofline-predicted.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "**Nothing here was measured on a GPU.**" in page
    # What is committed is what the model says.
    results = Path(roofline.__file__).parent / "results" / "roofline-predicted.csv"
    assert results.read_text() == written, "run: python -m benchmarks.roofline"
    assert roofline.PAGE.read_text(encoding="utf-8") == page, "run: python -m benchmarks.roofline"


def test_expectations_are_judged_by_the_model() -> None:
    """The first kernels miss all three; bytes alone would not."""
    for value, (_, _, limit) in zip(
        roofline.expectation_values(GPUS["H100"], BEFORE), roofline.EXPECTATIONS, strict=True
    ):
        assert value > limit
