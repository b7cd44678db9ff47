"""What a run's numbers depend on: python -m benchmarks.gpu.environment --output FOLDER --work FOLDER.

Adds names and values to environment.csv: versions, the device, what ``explain()`` says, and the device's ceilings,
measured on random data (zeros take less power, and run faster).
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.stage_process import add_arguments, run_as_stage
from benchmarks.gpu.tables import append
from incline_fast import explain
from incline_fast.bench.machine import commit, cpu_name

__all__ = ["COLUMNS", "ceilings"]

COLUMNS = ("stage", "name", "value")
PACKAGES = ("triton", "numpy", "transformers", "liger-kernel", "quack-kernels", "flashinfer-python")
TOOLS = (("nvcc", "--version"), ("compute-sanitizer", "--version"), ("ncu", "--version"), ("nvidia-smi", "-L"))
COPIED_BYTES = 1 << 32
SIDE = 8192
REPEATS = 7


def versions() -> Iterator[tuple[str, str]]:
    """Versions of what is installed; needs no device."""
    yield "commit", commit()
    yield "python", platform.python_version()
    yield "processor", cpu_name()
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda}"
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"
    for tool, option in TOOLS:
        yield tool, _answer([tool, option])


def choices(device: torch.device) -> Iterator[tuple[str, str]]:
    """Which implementation runs which call."""
    for backend, tokens in (("auto", 1), ("auto", 64), ("auto", 2048), ("cuda", 1), ("triton", 1)):
        try:
            answer = explain(backend, device=device, num_tokens=tokens)
        except ValueError as error:
            answer = f"ValueError: {error}"
        yield f"explain({backend}, num_tokens={tokens})", answer


def properties() -> Iterator[tuple[str, str]]:
    """The device as CUDA describes it."""
    of = torch.cuda.get_device_properties(torch.cuda.current_device())
    yield "capability", f"{of.major}.{of.minor}"
    yield "multiprocessors", str(of.multi_processor_count)
    yield "memory", f"{of.total_memory / 2**30:.1f} GiB"
    yield "L2", f"{of.L2_cache_size / 2**20:.0f} MiB"


def ceilings(device: Device, copied_bytes: int = COPIED_BYTES, side: int = SIDE) -> Iterator[tuple[str, str]]:
    """The best that the device does on random data: a copy, a sum, and a square matrix product in each dtype."""

    def best(work: Callable[[], object]) -> float:
        work()
        return min(device.microseconds(work) for _ in range(REPEATS))

    source = torch.randint(-(2**31), 2**31 - 1, (copied_bytes // 4,), dtype=torch.int32, device=device.torch_device)
    target = torch.empty_like(source)
    copied, summed = best(lambda: target.copy_(source)), best(lambda: source.sum(dtype=torch.int32))
    yield "copy, GB/s read and written", f"{2 * source.nbytes / copied / 1e3:.0f}"
    yield "sum, GB/s read", f"{source.nbytes / summed / 1e3:.0f}"
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = torch.randn(2, side, side, device=device.torch_device).to(dtype)
        yield f"product in {dtype}, TFLOP/s", f"{2 * side**3 / best(lambda a=a, b=b: a @ b) / 1e6:.1f}"  # type: ignore[misc]


def _answer(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return " / ".join((answer.stdout or answer.stderr).strip().splitlines()[-3:])


def _record(arguments: argparse.Namespace, facts: Iterator[tuple[str, str]]) -> None:
    for name, value in facts:
        print(f"{name}: {value}", flush=True)
        append(arguments.output / "environment.csv", COLUMNS, [{"stage": "environment", "name": name, "value": value}])


def prepare(arguments: argparse.Namespace) -> None:
    """Record what is known without a device."""
    _record(arguments, versions())


def main(arguments: argparse.Namespace, device: Device) -> int:
    """Returns the exit status."""
    _record(arguments, iter([("device", device.name)]))
    if device.torch_device.type == "cuda":
        _record(arguments, properties())
    _record(arguments, choices(device.torch_device))
    _record(arguments, ceilings(device))
    _record(arguments, iter([(f"after the ceilings, {name}", value) for name, value in device.clocks().items()]))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    raise SystemExit(run_as_stage(parser.parse_args(), main, prepare))
