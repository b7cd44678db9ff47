"""A device for stages that run as processes of their own: naming this module makes every problem tiny.

``python -m benchmarks.gpu.measure dense --device gpu_device_in_stage:Faulty ...``
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_device import MadeUpDevice

from benchmarks.gpu import measure, shapes
from benchmarks.gpu.shapes import BASELINE, ShapeSet
from incline_fast.bench import problems
from incline_fast.bench.problems import Problem

problems.DRAM_BYTES = 1 << 14
measure.CALLS = 3
torch.compile = lambda function, **_: function  # what Inductor would compile is what runs
shapes.SETS["dense"] = ShapeSet(tuple(Problem("rms", m, 32, None) for m in (1, 2, 3)), ("eager", BASELINE, "hook"))


class Faulty(MadeUpDevice):
    """In the second shape it loses its context at one provider, as after an illegal access of a kernel; in the next
    process the third provider ends the process; after that all is well. FAULTS names a folder that remembers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._happened = Path(os.environ["FAULTS"])
        self._happened.mkdir(exist_ok=True)
        self._attempt = len(list(self._happened.iterdir()))
        self._captures = 0

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        self._captures += 1
        if (self._attempt, self._captures) == (0, 5):  # the first shape has three
            (self._happened / "lost").touch()
            self.lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if (self._attempt, self._captures) == (1, 2):  # of the second shape the first one and the third one are left
            (self._happened / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().capture(work)
