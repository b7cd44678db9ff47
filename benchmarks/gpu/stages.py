"""Stages with a time budget each. One that fails is reported; the others go on, and the exit status says so."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outcome", "Stage", "exit_status", "run_stages"]

REPORTED_LINES = 15
"""Last lines of a failed stage's output that are shown."""


@dataclass(frozen=True)
class Stage:
    """A command, the seconds it may take, and files that must be there when it has ended.

    ``tool`` names a program that not every machine has; without it the stage is not run, which is a failure too:
    what was not checked must not look as if it had passed.
    """

    name: str
    command: Sequence[str]
    seconds: float
    produces: tuple[Path, ...] = ()
    tool: str | None = None


@dataclass(frozen=True)
class Outcome:
    """``status``: "passed", "failed", "timed out" or "not run"; ``detail`` says why it did not pass."""

    stage: str
    status: str
    seconds: float
    detail: str = ""


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    log_folder: Path,
    total_seconds: float,
    find_tool: Callable[[str], str | None],
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run all stages in ``folder``, each under its own budget and all under ``total_seconds``; output goes to logs."""
    log_folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + total_seconds
    outcomes = []
    for stage in stages:
        left = end - time.monotonic()
        if stage.tool is not None and find_tool(stage.tool) is None:
            outcome = Outcome(stage.name, "not run", 0.0, f"{stage.tool} is not installed")
        elif left <= 0:
            outcome = Outcome(stage.name, "not run", 0.0, f"the whole budget of {total_seconds:.0f} s was used up")
        else:
            outcome = _run(stage, folder, log_folder / f"{stage.name}.log", min(stage.seconds, left))
        report(outcome)
        outcomes.append(outcome)
    return outcomes


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """0 if every stage has passed, otherwise 1."""
    return int(any(outcome.status != "passed" for outcome in outcomes))


def _run(stage: Stage, folder: Path, log: Path, seconds: float) -> Outcome:
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            list(stage.command),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # so that a compiler or a sanitizer's child ends with it
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Outcome(stage.name, "timed out", time.monotonic() - begin, f"after {seconds:.0f} s; {_tail(log)}")
    spent = time.monotonic() - begin
    if code != 0:
        return Outcome(stage.name, "failed", spent, f"exit status {code}; {_tail(log)}")
    missing = [str(path) for path in stage.produces if not path.exists()]
    if missing:
        return Outcome(stage.name, "failed", spent, f"did not produce {', '.join(missing)}; {_tail(log)}")
    return Outcome(stage.name, "passed", spent)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-REPORTED_LINES:]
    return "\n".join([f"the end of {log.name}:", *lines])
