"""A real stage as a process, on an emulated device that loses its context and then ends the process."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.plan import ROOT, Run, stages
from benchmarks.gpu.schedule import run_stages
from benchmarks.gpu.tables import read

HELPERS = ROOT / "tests" / "helpers"


def test_everything_but_the_culprits_comes_back(tmp_path: Path) -> None:
    output, work = tmp_path / "output", tmp_path / "work"
    run = Run(output, work, None, device="gpu_device_in_stage:Faulty")
    (stage,) = (stage for stage in stages(run) if stage.name == "dense")
    variables = {"PYTHONPATH": os.pathsep.join([str(HELPERS), stage.environment["PYTHONPATH"]])}
    variables |= {"FAULTS": str(tmp_path / "faults"), "OMP_NUM_THREADS": "1"}
    stage = replace(stage, environment={**stage.environment, **variables}, silence=None)
    outcomes = run_stages([stage], ROOT, work / "logs", 300, lambda tool: sys.executable, lambda outcome: None)
    assert [outcome.status for outcome in outcomes] == ["crashed", "crashed", "passed"], outcomes
    assert "illegal memory access" in outcomes[0].detail
    assert "SIGKILL" in outcomes[1].detail
    rows = read(output / "measurements.csv")
    whole = ["eager", "cublas+compiled", "hook", "cublas+compiled (again)"]
    found = {m: [row["backend"] for row in rows if row["num_tokens"] == m] for m in ("1", "2", "3")}
    assert found == {"1": whole, "2": ["eager"], "3": whole}
    skipped = {row["provider"]: row["problem"].split()[1] for row in read(output / "skipped.csv")}
    assert skipped == {"cublas+compiled": "2", "hook": "2"}
