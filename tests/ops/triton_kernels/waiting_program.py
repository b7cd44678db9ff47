"""A program that waits for items that nobody finishes: run as a process, with INCLINE_FAST_SPIN_LIMIT set."""

from __future__ import annotations

import torch
import triton

from emulator.errors import EmulationError
from emulator.triton_driver import emulated
from incline_fast.ops.triton_kernels._decode import _wait


@triton.jit
def waits(counter, items):
    """Return when the counter has come to ``items``."""
    _wait(counter, items)


def main() -> None:
    """Print what became of a wait that ends, and of one that does not."""
    counter = torch.tensor([3], dtype=torch.int32)
    with emulated(90):
        waits[(1,)](counter, 3)
        print("went on")
        try:
            waits[(1,)](counter, 4)
        except EmulationError as error:
            print("trapped" if "trap" in str(error) else error)


if __name__ == "__main__":
    main()
