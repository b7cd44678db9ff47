"""Stages fail, hang, crash and are killed one by one; the others go on, and the budget holds."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import stages as module
from benchmarks.gpu.schedule import RESTARTS, exit_status, run_stages
from benchmarks.gpu.stages import NO_DEVICE, RESTART, Outcome, Stage


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def run(stages: list[Stage], folder: Path, seconds: float = 100, **options: bool) -> list[Outcome]:
    return run_stages(stages, folder, folder / "logs", seconds, lambda tool: None, lambda outcome: None, **options)


def test_stages_fail_one_by_one_and_the_others_go_on(tmp_path: Path) -> None:
    made = tmp_path / "made"
    stages = [
        Stage("good", python(f"open({str(made)!r}, 'w')"), 60, produces=(made,)),
        Stage("bad", python("print('the reason'); raise SystemExit(3)"), 60),
        Stage("slow", python("import time; print('begun', flush=True); time.sleep(60)"), 1),
        Stage("silent", python("import time; print('begun', flush=True); time.sleep(60)"), 60, silence=0.5),
        Stage("killed", python("import os; os.kill(os.getpid(), 9)"), 60),
        Stage("empty", python(""), 60, produces=(tmp_path / "absent",)),
        Stage("no such program", ["/no/such/program"], 60),
        Stage("tool", python(""), 60, tool="no-such-tool"),
        Stage("last", python("import os; print(os.getcwd(), os.environ['NAME'])"), 60, environment={"NAME": "it"}),
    ]
    outcomes = run(stages, tmp_path)
    assert [o.status for o in outcomes] == [
        "passed",
        "failed",
        "timed out",
        "hung",
        "crashed",
        "failed",
        "failed",
        "not run",
        "passed",
    ]
    details = {o.stage: o.detail for o in outcomes}
    assert "exit status 3" in details["bad"]
    assert "the reason" in details["bad"]
    assert "begun" in details["slow"]
    assert "killed by SIGKILL" in details["killed"]
    assert "did not produce absent" in details["empty"]
    assert "cannot start" in details["no such program"]
    assert details["tool"] == "no-such-tool is not installed"
    assert all(o.seconds < 30 for o in outcomes)
    assert (tmp_path / "logs" / "last.log").read_text().split() == [str(tmp_path), "it"]
    assert exit_status(outcomes) == 1
    assert exit_status([outcomes[0], outcomes[-1]]) == 0


def test_the_budget_shortens_the_last_stage_and_leaves_out_the_rest(tmp_path: Path) -> None:
    sleep = python("import time; print('given {seconds}', flush=True); time.sleep(60)")
    stages = [Stage("slow", sleep, 60), Stage("next", sleep, 60), Stage("long", sleep, 60, least=30)]
    begin = time.monotonic()
    outcomes = run(stages, tmp_path, seconds=1.4)
    assert time.monotonic() - begin < 10
    assert [o.status for o in outcomes] == ["timed out", "not run", "not run"]
    assert outcomes[0].limit < 1.5
    assert "given 1" in outcomes[0].detail
    assert outcomes[2].detail == "0 s of 1 s were left, and it needs 30 s"


def test_a_stage_goes_on_behind_what_crashed_it(tmp_path: Path) -> None:
    """Attempt by attempt: a lost device, a kill, a hang; then the rest is done."""
    journal = tmp_path / "journal"
    code = (
        "import os, sys, time\n"
        f"done = open({str(journal)!r}, 'a+'); done.seek(0); attempt = len(done.read())\n"
        "done.write('.'); done.flush(); print('attempt', attempt, flush=True)\n"
        f"if attempt == 0: sys.exit({RESTART})\n"
        "if attempt == 1: os.kill(os.getpid(), 11)\n"
        "if attempt == 2: time.sleep(60)\n"
    )
    stage = Stage("stage", python(code), 60, silence=0.6, journal=journal)
    outcomes = run([stage, Stage("next", python(""), 60)], tmp_path)
    assert [o.status for o in outcomes] == ["crashed", "crashed", "hung", "passed", "passed"]
    assert "context was lost" in outcomes[0].detail
    assert "SIGSEGV" in outcomes[1].detail
    assert (tmp_path / "logs" / "stage.log").read_text().count("attempt") == 4


def test_a_stage_is_not_begun_again_for_ever(tmp_path: Path) -> None:
    stage = Stage("stage", python(f"raise SystemExit({RESTART})"), 60, journal=tmp_path / "journal")
    assert len(run([stage], tmp_path)) == 1 + RESTARTS


def test_without_a_gpu_nothing_more_is_run_unless_that_was_asked_for(tmp_path: Path) -> None:
    stages = [Stage("first", python(f"raise SystemExit({NO_DEVICE})"), 60), Stage("second", python(""), 60)]
    outcomes = run(stages, tmp_path)
    assert [o.status for o in outcomes] == ["no GPU", "not run"]
    assert outcomes[1].detail == "the stage first has found no GPU"
    assert exit_status(outcomes) == 1
    outcomes = run(stages, tmp_path, without_device=True)
    assert [o.status for o in outcomes] == ["no GPU", "passed"]
    assert exit_status(outcomes, without_device=True) == 0


def test_what_a_stage_has_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
    )
    run([Stage("forgets its child", python(code), 60)], tmp_path)
    assert has_ended(int((tmp_path / "pid").read_text()))


def test_a_process_that_does_not_die_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that hangs inside a driver."""
    monkeypatch.setattr(module, "AFTER_KILL_SECONDS", 0.3)
    real = module.os.killpg
    spared: list[int] = []
    monkeypatch.setattr(module.os, "killpg", lambda group, number: spared.append(group))
    try:
        stages = [Stage("undead", python("import time; time.sleep(60)"), 0.3), Stage("next", python(""), 60)]
        outcomes = run(stages, tmp_path)
    finally:
        real(spared[0], 9)
    assert [o.status for o in outcomes] == ["timed out", "passed"]
    assert "it did not end within 0 s of being killed" in outcomes[0].detail


def test_the_tick_goes_on_while_a_stage_runs(tmp_path: Path) -> None:
    ticks: list[float] = []
    stage = Stage("stage", python("import time; time.sleep(0.6)"), 60)
    run_stages(
        [stage], tmp_path, tmp_path, 60, lambda tool: None, lambda o: None, lambda: ticks.append(time.monotonic())
    )
    assert len(ticks) >= 3


def has_ended(pid: int, seconds: float = 5) -> bool:
    """Whether a process is gone, or nothing but an entry that its parent has not read."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
