"""Every stage comes as far as the device: its command, its imports, and what it prepares before."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.plan import ROOT, Run, stages
from benchmarks.gpu.stages import NO_DEVICE
from benchmarks.gpu.tables import read

NAMES = [stage.name for stage in stages(Run(Path(), Path(), None))]
TWIN = ROOT / ".twin"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("libraries", "report")])
def test_a_stage_comes_as_far_as_the_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the plan, run inside of this process, because each would import torch for seconds."""
    run = Run(tmp_path / "output", tmp_path / "work", None, dry=True)
    (stage,) = (stage for stage in stages(run) if stage.name == name)
    words = [word.replace("{seconds}", "60") for word in stage.command]
    module = words[words.index("-m") + 1]
    monkeypatch.setattr(sys, "argv", words[words.index(module) :])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == NO_DEVICE
    printed = capsys.readouterr().out
    assert "torch.cuda.is_available() is False" in printed
    if name == "dense":
        assert "cuda: ready" in printed
    if name == "environment":
        facts = {row["name"] for row in read(tmp_path / "output" / "environment.csv")}
        assert {"commit", "torch", "triton", "nvcc", "compute-sanitizer"} <= facts


def test_the_whole_run_in_the_twin_of_a_gpu_machine(tmp_path: Path) -> None:
    """Python 3.12, the oldest torch, built for CUDA, its Triton, and no git; made by tests/twin/build.py."""
    python = TWIN / "venv" / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no twin: python tests/twin/build.py")
    output, work = tmp_path / "output", tmp_path / "work"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = {**kept, "PATH": f"{python.parent}{os.pathsep}{TWIN / 'bin'}", "PYTHONPATH": "."}
    environment |= {"INCLINE_FAST_COMMIT": "abc1234", "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "benchmarks.gpu", "--dry-run", f"--output={output}", f"--work={work}"]
    answer = subprocess.run(
        command, cwd=TWIN / "tree", env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = {row["stage"]: row["status"] for row in read(output / "stages.csv")}
    assert list(found) == NAMES
    assert {name for name, status in found.items() if status == "passed"} == {"libraries", "report"}
    assert set(found.values()) == {"passed", "no GPU"}
    facts = {row["name"]: row["value"] for row in read(output / "environment.csv")}
    assert facts["commit"] == "abc1234"
    assert len(list(output.iterdir())) <= 8
