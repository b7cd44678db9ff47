"""The stages of a run, in their order, with the time that each may take. Standard library alone."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.stages import Stage

__all__ = ["Run", "stages"]

ROOT = Path(__file__).resolve().parents[2]
SILENCE = 45.0
"""Seconds without progress after which a stage is taken to hang: more than any single compilation needs."""
DRY_SECONDS = 240.0
"""Limit of every stage in a dry run."""
SPIN_LIMIT = "4000000"
"""Turns of a waiting loop after which kernels of the debug build trap: some seconds."""
CUDA_DEVICE = "benchmarks.gpu.device:Cuda"
TORCH_KERNELS = ("at6native", "cublas", "gemm", "nvjet", "cutlass", "cub")
"""Parts of names of kernels that are not ours and are left out; a list of our own could miss some without notice."""

PROFILED_KERNELS = "regex:dense_kernel|low_rank_kernel|ring_kernel|edit_and_normalise"
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__cycles_elapsed.max",
    "launch__registers_per_thread",
)
"""Time, bytes, occupancy and issue rate: few enough that a launch is replayed once or twice."""


@dataclass(frozen=True)
class Run:
    """What the command line says.

    Attributes:
        output: folder of the tables and the archive, which come back.
        work: folder of logs, journals and whatever else is needed during the run alone.
        pack: what ``make gpu-pack`` has prepared, if anything.
        dry: every stage goes as far as it can without a GPU, and nothing is compiled.
        device: class of the device, as module:name; the tests have one that needs no GPU.
    """

    output: Path
    work: Path
    pack: Path | None
    dry: bool = False
    device: str = CUDA_DEVICE


def stages(run: Run) -> list[Stage]:
    """The stages. Their limits exceed what a run may take: a stage that needs less leaves its time to the others."""
    environment = _environment(run)

    def module(name: str, *arguments: str) -> list[str]:
        folders = [f"--output={run.output}", f"--work={run.work}"]
        return [sys.executable, "-P", "-m", f"benchmarks.gpu.{name}", *arguments, *folders]

    def with_device(name: str, *arguments: str) -> list[str]:
        return module(name, *arguments, f"--device={run.device}")

    def measure(name: str, seconds: float) -> Stage:
        # The stage stops by itself, so that what was left out is named.
        command = with_device("measure", name, "--seconds={seconds}", "--reserve=6")
        journal = run.work / f"{name}.journal"
        return Stage(name, command, seconds, 12, SILENCE, journal, environment=environment)

    def checks(name: str, seconds: float, *arguments: str) -> Stage:
        command = with_device("checks", f"--stage={name}", *arguments)
        return Stage(name, command, seconds, 10, SILENCE, run.work / f"{name}.journal", environment=environment)

    debug = {"PYTHONPATH": f"{run.work / 'debug'}{os.pathsep}{environment['PYTHONPATH']}"}
    debug |= {"INCLINE_FAST_SPIN_LIMIT": SPIN_LIMIT, "TRITON_CACHE_DIR": str(run.work / "triton-debug")}
    plan = [
        _libraries(run, module("libraries"), environment),
        Stage("environment", with_device("environment"), 30, 5, environment=environment),
        _with(checks("small-checks", 40, "--small"), debug),
        measure("dense", 75),
        measure("low-rank", 75),
        measure("epilogue", 35),
        measure("cholesky", 25),
        measure("compiled", 50),
        measure("triton", 60),
        checks("checks", 60),
        _memcheck(run, checks("memcheck", 40, "--small", "--backend=cuda")),
        _profile(with_device("profile"), run, environment),
        measure("others", 60),
        Stage("report", module("report"), 20, 4, environment=environment),
    ]
    # A dry run shows that every stage starts, on a machine that may be slow and busy.
    return [replace(stage, seconds=DRY_SECONDS, silence=None) for stage in plan] if run.dry else plan


def _libraries(run: Run, command: list[str], environment: dict[str, str]) -> Stage:
    if run.pack is not None:
        command = [*command, f"--pack={run.pack}"]
    if run.dry:
        command = [*command, "--no-build"]
    return Stage("libraries", command, 150, environment=environment)


def _memcheck(run: Run, checks: Stage) -> Stage:
    sanitizer = [
        "compute-sanitizer",
        "--tool=memcheck",
        "--error-exitcode=9",
        "--target-processes=application-only",
        "--kernel-name-exclude=" + ",".join(f"kns={part}" for part in TORCH_KERNELS),
    ]
    # Where torch reuses freed memory, what lies beyond a tensor belongs to the same allocation.
    stage = _with(checks, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    return _under("compute-sanitizer", [] if run.dry else sanitizer, stage, run)


def _profile(command: list[str], run: Run, environment: dict[str, str]) -> Stage:
    profiler = [
        "ncu",
        "--clock-control=none",
        "--target-processes=application-only",
        f"--kernel-name={PROFILED_KERNELS}",
        f"--metrics={','.join(METRICS)}",
        "--csv",
        "--page=raw",
        f"--log-file={run.work / 'logs' / 'ncu.csv'}",
    ]
    return _under("ncu", [] if run.dry else profiler, Stage("profile", command, 40, 10, environment=environment), run)


def _under(tool: str, prefix: list[str], stage: Stage, run: Run) -> Stage:
    """The stage under a tool; in a dry run without it, so that the stage itself is tried where the tool is missing."""
    return replace(stage, command=[*prefix, *stage.command], tool=None if run.dry else tool)


def _with(stage: Stage, variables: dict[str, str]) -> Stage:
    return replace(stage, environment={**stage.environment, **variables})


def _environment(run: Run) -> dict[str, str]:
    paths = [str(ROOT), str(run.work / "site"), os.environ.get("PYTHONPATH", "")]
    joined = os.pathsep.join(path for path in paths if path)
    return {"PYTHONPATH": joined, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
