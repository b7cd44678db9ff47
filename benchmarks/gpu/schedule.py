"""All stages within one budget of time: each gets its limit or what is left, and is begun again where that helps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.stages import Outcome, Stage, run_stage

__all__ = ["RESTARTS", "exit_status", "run_stages"]

RESTARTS = 5
"""How often one stage is begun again behind work that crashed it."""


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    log_folder: Path,
    total_seconds: float,
    find_tool: Callable[[str], str | None],
    report: Callable[[Outcome], None],
    tick: Callable[[], None] = lambda: None,
    without_device: bool = False,
) -> list[Outcome]:
    """Run the stages in their order; what they print goes to ``log_folder``.

    Args:
        stages: what is run.
        folder: where it runs, unless a stage says otherwise.
        log_folder: one log per stage.
        total_seconds: for all stages together.
        find_tool: path of a program, None if it is not installed.
        report: is called with every outcome as soon as there is one; a stage has one for every attempt.
        tick: is called ten times a second while a stage runs.
        without_device: go on when a stage has found no GPU, so that each shows that it gets as far as the device.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + total_seconds
    outcomes: list[Outcome] = []
    no_device = ""

    def add(outcome: Outcome) -> Outcome:
        report(outcome)
        outcomes.append(outcome)
        return outcome

    for stage in stages:
        reason = no_device or _missing_tool(stage, find_tool)
        if reason:
            add(Outcome(stage.name, "not run", detail=reason))
            continue
        for _ in range(1 + RESTARTS):
            left = end - time.monotonic()
            if left < stage.least:
                used_up = f"{max(left, 0):.0f} s of {total_seconds:.0f} s were left, and it needs {stage.least:.0f} s"
                add(Outcome(stage.name, "not run", detail=used_up))
                break
            log = log_folder / f"{stage.name}.log"
            outcome = add(run_stage(stage, folder, log, min(stage.seconds, left), tick))
            if stage.journal is None or not outcome.resumable:
                if outcome.status == "no GPU" and not without_device:
                    no_device = f"the stage {stage.name} has found no GPU"
                break
    return outcomes


def exit_status(outcomes: Sequence[Outcome], without_device: bool = False) -> int:
    """0 if every stage has passed, or in a run without a device has come as far as that; otherwise 1."""
    good = ("passed", "no GPU") if without_device else ("passed",)
    return int(any(outcome.status not in good for outcome in outcomes))


def _missing_tool(stage: Stage, find_tool: Callable[[str], str | None]) -> str:
    missing = stage.tool is not None and find_tool(stage.tool) is None
    return f"{stage.tool} is not installed" if missing else ""
