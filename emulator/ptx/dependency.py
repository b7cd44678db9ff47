"""Programmatic dependent launches: until griddepcontrol.wait the launch before may still run.

Of such a launch everything in global memory but the buffers that are constant for both launches is the previous one's
until the thread has waited, or has met at a barrier of its block with a thread that has, or has waited for a phase at
which such a thread has arrived. Touching it earlier is an error. So is a block that never waits: the end of its launch
would tell the next one nothing of the launches before.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, instruction
from emulator.ptx.memory import Access
from emulator.ptx.parser import Instruction
from emulator.ptx.scalars import Array


class Dependency:
    """Which threads of a machine know that the launch before has ended; ``constants`` are names of buffers."""

    def __init__(self, constants: Collection[str], first_block: int, blocks: int, threads: int) -> None:
        self.constants, self.first_block = constants, first_block
        self.waited = np.zeros((blocks, threads), np.bool_)

    def wait(self, lanes: Lanes) -> None:
        self.waited.reshape(-1)[lanes.index] = True

    def block_barrier(self, threads: Array) -> None:
        """Threads that leave a barrier of their block together."""
        block, waited = threads // self.waited.shape[1], self.waited.reshape(-1)
        waited[threads] |= np.isin(block, block[waited[threads]])

    def phase_barrier(self, threads: Array, told: Array) -> None:
        """Threads that have waited for a phase at which others may have told that they had waited."""
        self.waited.reshape(-1)[threads] |= told

    def knows(self, threads: Array) -> Array:
        return self.waited.reshape(-1)[threads]

    def check(self, access: Access, current: Instruction) -> None:
        """Refuse an access of global memory that comes too early."""
        assert access.buffer is not None
        if access.buffer.name in self.constants:
            return
        early = np.flatnonzero(~self.waited.reshape(-1)[access.lanes.index])
        if len(early):
            block, thread = divmod(int(access.lanes.numbers[early[0]]), self.waited.shape[1])
            raise PTXError(
                f"{access.buffer.name} is touched before griddepcontrol.wait, while the previous launch may still use "
                f"it: block {block + self.first_block} thread {thread}",
                current,
            )

    def check_end(self, last: Instruction) -> None:
        """Refuse that a block has ended without a wait."""
        without = np.flatnonzero(~self.waited.any(axis=1))
        if len(without):
            raise PTXError(
                f"block {without[0] + self.first_block} ends without griddepcontrol.wait: a launch that waits for the "
                "end of this one could overlap with those before it",
                last,
            )


@instruction("griddepcontrol")
def _dependency(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """launch_dependents changes nothing: what the next launch may touch is judged in its own turn."""
    if "wait" in current.parts and machine.memory.dependency is not None:
        machine.memory.dependency.wait(lanes)
