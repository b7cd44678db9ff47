"""A device that the GPU benchmarks take for a GPU: CPU tensors, CPU backends, and a timer that makes times up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from op_cases import BACKENDS

__all__ = ["MadeUpDevice"]


class MadeUpDevice:
    """Runs on the CPU at once; each piece of work takes as many microseconds as there were pieces before it."""

    torch_device = torch.device("cpu")
    name = "NVIDIA H100 (made up)"
    backends = tuple(BACKENDS)

    def __init__(self) -> None:
        self.clock = 100.0
        self.lost = False

    def synchronize(self) -> None:
        pass

    def alive(self) -> bool:
        return not self.lost

    def cuda_stream(self) -> Any:
        return nullcontext()

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        work()
        return work

    def microseconds(self, work: Callable[[], object]) -> float:
        work()
        self.clock += 1
        return self.clock

    def clocks(self) -> dict[str, str]:
        return {"clocks.sm": "1980"}
