"""The roofline's arithmetic, by hand; what it prints and writes says that it is a prediction."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import roofline
from benchmarks.roofline import GPUS, Gpu, find_gpu, predict
from incline_fast.bench.problems import Problem

BF16 = torch.bfloat16
ROUND = Gpu("round", bandwidth=1.0, tensor=100, vector=10, multiprocessors=100, clock_ghz=1.0, source="made up")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assumptions that are easy to reckon with."""
    for name, value in {"ATTAINABLE_BANDWIDTH": 1, "ATTAINABLE_FLOPS": 0.5, "LAUNCH_US": 2, "DRAM_US": 1}.items():
        monkeypatch.setattr(roofline, name, value)
    monkeypatch.setattr(roofline, "L2_US", 0.5)
    monkeypatch.setattr(roofline, "SM_BYTES_PER_CLOCK", 100)


def test_dense_decode_by_hand(plain: None) -> None:
    """1600 columns are 100 programs, one each for 100 multiprocessors, which take 51,200 bytes at 100 a nanosecond."""
    row = predict(ROUND, Problem("rms", 1, 1600, None, BF16, BF16))
    weights = 1600 * 1600 * 2
    assert row.bytes == weights + 5 * 1600 * 2
    assert row.flops == 2 * 1600 * 1600
    assert row.us_roofline == pytest.approx(row.bytes / 1e6)
    stream = weights / 1e6
    rows = 2 * 0.5 + 5 * 1600 * 2 / 100 / 1e3
    assert row.us_predicted == pytest.approx(2 + 0.5 + 1 + stream + 2 * 0.5 + rows)
    pair = (2 + 1 + (weights + 2 * 1600 * 2) / 1e6) + (2 + 2 * 0.5 + 4 * 1600 * 2 / 100 / 1e3)
    assert row.us_unfused == pytest.approx(pair)
    assert row.ratio == pytest.approx(row.us_predicted / pair)


def test_a_last_wave_that_is_not_full_costs_a_whole_one(plain: None) -> None:
    """101 programs on 100 multiprocessors: one of them has two, and receives twice its share."""
    slow = replace(ROUND, bandwidth=1e3)  # so that the busiest multiprocessor decides
    full, over = (predict(slow, Problem("rms", 1, d, None, BF16, BF16)) for d in (1600, 1616))
    busiest = {d: d * d * 2 * waves / (d // 16) / 100 / 1e3 for d, waves in ((1600, 1), (1616, 2))}
    rows = {d: 5 * d * 2 / 100 / 1e3 for d in busiest}
    assert over.us_predicted - full.us_predicted == pytest.approx(
        busiest[1616] - busiest[1600] + rows[1616] - rows[1600]
    )


def test_low_rank_has_two_products_and_hands_over_twice(plain: None) -> None:
    row = predict(ROUND, Problem("rms", 1, 3200, 160, BF16, BF16))
    # down: 10 blocks of columns in 12 pieces, two of them on one multiprocessor; up: 200 blocks, two each.
    moved = 160 * 3200 * 2
    down = max(moved / 1e6, moved * 2 / 120 / 100 / 1e3)
    up = max(moved / 1e6, moved * 2 / 200 / 100 / 1e3)
    assert row.us_predicted == pytest.approx(2 + 0.5 + 1 + down + up + 4 * 0.5 + 2 * 0.5 + 5 * 3200 * 2 / 100 / 1e3)


def test_many_tokens_are_bound_by_the_products_flops(plain: None) -> None:
    row = predict(ROUND, Problem("rms", 10_000, 1600, None, BF16, BF16))
    assert row.kernel == "gemm_dense+epilogue"
    product = 2 * 10_000 * 1600 * 1600 / (100 * 0.5) / 1e6
    result = 10_000 * 1600 * 5 * 2 / 1e6  # x, r', y and an fp32 image
    assert row.us_predicted == pytest.approx(2 + 1 + product + 2 + 1 + result)


def test_devices_are_found_by_the_drivers_names() -> None:
    assert find_gpu("NVIDIA H100 80GB HBM3") is GPUS["H100"]
    assert find_gpu("NVIDIA GeForce RTX 4090") is None


def test_every_output_says_that_it_is_a_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main(tmp_path, tmp_path)
    shown = capsys.readouterr().out
    assert "Predictions of a model, not measurements" in shown
    assert "predicted, not measured" in shown
    rows = list(csv.DictReader((tmp_path / "roofline-predicted.csv").read_text().splitlines()))
    assert {row["status"] for row in rows} == {"predicted, not measured"}
    assert {row["gpu"] for row in rows} == set(GPUS)
    assert (tmp_path / "roofline-predicted.png").read_bytes().startswith(b"\x89PNG")


def test_expectations_are_judged_by_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without overheads the kernels reach the roofline and meet what is expected; with them they do not."""
    dense, ratio, low = roofline.expectation_values(GPUS["H100"])
    for name in ("LAUNCH_US", "DRAM_US", "L2_US"):
        monkeypatch.setattr(roofline, name, 0.0)
    limits = [limit for _, _, limit in roofline.EXPECTATIONS]
    ideal = roofline.expectation_values(GPUS["H100"])
    assert ideal[0] <= limits[0] < dense
    assert ideal[2] <= limits[2] < low
    assert ratio < 1
    roofline.main(tmp_path, tmp_path)
    assert "the model says" in capsys.readouterr().out
