"""The run as a whole, killed at whatever moment: what is on the disk then is whole, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_stages import has_ended

from benchmarks.gpu import __main__ as script
from benchmarks.gpu.plan import ROOT, Run, stages
from benchmarks.gpu.tables import read

DRIVER = """
import sys
from pathlib import Path
from benchmarks.gpu import __main__ as script
from benchmarks.gpu.plan import Run
from benchmarks.gpu.stages import Stage

output, work = Path(sys.argv[1]), Path(sys.argv[2])
code = '''
import os, sys, time
from pathlib import Path
from benchmarks.gpu.tables import append
output = Path(sys.argv[1])
(output.parent / "pid").write_text(str(os.getpid()))
for number in range(10**6):
    append(output / "measurements.csv", ("number", "text"), [{"number": number, "text": "x" * 3000}])
'''
quick = Stage("quick", [sys.executable, "-S", "-c", "print('done')"], 60)
endless = Stage("endless", [sys.executable, "-S", "-c", code, str(output)], 60)
script.PACK_SECONDS = 0.2
script.stages = lambda run: [quick, endless]
sys.exit(script.main(Run(output, work, None), 60))
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run whose second stage writes rows without end."""
    output = tmp_path / "output"
    process = subprocess.Popen([sys.executable, "-S", "-c", DRIVER, str(output), str(tmp_path / "work")], cwd=ROOT)
    while len(read(output / "measurements.csv")) < 20 or "output/measurements.csv" not in packed(output):
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def packed(output: Path) -> list[str]:
    archive = output / "results.tar.gz"
    if not archive.exists():
        return []
    with tarfile.open(archive) as file:
        return file.getnames()


def check_what_came_back(output: Path) -> None:
    names = sorted(path.name for path in output.iterdir())
    assert len(names) <= 8
    assert {"measurements.csv", "results.tar.gz", "stages.csv"} <= set(names)
    assert [row["status"] for row in read(output / "stages.csv")][:1] == ["passed"]
    rows = read(output / "measurements.csv")
    assert [row["number"] for row in rows] == [str(number) for number in range(len(rows))]
    assert all(len(row["text"]) == 3000 for row in rows)
    assert {"output/measurements.csv", "logs/quick.log"} <= set(packed(output))


def test_a_run_killed_at_once_leaves_whole_files_and_no_process(
    running: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert has_ended(int((tmp_path / "pid").read_text()))
    check_what_came_back(tmp_path / "output")


def test_a_run_told_to_stop_packs_once_more(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    before = (tmp_path / "output" / "results.tar.gz").stat().st_mtime_ns
    running.terminate()
    assert running.wait(20) == 128 + signal.SIGTERM
    assert has_ended(int((tmp_path / "pid").read_text()))
    assert (tmp_path / "output" / "results.tar.gz").stat().st_mtime_ns > before
    check_what_came_back(tmp_path / "output")


def test_a_killed_stage_costs_only_itself(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert running.wait(20) == 1
    assert [row["status"] for row in read(tmp_path / "output" / "stages.csv")] == ["passed", "crashed"]
    check_what_came_back(tmp_path / "output")


def test_what_an_earlier_run_left_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, work = tmp_path / "output", tmp_path / "work"
    (work / "logs").mkdir(parents=True)
    output.mkdir()
    for stale in (output / "measurements.csv", work / "dense.journal", work / "logs" / "old.log"):
        stale.write_text("of an earlier run")
    (output / "mine.txt").write_text("not of a run")
    monkeypatch.setattr(script, "stages", lambda run: [])
    monkeypatch.setattr(script.signal, "signal", lambda number, handler: None)
    assert script.main(Run(output, work, None), 60) == 0
    assert not (work / "dense.journal").exists()
    assert sorted(path.name for path in output.iterdir()) == ["mine.txt", "results.tar.gz"]
    assert not list((work / "logs").iterdir())


def test_the_plan_is_the_one_that_was_agreed_on(tmp_path: Path) -> None:
    plan = stages(Run(tmp_path / "output", tmp_path / "work", tmp_path / "pack"))
    names = [stage.name for stage in plan]
    assert names[:7] == ["libraries", "environment", "small-checks", "dense", "low-rank", "epilogue", "cholesky"]
    assert names.index("checks") < names.index("memcheck") < names.index("profile") < names.index("report")
    assert script.TOTAL_SECONDS < 430
    assert all(stage.least <= stage.seconds < script.TOTAL_SECONDS / 2 for stage in plan)
    # With libraries that were brought along, everything up to the measurements fits, whatever the stages before take.
    assert sum(stage.seconds for stage in plan[1:7]) < script.TOTAL_SECONDS - 60
    by_name = {stage.name: stage for stage in plan}
    memcheck, profile = by_name["memcheck"], by_name["profile"]
    assert memcheck.command[0] == memcheck.tool == "compute-sanitizer"
    assert "--target-processes=application-only" in memcheck.command
    assert memcheck.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert profile.command[0] == profile.tool == "ncu"
    assert "--clock-control=none" in profile.command
    assert all(stage.journal and stage.silence for stage in plan if "benchmarks.gpu.measure" in stage.command)
    assert f"--pack={tmp_path / 'pack'}" in by_name["libraries"].command
    assert str(tmp_path / "work" / "debug") in by_name["small-checks"].environment["PYTHONPATH"]


def test_a_dry_run_needs_no_tools_and_compiles_nothing(tmp_path: Path) -> None:
    plan = stages(Run(tmp_path / "output", tmp_path / "work", None, dry=True))
    assert all(stage.tool is None and stage.command[0] == sys.executable for stage in plan)
    assert "--no-build" in plan[0].command
