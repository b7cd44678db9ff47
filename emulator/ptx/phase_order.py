"""What phase barriers order in shared memory, with a clock for every thread.

Time counts accesses and arrivals. Every thread has, for each thread of its block, the time before which it knows that
one's accesses; an arrival adds what the thread knows to the phase, and a wait takes over what is known to the phases
that have ended. A barrier counts as one more thread, whose accesses are the copies that arrive at it. Block and warp
barriers exchange what is known as well. What a thread knows of the other blocks of its cluster is in cluster_order.py.
Of each place the last writer is remembered, and for each warp the last access that read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from emulator.ptx.scalars import Array

if TYPE_CHECKING:
    from emulator.ptx.cluster_order import ClusterOrder
    from emulator.ptx.machine import Machine

BARRIERS = 64  # of one block, at most
CLUSTER = -1  # the column that has no time but the number of phases that a cluster's barrier has had
FOREVER = np.iinfo(np.int32).max


class PhaseOrder:
    """Who knows what of the shared memory of a machine's blocks; barriers are numbered BARRIERS for each block."""

    others: ClusterOrder | None = None  # where there can be accesses of other blocks

    def __init__(self, machine: Machine, places: int) -> None:
        self.threads = machine.threads
        self.places = places // machine.blocks  # of one block
        self.warps = -(-machine.threads // 32)
        self.now = 1
        columns = 32 * self.warps + BARRIERS + 1
        self.known = np.zeros((machine.count, columns), np.int32)
        self.known[:, self.threads : 32 * self.warps] = FOREVER  # lanes that do not exist
        self._know_oneself(np.arange(machine.count))
        self.arrived, self.ended = (np.zeros((machine.blocks * BARRIERS, columns), np.int32) for _ in range(2))
        self.write_time = np.zeros(places, np.int32)
        self.copied_for = np.full(places, -1, np.int16)  # the column of the barrier at which the last copy arrives
        self.read_time = np.zeros((self.warps, places), np.int32)
        self.read_by = np.zeros((self.warps, places), np.uint32)  # a bit for each lane

    def _know_oneself(self, numbers: Array) -> None:
        self.known[numbers, numbers % self.threads] = FOREVER

    # ---- what orders -------------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """A time after all accesses so far."""
        self.now += 1
        return self.now

    def clocks(self, numbers: Array) -> Array:
        """What threads know when they tell it, their own accesses so far among it."""
        rows = self.known[numbers]
        rows[np.arange(len(numbers)), numbers % self.threads] = self.now
        return rows

    def meet(self, numbers: Array, group: Array) -> None:
        """Threads of one group tell each other what they know; both arrays are sorted."""
        self.tick()
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        joined = np.maximum.reduceat(self.clocks(numbers), starts, axis=0)
        self.known[numbers] = np.repeat(joined, np.diff(starts, append=len(numbers)), axis=0)
        self._know_oneself(numbers)

    def arrive(self, barrier: int, numbers: Array) -> None:
        """After a tick."""
        np.maximum(self.arrived[barrier], self.clocks(numbers).max(0), out=self.arrived[barrier])

    def end_phase(self, barrier: int) -> None:
        """All copies so far have arrived at the barrier."""
        self.arrived[barrier, 32 * self.warps + barrier % BARRIERS] = self.tick()
        np.maximum(self.ended[barrier], self.arrived[barrier], out=self.ended[barrier])
        self.arrived[barrier] = 0

    def wait(self, numbers: Array, barriers: Array) -> None:
        """Threads that have each seen the end of a phase."""
        starts = np.flatnonzero((np.diff(numbers, prepend=-2) != 1) | (np.diff(barriers, prepend=-1) != 0))
        for start, count in zip(starts, np.diff(starts, append=len(numbers)), strict=True):
            rows = self.known[numbers[start] : numbers[start] + count]
            np.maximum(rows, self.ended[barriers[start]], out=rows)

    def knows(self, numbers: Array, others: Array, time: Array) -> Array:
        """Whether each thread knows what the other one had done by that time."""
        return self.known[numbers, others % self.threads] > time

    def _rows(self, numbers: Array, blocks: Array) -> Array:
        """For each thread a row of what it knows of a block, its own or another of its cluster."""
        rows = self.known[numbers]
        if self.others is not None:
            foreign = numbers // self.threads != blocks
            rows[foreign] = self.others.of_other_blocks(numbers[foreign], blocks[foreign])
        return rows

    # ---- accesses ----------------------------------------------------------------------------------------------------

    def record_write(self, places: Array) -> None:
        self.write_time[places], self.copied_for[places] = self.now, -1

    def begin_copy(self, places: Array, barriers: Array) -> None:
        """Nobody may touch the places who does not know that the copy has arrived at its barrier."""
        self.write_time[places], self.copied_for[places] = self.now, 32 * self.warps + barriers % BARRIERS

    def record_reads(self, threads: Array, places: Array) -> None:
        """Of one access."""
        in_block = threads % self.threads
        at = in_block // 32 * self.read_time.shape[1] + places
        time, lanes = self.read_time.reshape(-1), self.read_by.reshape(-1)
        time[at] = self.now
        lanes[at] = 0
        np.add.at(lanes, at, np.uint32(1) << (in_block % 32).astype(np.uint32))
        self.tick()

    def unknown_writes(self, threads: Array, places: Array, writers: Array, suspect: Array) -> Array:
        """Where a thread does not know the last write; ``suspect`` are those of other threads that no block or warp
        barrier orders."""
        copied = self.copied_for[places] >= 0
        judged = np.flatnonzero(suspect | copied)
        column = np.where(copied, self.copied_for[places], writers % self.threads)[judged]
        out = np.zeros(len(places), np.bool_)
        known = self.known[threads[judged], column]
        if self.others is not None:
            foreign = np.flatnonzero(threads[judged] // self.threads != writers[judged] // self.threads)
            numbers = judged[foreign]
            blocks = writers[numbers] // self.threads
            known[foreign] = self.others.of_other_blocks(threads[numbers], blocks, column[foreign])
        out[judged] = known <= self.write_time[places[judged]]
        return out

    def unknown_reads(self, threads: Array, places: Array, suspect: Array) -> Array:
        """Where a thread does not know all reads since the last write, likewise. The places of one thread lie one after
        the other."""
        judged = np.flatnonzero(suspect)
        out = np.zeros(len(places), np.bool_)
        if len(judged) == 0:
            return out
        threads, places = threads[judged], places[judged]
        since = np.maximum(self.write_time[places], 1)
        new = np.diff(threads, prepend=-1) != 0
        row = np.cumsum(new) - 1
        known = self._rows(threads[new], places[new] // self.places)
        known = known[:, : 32 * self.warps].reshape(-1, self.warps, 32)
        of_all_lanes = known.min(2)
        for warp in range(self.warps):
            time = self.read_time[warp, places]
            late = np.flatnonzero((time >= since) & (time >= of_all_lanes[row, warp]))
            if len(late):
                lanes = self.read_by[warp, places[late]]
                out[judged[late]] |= _unknown_lanes(known[:, warp], row[late], time[late], lanes)
        return out


def _unknown_lanes(known: Array, row: Array, time: Array, lanes: Array) -> Array:
    """Whether a lane among the bits of ``lanes`` is known less far than ``time``; judged once for equal neighbours."""
    new = (np.diff(row, prepend=-1) != 0) | (np.diff(time, prepend=-1) != 0)
    new[1:] |= lanes[1:] != lanes[:-1]
    bits = lanes[new][:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    unknown = ((known[row[new]] <= time[new][:, None]) & (bits != 0)).any(1)
    return unknown[np.cumsum(new) - 1]
