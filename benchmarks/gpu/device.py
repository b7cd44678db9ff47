"""The device of the checks and measurements: graphs, CUDA streams, a timer, clocks. ``Cuda`` is the real one."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

__all__ = ["CLOCKS", "Cuda", "Device", "NoDeviceError", "Replay", "open_device"]

Replay = Callable[[], object]
Work = Callable[[], object]

SLEEP_CYCLES = 400_000
"""The device spins so long (a fifth of a millisecond) while the host submits a graph with up to a thousand kernels."""
CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_event_reasons.active")
"""Columns of the table of clocks, as nvidia-smi names them: MHz, MHz, degrees, watts, a bit mask."""


class NoDeviceError(RuntimeError):
    """There is no GPU that torch can use."""


class Device(Protocol):
    """A device that runs kernels; the tests have one that is emulated."""

    torch_device: torch.device
    name: str
    backends: tuple[str, ...]

    def synchronize(self) -> None:
        """Wait for everything."""

    def alive(self) -> bool:
        """Whether work can still be submitted; after some faults a process cannot use its device any more."""

    def cuda_stream(self) -> AbstractContextManager[Any]:
        """A new CUDA stream, current inside the context."""

    def capture(self, work: Work) -> Replay:
        """Run ``work`` until it is warm, capture it once, and return what replays it."""

    def microseconds(self, work: Work) -> float:
        """Time of one ``work`` on the device, in which the host's part is not counted where it is hidden."""

    def clocks(self) -> dict[str, str]:
        """The values of ``CLOCKS``, as far as they can be asked for."""


class Cuda:
    """The current CUDA device."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise NoDeviceError("torch.cuda.is_available() is False: no GPU, no driver, or a CPU build of torch")
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name()
        self.backends = ("cuda", "triton")

    def synchronize(self) -> None:
        """Wait for everything."""
        torch.cuda.synchronize()

    def alive(self) -> bool:
        """Whether a synchronisation succeeds: errors of kernels stay with the context once they have happened."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def cuda_stream(self) -> AbstractContextManager[Any]:
        """A new CUDA stream, which waits for the work that the current one has been given."""
        cuda_stream = torch.cuda.Stream()
        cuda_stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(cuda_stream)

    def capture(self, work: Work) -> Replay:
        """A CUDA graph of ``work``, warmed up on a side stream first, as torch asks for."""
        with self.cuda_stream():
            for _ in range(3):
                work()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def microseconds(self, work: Work) -> float:
        """Between two events; a launch before them keeps the device busy while the host submits ``work``."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP_CYCLES)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3

    def clocks(self) -> dict[str, str]:
        """Asked of nvidia-smi, which takes a tenth of a second."""
        query = ["nvidia-smi", f"--id={self.torch_device.index}", f"--query-gpu={','.join(CLOCKS)}"]
        try:
            answer = subprocess.run(
                [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return {}
        return dict(zip(CLOCKS, (value.strip() for value in answer.stdout.split(",")), strict=False))


def open_device(kind: str) -> Device:
    """The device of a class given as ``module:name``."""
    module, _, name = kind.partition(":")
    device: Device = getattr(importlib.import_module(module), name)()
    return device
