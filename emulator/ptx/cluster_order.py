"""What the barrier of a cluster orders.

Blocks of a cluster tell each other nothing but at that barrier, to which all their threads come: what a thread knows of
the other blocks follows from the last phase that it has waited for, or of which it has heard from a thread that has. So
it takes one table for each phase, of what those who arrived knew of their own blocks. Two phases are enough: one ends
only when all have waited for the one before.

In global memory an arrival counts once all threads of its block have arrived, and a wait for the whole block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from emulator.ptx.parser import Kernel
from emulator.ptx.phase_order import CLUSTER, PhaseOrder
from emulator.ptx.scalars import Array

if TYPE_CHECKING:
    from emulator.ptx.machine import Machine
    from emulator.ptx.ordering import Knowledge, Ordering


def uses_clusters(kernel: Kernel) -> bool:
    """Whether it waits for other blocks of its cluster, or can touch their shared memory."""
    return any(
        instruction.name == "mapa"
        or instruction.parts[:2] == ("barrier", "cluster")
        or (instruction.name in ("ld", "st") and "shared_cluster" in instruction.parts)
        for instruction in kernel.instructions
    )


class ClusterOrder:
    """Who knows what after the phases of the clusters of a machine."""

    def __init__(self, machine: Machine, ordering: Ordering, phases: PhaseOrder) -> None:
        self.machine, self.ordering, self.phases = machine, ordering, phases
        columns = phases.known.shape[1]
        self.arrived = np.zeros((machine.blocks, columns), np.int32)
        self.ended = np.zeros((2, machine.blocks, columns), np.int32)
        self.released: dict[int, Knowledge] = {}  # of global memory, by the block that has arrived
        self.acquired: dict[int, Knowledge] = {}  # likewise, by the cluster whose phase has ended
        phases.others = self

    def of_other_blocks(self, threads: Array, blocks: Array, columns: Any = slice(None)) -> Array:
        """What each thread knows of a block other than its own: a row, or one column of it."""
        return self.ended[self.phases.known[threads, CLUSTER] % 2, blocks, columns]

    def arrive(self, threads: Array) -> None:
        self.phases.tick()
        block = self.machine.block[threads]
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        joined = np.maximum.reduceat(self.phases.clocks(threads), starts, axis=0)
        self.arrived[block[starts]] = np.maximum(self.arrived[block[starts]], joined)

    def release(self, block: int) -> None:
        """All threads of the block have arrived."""
        self.released[block] = self.ordering.release(block + self.machine.first_block)

    def is_released(self, threads: Array, time: int) -> Array:
        """Whether what the threads did at a time comes before an arrival in the phase that is about to end."""
        return self.arrived[self.machine.block[threads], threads % self.machine.threads] > time

    def end_phases(self, clusters: Array, phases: Array) -> None:
        """The barriers of these clusters have had so many phases, with this one. What threads that have returned did in
        the memory of their own block is over."""
        machine, threads = self.machine, self.machine.threads
        blocks = (clusters[:, None] * machine.cluster + np.arange(machine.cluster)).ravel()
        gone = np.flatnonzero(~machine.alive & np.isin(machine.block, blocks))
        self.arrived[gone // threads, gone % threads] = self.phases.tick()
        phase = np.repeat(phases[clusters], machine.cluster)
        self.arrived[blocks, CLUSTER] = phase
        self.ended[phase % 2, blocks] = self.arrived[blocks]
        for cluster in clusters:
            self._end_phase(int(cluster))

    def _end_phase(self, cluster: int) -> None:
        """In global memory."""
        first, after = cluster * self.machine.cluster, (cluster + 1) * self.machine.cluster
        parts = [self.released.pop(block) for block in range(first, after) if block in self.released]
        self.acquired[cluster] = parts[0]
        for part in parts[1:]:
            self.acquired[cluster] = self.acquired[cluster].joined(part)

    def wait(self, threads: Array, phases: Array) -> None:
        """Threads that have waited for these phases."""
        block = self.machine.block[threads]
        self.phases.known[threads] = np.maximum(self.phases.known[threads], self.ended[phases % 2, block])
        for one in np.unique(block):
            self.ordering.acquire(int(one) + self.machine.first_block, self.acquired[int(one) // self.machine.cluster])
