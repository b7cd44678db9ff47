"""Measure one set of shapes on a GPU: python -m benchmarks.gpu.measure SET --output FOLDER --work FOLDER.

Adds to measurements.csv and skipped.csv after every shape. Every provider is checked against the fp64 reference before
it is timed and again afterwards, and what its graph computed is compared with the same calls outside of a graph.
Within a round all providers take turns, and a ratio is the median over rounds of two times of the same round. Modes:

    dram    a CUDA graph in which every call reads another copy of the weights, a gigabyte of them in all
    cache   a CUDA graph in which all calls read the same weights, which L2 holds where they fit
    launch  as dram without a graph: what the host needs to submit a call counts
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from tqdm import tqdm

from benchmarks.gpu.cholesky import measure_cholesky
from benchmarks.gpu.data import DeviceData
from benchmarks.gpu.device import Device
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.measurements import Measurements, Skipped, Timed
from benchmarks.gpu.providers import GPU_PROVIDERS, GpuProvider, Results
from benchmarks.gpu.shapes import BASELINE, CHOLESKY_SIZES, SETS
from benchmarks.gpu.stage_process import LostDeviceError, add_arguments, run_as_stage
from benchmarks.gpu.turns import take_turns
from incline_fast.bench.problems import Problem
from incline_fast.bench.providers import Run
from incline_fast.bench.timing import largest_error

__all__ = ["measure_problem", "measure_set"]

CALLS = 24
"""Fewest calls in one timed graph, so that starting it does not count."""
RESET = 16
"""In-place providers enlarge x by a fifth per call; after so many calls it begins anew, for one small copy."""
AGAIN = f"{BASELINE} (again)"

Begin = Callable[[str], None]


@dataclass
class _Candidate:
    """A provider that has passed its check."""

    provider: GpuProvider
    run: Run
    batch: Callable[[], Results]
    replay: Callable[[], object]
    captured: list[Results]
    error: float


def measure_problem(
    problem: Problem, device: Device, names: Sequence[str], begin: Begin = lambda part: None
) -> tuple[list[Timed], list[Skipped]]:
    """Check, time and check again.

    Args:
        problem: the shape.
        device: where.
        names: providers.
        begin: is called with a provider's name before it touches the device.

    Raises:
        LostDeviceError: the device cannot be used by this process any more.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # graphs of other shapes would keep their weights
    skipped: list[Skipped] = []
    candidates: dict[str, _Candidate] = {}

    def attempt(name: str, work: Callable[[], None]) -> None:
        """One provider that fails must not cost the others' measurements."""
        begin(name)
        try:
            work()
            device.synchronize()
        except Exception as error:
            candidates.pop(name, None)
            skipped.append(Skipped(str(problem), name, f"{type(error).__name__}: {error}"))
            if not device.alive():
                raise LostDeviceError(f"{name} on {problem}: {error}") from error

    with torch.no_grad():
        begin("inputs")
        data = DeviceData(problem, device.torch_device)
        for name in names:
            provider = GPU_PROVIDERS[name]
            unfit = provider.unfit(problem)
            if unfit:
                skipped.append(Skipped(str(problem), name, unfit))
            else:
                attempt(name, lambda name=name, p=provider: candidates.update({name: _prepare(p, data, device)}))  # type: ignore[misc]
        begin("timing")
        works = {name: candidate.replay for name, candidate in candidates.items()}
        if BASELINE in works:
            works[AGAIN] = works[BASELINE]
        times = take_turns(works, device)
        for name in list(candidates):
            attempt(name, lambda name=name: _check_again(candidates[name], data))  # type: ignore[misc]
    calls = _calls(problem)
    errors = {name: candidate.error for name, candidate in candidates.items()}
    if BASELINE in errors and AGAIN in times:
        errors[AGAIN] = errors[BASELINE]
    per_call = {name: [value / calls for value in times[name]] for name in times if name in errors}
    kinds = {name: candidate.provider.kind for name, candidate in candidates.items()}
    return [Timed(name, kinds.get(name, "rival"), per_call[name], errors[name]) for name in per_call], skipped


def _prepare(provider: GpuProvider, data: DeviceData, device: Device) -> _Candidate:
    run = provider.make(data)
    error = provider.check(data, run(data.x.clone(), 0))
    batch = _batch(run, data)
    captured: list[Results] = []

    def work() -> None:
        captured[:] = [batch()]

    replay = work if data.problem.mode == "launch" else device.capture(work)
    replay()  # so that a fault of the graph is this provider's
    return _Candidate(provider, run, batch, replay, captured, error)


def _check_again(candidate: _Candidate, data: DeviceData) -> None:
    """After the timing: a fresh call against the reference, and the graph's last results against plain calls."""
    last = data.problem.copies - 1
    candidate.error = max(candidate.error, candidate.provider.check(data, candidate.run(data.x.clone(), last)))
    candidate.replay()
    of_graph = tuple(result.clone() for result in candidate.captured[0])
    plain = tuple(result.double() for result in candidate.batch())
    if candidate.provider.kind != "part":  # the vendor may choose other kernels inside a graph: bits may differ
        largest_error(of_graph, plain, data.problem)


def _calls(problem: Problem) -> int:
    return max(CALLS, problem.copies if problem.mode == "dram" else 1)


def _batch(run: Run, data: DeviceData) -> Callable[[], Results]:
    """All calls of one measurement; gives the last one's results."""
    problem, x = data.problem, data.x.clone()

    def batch() -> Results:
        results: Results = ()
        for call in range(_calls(problem)):
            if call % RESET == 0:
                x.copy_(data.x)
            results = run(x, call % problem.copies)
        return results

    return batch


def measure_set(
    name: str, device: Device, table: Measurements, journal: Journal, seconds: float, clock: Callable[[], float]
) -> bool:
    """Measure a set's shapes that are not done yet within ``seconds``; whether all of our own ran everywhere."""
    end = clock() + seconds
    for job in tqdm(_jobs(name), unit="shape"):
        if job in journal.finished:
            continue
        culprits = journal.culprits.get(job, [])
        if job in journal.abandoned:
            table.skip(
                Skipped(job, "all", f"given up after crashes in: {', '.join(part or 'all' for part in culprits)}")
            )
            journal.finish(job)
        elif clock() > end:
            table.skip(Skipped(job, "all", f"the {seconds:.0f} s for this stage were used up"))
        else:
            _measure_job(name, job, culprits, device, table, journal)
    return table.complete


def _jobs(name: str) -> list[str]:
    if name == "cholesky":
        return [f"cholesky {size} {dtype}" for size, dtype in product(CHOLESKY_SIZES, ("float32", "float64"))]
    return [str(problem) for problem in SETS[name].problems]


def _measure_job(
    name: str, job: str, culprits: list[str], device: Device, table: Measurements, journal: Journal
) -> None:
    def begin(part: str) -> None:
        journal.begin(job, part)

    blamed = [Skipped(job, part, "crashed in an earlier attempt") for part in culprits]
    try:
        if name == "cholesky":
            _, size, dtype = job.split()
            timed, skipped = measure_cholesky(int(size), getattr(torch, dtype), device, culprits, begin)
            table.add_cholesky(int(size), dtype, timed)
        else:
            problem = next(problem for problem in SETS[name].problems if str(problem) == job)
            names = [provider for provider in SETS[name].providers if provider not in culprits]
            timed, skipped = measure_problem(problem, device, names, begin)
            table.add(problem, timed)
    except LostDeviceError:
        raise
    except Exception as error:  # out of memory on one shape, say
        skipped = [Skipped(job, "all", f"{type(error).__name__}: {error}")]
        if not device.alive():
            raise LostDeviceError(f"{job}: {error}") from error
    table.log_clocks(job, device)
    for reason in (*skipped, *blamed):
        table.skip(reason)
    journal.finish(job)


def show_providers(arguments: argparse.Namespace) -> None:
    """Which providers there are, and why others are not; needs no device."""
    for name in SETS[arguments.set].providers if arguments.set in SETS else ():
        reason = GPU_PROVIDERS[name].unfit(SETS[arguments.set].problems[0])
        print(f"{name}: {reason or 'ready'}", flush=True)


def main(arguments: argparse.Namespace, device: Device) -> int:
    """Returns the exit status: 1 when one of our own backends is missing somewhere."""
    table = Measurements(arguments.output, arguments.set, device)
    journal = Journal(arguments.work / f"{arguments.set}.journal")
    seconds = arguments.seconds - arguments.reserve
    complete = measure_set(arguments.set, device, table, journal, seconds, time.monotonic)
    return int(not complete)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*SETS, "cholesky"])
    parser.add_argument("--seconds", type=float, default=60.0, help="after these no further shape is begun")
    parser.add_argument("--reserve", type=float, default=0.0, help="of --seconds, what the last shape may need")
    add_arguments(parser)
    raise SystemExit(run_as_stage(parser.parse_args(), main, show_providers))
