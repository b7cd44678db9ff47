"""What the checks and measurements need of a device: graphs, streams, a timer. ``Cuda`` is the real one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

__all__ = ["Cuda", "Device", "Replay"]

Replay = Callable[[], object]
Work = Callable[[], object]


class Device(Protocol):
    """A device that runs kernels; the tests have one that is emulated."""

    torch_device: torch.device
    name: str
    backends: tuple[str, ...]

    def synchronize(self) -> None:
        """Wait for everything."""

    def stream(self) -> AbstractContextManager[Any]:
        """A new stream, current inside the context."""

    def capture(self, work: Work) -> Replay:
        """Run ``work`` until it is warm, capture it once, and return what replays it."""

    def microseconds(self, work: Work) -> float:
        """Time of one ``work`` on the device, in which the host's part is not counted where it is hidden."""


class Cuda:
    """The current CUDA device."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("torch.cuda.is_available() is False: no GPU, no driver, or a CPU build of torch")
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name()
        self.backends = ("cuda", "triton")

    def synchronize(self) -> None:
        """Wait for everything."""
        torch.cuda.synchronize()

    def stream(self) -> AbstractContextManager[Any]:
        """A new stream that begins after what the current one has been given."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(stream)

    def capture(self, work: Work) -> Replay:
        """A CUDA graph of ``work``, warmed up on a side stream first, as torch asks for."""
        with self.stream():
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
        torch.cuda._sleep(20_000)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3
