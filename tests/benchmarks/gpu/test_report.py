"""The page of a run: made of the tables alone, also of those of a run that was cut short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_device import MadeUpDevice

from benchmarks.gpu.measurements import Measurements, Skipped, Timed
from benchmarks.gpu.report import write_report
from benchmarks.gpu.tables import append
from benchmarks.roofline import GPUS, predict
from incline_fast.bench import Problem

STAGES = ("stage", "status", "seconds", "limit", "began", "detail")
PROBLEM = Problem("rms", 1, 4096, None, torch.bfloat16, torch.bfloat16)


def timed(provider: str, kind: str, microseconds: float) -> Timed:
    return Timed(provider, kind, [microseconds] * 5, 0.01)


def test_the_page_sets_measurements_beside_predictions(tmp_path: Path) -> None:
    table = Measurements(tmp_path, "dense", MadeUpDevice())  # type: ignore[arg-type]
    pair, part = timed("cublas+compiled", "rival", 5.0), timed("norm alone", "part", 2.0)
    table.add(PROBLEM, [timed("cuda", "ours", 10.0), pair, part])
    table.add(replace(PROBLEM, num_tokens=4), [timed("cuda", "ours", 4.0), pair])
    table.add_cholesky(128, "float64", [timed("cusolver", "rival", 9.0), timed("blocked", "ours", 8.0)])
    table.skip(Skipped(str(PROBLEM), "cublas+quack", "ModuleNotFoundError"))
    row = {"stage": "libraries", "status": "passed", "seconds": 12.0, "limit": 150.0, "began": 0.0, "detail": ""}
    append(
        tmp_path / "stages.csv", STAGES, [row, {**row, "stage": "memcheck", "status": "not run", "detail": "no tool"}]
    )
    check = {"stage": "checks", "check": "parity cuda", "result": "failed", "reason": "off", "device": "", "commit": ""}
    append(tmp_path / "checks.csv", tuple(check), [check, {**check, "result": "passed"}])
    with (tmp_path / "measurements.csv").open("a") as file:
        file.write("cut,sho")  # the run was killed here
    write_report(tmp_path, tmp_path / "report")
    page = (tmp_path / "report" / "gpu.md").read_text()
    assert "| libraries | passed | 12 |" in page
    assert "**memcheck not run**: no tool" in page
    assert "1 of 2 passed." in page
    assert "- checks, parity cuda: off" in page
    assert "Predictions are the roofline model's for an H100" in page
    predicted = predict(GPUS["H100"], PROBLEM).us_predicted
    assert f"| cuda | 10.00 | {predicted:.2f} | {10 / predicted:.2f} |" in page
    assert "cublas+compiled 5.00, cuda 10.00 (**we lose**) | norm alone 2.00 |" in page
    assert "| cuda 4.00, cublas+compiled 5.00 |  |" in page
    assert "| Cholesky 128 float64 | blocked 8.00, cusolver 9.00 |" in page
    assert "cublas+quack | ModuleNotFoundError |" in page
    assert (tmp_path / "report" / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_measured_nothing_has_a_page_too(tmp_path: Path) -> None:
    write_report(tmp_path, tmp_path / "report")
    assert "Nothing was measured." in (tmp_path / "report" / "gpu.md").read_text()


def test_a_part_is_never_who_wins(tmp_path: Path) -> None:
    table = Measurements(tmp_path, "dense", MadeUpDevice())  # type: ignore[arg-type]
    table.add(PROBLEM, [timed("cuda", "ours", 10.0), timed("empty kernel", "part", 1.0)])
    write_report(tmp_path, tmp_path / "report")
    assert "we lose" not in (tmp_path / "report" / "gpu.md").read_text()


@pytest.mark.parametrize("device", ["NVIDIA H200", "a GPU that nobody knows"])
def test_the_prediction_is_for_the_card_that_ran(device: str, tmp_path: Path) -> None:
    made_up = MadeUpDevice()
    made_up.name = device
    Measurements(tmp_path, "dense", made_up).add(PROBLEM, [timed("cuda", "ours", 10.0)])  # type: ignore[arg-type]
    write_report(tmp_path, tmp_path / "report")
    page = (tmp_path / "report" / "gpu.md").read_text()
    assert ("for an H200" in page) == (device == "NVIDIA H200")
    assert ("nothing is predicted" in page) == (device != "NVIDIA H200")
