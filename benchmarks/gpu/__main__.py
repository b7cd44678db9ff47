"""``python -m benchmarks.gpu``: build, check and measure on this machine's GPU; under ten minutes, no network.

Writes gpu.md, gpu.csv, gpu.png and a log per stage. The exit status is 0 if every stage has passed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.report import write_report
from benchmarks.gpu.stages import Outcome, Stage, exit_status, run_stages

ROOT = Path(__file__).resolve().parents[2]
TOTAL_SECONDS = 590
"""The budgets of all stages together exceed it: one that needs less leaves its time to the others."""


def stages(output: Path) -> list[Stage]:
    """What is run, in this order: a library that was not built is the first thing to know."""
    python, package = sys.executable, ROOT / "incline_fast"
    libraries = (package / "_C.abi3.so", package / "_cuda.abi3.so")
    sanitizer = [
        Stage(
            f"sanitizer-{tool}",
            [
                "compute-sanitizer",
                f"--tool={tool}",
                "--error-exitcode=9",
                python,
                "-m",
                "benchmarks.gpu.checks",
                "--small",
            ],
            45,
            tool="compute-sanitizer",
        )
        for tool in ("memcheck", "racecheck", "synccheck")
    ]
    return [
        Stage("build", [python, str(ROOT / "setup.py"), "-q", "build_ext", "--inplace"], 150, libraries),
        Stage("checks", [python, "-m", "benchmarks.gpu.checks"], 120),
        Stage(
            "measure",
            [python, "-m", "benchmarks.gpu.measure", str(output), "--seconds", "230"],
            280,
            (output / "gpu.csv",),
        ),
        *sanitizer,
    ]


def main(output: Path) -> int:
    """Run everything, write the page, and return the exit status."""
    console, output = Console(), output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for stale in ("gpu.csv", "skipped.csv", "gpu.png"):
        (output / stale).unlink(missing_ok=True)

    def report(outcome: Outcome) -> None:
        console.print(f"{outcome.status:>10}  {outcome.stage}  {outcome.seconds:.0f} s", highlight=False)
        if outcome.detail:
            console.print(outcome.detail, highlight=False, markup=False)

    outcomes = run_stages(stages(output), ROOT, output / "logs", TOTAL_SECONDS, shutil.which, report)
    write_report(output, outcomes)
    console.print(f"[bold]{output / 'gpu.md'}[/bold]")
    return exit_status(outcomes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu", help="folder of the results")
    raise SystemExit(main(parser.parse_args().output))
