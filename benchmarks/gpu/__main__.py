"""``python -m benchmarks.gpu --output FOLDER``: build, check and measure on this machine's GPU, within 430 seconds.

FOLDER gets at most eight files, small enough to be carried home: tables (.csv) that grow line by line during the run,
and results.tar.gz with the tables, the logs and the report, packed anew every 20 seconds. Whoever stops the run at any
moment has all that was found until then. Nothing is fetched from a network. The exit status is 0 if every stage has
passed. What the stages are: benchmarks/gpu/README.md.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from types import FrameType

from benchmarks.gpu.archive import Packer
from benchmarks.gpu.plan import CUDA_DEVICE, ROOT, Run, stages
from benchmarks.gpu.schedule import exit_status, run_stages
from benchmarks.gpu.stages import Outcome
from benchmarks.gpu.tables import append

TOTAL_SECONDS = 425.0
"""Of all stages; with the last packing it stays under 430."""
PACK_SECONDS = 20.0
TABLES = ("stages", "environment", "checks", "measurements", "skipped", "clocks")
STAGE_COLUMNS = ("stage", "status", "seconds", "limit", "began", "detail")


def main(run: Run, seconds: float, only: Collection[str] = ()) -> int:
    """Run all stages, or ``only`` those named, and return the exit status."""
    begin = time.monotonic()
    logs = run.work / "logs"
    _begin_anew(run)
    packer = Packer(run.output / "results.tar.gz", (run.output, logs, run.work / "report"), PACK_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)

    def report(outcome: Outcome) -> None:
        began = time.monotonic() - begin - outcome.seconds
        row = {"stage": outcome.stage, "status": outcome.status, "seconds": round(outcome.seconds, 1)}
        row |= {"limit": round(outcome.limit, 1), "began": round(began, 1), "detail": outcome.detail}
        append(run.output / "stages.csv", STAGE_COLUMNS, [row])
        print(f"{began:6.0f} s  {outcome.status:>9}  {outcome.stage}  {outcome.seconds:.0f} s", flush=True)
        if outcome.detail:
            print(outcome.detail, flush=True)

    try:
        outcomes = run_stages(
            [stage for stage in stages(run) if not only or stage.name in only],
            ROOT,
            logs,
            seconds,
            shutil.which,
            report,
            packer.tick,
            without_device=run.dry,
        )
    finally:
        packer.pack()
    print(f"{time.monotonic() - begin:.0f} s in all; {run.output}", flush=True)
    return exit_status(outcomes, run.dry)


def _begin_anew(run: Run) -> None:
    """Remove what an earlier run has left: its journals would let this one skip its work."""
    for name in ("logs", "site", "debug", "report"):
        shutil.rmtree(run.work / name, ignore_errors=True)
    for folder in (run.output, run.work / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    for path in (*run.work.glob("*.journal"), *(run.output / f"{name}.csv" for name in TABLES)):
        path.unlink(missing_ok=True)


def _stop(number: int, frame: FrameType | None) -> None:
    """End through the ``finally`` blocks, which kill the stage and pack."""
    raise SystemExit(128 + number)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("INCLINE_FAST_GPU_OUTPUT", ROOT / "build" / "gpu")
    parser.add_argument(
        "--output", type=Path, default=default, help="what comes back (INCLINE_FAST_GPU_OUTPUT, or build/gpu)"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-work", help="needed during the run alone")
    parser.add_argument("--pack", type=Path, help="folder that make gpu-pack has prepared")
    parser.add_argument("--seconds", type=float, help=f"for all stages together; {TOTAL_SECONDS:g}, no limit if dry")
    parser.add_argument("--dry-run", action="store_true", help="go on without a GPU, as far as each stage comes")
    parser.add_argument("--device", default=CUDA_DEVICE, help="class of the device, as module:name")
    parser.add_argument("--only", action="append", default=[], choices=_names(), help="a stage; may be repeated")
    return parser.parse_args()


def _names() -> list[str]:
    return [stage.name for stage in stages(Run(Path(), Path(), None))]


if __name__ == "__main__":
    given = _arguments()
    pack = None if given.pack is None else given.pack.resolve()
    run = Run(given.output.resolve(), given.work.resolve(), pack, given.dry_run, given.device)
    seconds = given.seconds or (math.inf if given.dry_run else TOTAL_SECONDS)
    sys.exit(main(run, seconds, given.only))
