"""Races: two accesses to one place, one of them a write, that nothing orders.

In shared memory between threads: ordered by bar.sync, within a warp by bar.warp.sync, by phase barriers and by those of
clusters; where a kernel has any of these two, phase_order.py and cluster_order.py keep account. In global memory
between blocks: what a block has written is known to another only after a release (a fence, then an atomic or a strong
store) whose value the other has read before a fence of its own, or after the barrier of their cluster. Here a fence
counts for its whole block and reads before another block's write are not judged; the fiber emulator is exact in both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.cluster_order import ClusterOrder, uses_clusters
from emulator.ptx.lanes import Lanes
from emulator.ptx.memory import Access
from emulator.ptx.parser import Instruction
from emulator.ptx.phase_order import PhaseOrder
from emulator.ptx.scalars import Array

if TYPE_CHECKING:
    from emulator.ptx.machine import Machine

WORD = 2  # bytes that share a record
NOBODY, SEVERAL = -1, -2  # SEVERAL - 1 - w: several threads, all of warp w


@dataclass
class _Records:
    """The last thread at each place, and two counts at that time: what they count depends on the memory."""

    thread: Array
    first: Array
    second: Array

    @staticmethod
    def empty(places: int) -> _Records:
        return _Records(*(np.full(places, NOBODY, np.int32) for _ in range(3)))


@dataclass
class Knowledge:
    """For each block, the epoch before which all its accesses are known; for single threads, the step."""

    epochs: Array
    threads: dict[int, int] = field(default_factory=dict)

    def joined(self, other: Knowledge | None) -> Knowledge:
        if other is None or other is self:
            return self
        threads = dict(self.threads)
        for thread, step in other.threads.items():
            threads[thread] = max(step, threads.get(thread, 0))
        return Knowledge(np.maximum(self.epochs, other.epochs), threads)


def places_of(access: Access, size: int) -> Array:
    """The records of an access, those of each lane one after the other."""
    places = access.offset // WORD
    return (places[:, None] + np.arange(size // WORD)).ravel() if size > WORD else places


class Ordering:
    """Happens-before of one launch. ``begin`` is called for each group of blocks that runs together."""

    machine: Machine

    def __init__(self, blocks: int, threads: int) -> None:
        self.blocks, self.threads = blocks, threads
        self.written: dict[int, _Records] = {}  # by the address of the buffer
        self.epoch = np.ones(blocks, np.int32)  # counts barriers, and fences of a whole block
        self.step = np.ones(blocks * threads, np.int32)  # counts fences
        nothing = Knowledge(np.zeros(blocks, np.int32))
        self.known = [nothing] * blocks
        self.seen: list[Knowledge] = [nothing] * blocks
        self.released: list[Knowledge | None] = [None] * blocks
        self.handed_on: dict[int, Knowledge] = {}

    def begin(self, machine: Machine, shared_bytes: int) -> None:
        self.machine = machine
        self.block_epoch = np.zeros(machine.blocks, np.int32)
        self.warp_epoch = np.zeros(machine.warps, np.int32)
        self.shared_writes, self.shared_reads = (_Records.empty(shared_bytes // WORD) for _ in range(2))
        has_phases = any(instruction.name == "mbarrier" for instruction in machine.kernel.instructions)
        in_clusters = uses_clusters(machine.kernel)
        self.phases = PhaseOrder(machine, shared_bytes // WORD) if has_phases or in_clusters else None
        self.clusters = ClusterOrder(machine, self, self.phases) if self.phases is not None and in_clusters else None

    # ---- what orders -------------------------------------------------------------------------------------------------

    def block_barrier(self, numbers: Array) -> None:
        """Threads that leave a barrier of their block; it orders the whole block, or the clocks of those threads."""
        machine = self.machine
        block = machine.block[numbers]
        blocks = np.unique(block)
        self.epoch[blocks + machine.first_block] += 1
        if self.phases is not None:
            self.phases.meet(numbers, block)
            living = np.bincount(machine.block[machine.alive], minlength=machine.blocks)
            blocks = blocks[np.bincount(block, minlength=machine.blocks)[blocks] == living[blocks]]
        self.block_epoch[blocks] += 1

    def warp_barrier(self, lanes: Lanes) -> None:
        warp = self.machine.warp[lanes.index]
        self.warp_epoch[np.unique(warp)] += 1
        if self.phases is not None:
            self.phases.meet(lanes.numbers, warp)

    def fence(self, lanes: Lanes) -> None:
        """What the blocks have seen becomes known, and what is known can be handed on by their atomics."""
        machine = self.machine
        local = machine.block[lanes.index]
        living = np.bincount(machine.block[machine.alive], minlength=machine.blocks)
        fencing = np.bincount(local, minlength=machine.blocks)
        numbers = lanes.numbers + machine.first_block * self.threads
        for index in np.flatnonzero(fencing):
            block = int(index) + machine.first_block
            known = self.known[block] = self.known[block].joined(self.seen[block])
            epochs, threads = known.epochs.copy(), dict(known.threads)
            if fencing[index] == living[index]:
                self.epoch[block] += 1
            else:
                threads |= {int(thread): int(self.step[thread]) + 1 for thread in numbers[local == index]}
            epochs[block] = self.epoch[block]
            self.released[block] = Knowledge(epochs, threads)
        self.step[numbers] += 1

    def release(self, block: int) -> Knowledge:
        """What a block knows and has done so far, to be handed on."""
        self.epoch[block] += 1
        known = self.known[block]
        epochs = known.epochs.copy()
        epochs[block] = self.epoch[block]
        return Knowledge(epochs, known.threads)

    def acquire(self, block: int, knowledge: Knowledge) -> None:
        self.known[block] = self.known[block].joined(knowledge)

    def strong(self, thread: int, address: int, reads: bool, writes: bool) -> None:
        """An atomic, volatile, acquire or release access of one thread of the machine."""
        block = int(self.machine.block[thread]) + self.machine.first_block
        handed_on = self.handed_on.get(address)
        if reads and handed_on is not None:
            self.seen[block] = self.seen[block].joined(handed_on)
        released = self.released[block]
        if writes and released is not None:
            # A read-modify-write continues what it read; a plain store starts anew.
            self.handed_on[address] = released.joined(handed_on) if reads else released

    def begin_copy(self, access: Access, size: int, barriers: Array, instruction: Instruction) -> None:
        """A bulk copy into shared memory is its thread's write, and from then on its barrier's."""
        assert self.phases is not None
        self.check(access, size, True, instruction)
        places, threads = places_of(access, size), np.repeat(access.lanes.numbers, size // WORD)
        overlaps = self.shared_writes.thread[places] != threads
        self._complain("shared", "write", overlaps, self.shared_writes, places, threads, instruction)
        self.phases.begin_copy(places, np.repeat(barriers, size // WORD))

    # ---- what is judged ----------------------------------------------------------------------------------------------

    def check(self, access: Access, size: int, writes: bool, instruction: Instruction) -> None:
        """Judge an access and remember it."""
        places = places_of(access, size)
        threads = np.repeat(access.lanes.numbers, max(size // WORD, 1))
        if access.space == "shared":
            self._check_shared(places, threads, writes, instruction)
        elif access.space == "global" and self.blocks > 1:
            self._check_global(access, places, threads, writes, instruction)

    def check_together(self, access: Access, size: int, instruction: Instruction) -> None:
        """Judge whether threads have written one place by the same instruction."""
        places, threads = places_of(access, size), np.repeat(access.lanes.numbers, max(size // WORD, 1))
        meets = self.shared_writes.thread[places] != threads
        self._complain("shared", "write", meets, self.shared_writes, places, threads, instruction)

    def _check_shared(self, places: Array, threads: Array, writes: bool, instruction: Instruction) -> None:
        machine = self.machine
        epoch, warp = self.block_epoch[machine.block[threads]], machine.warp[threads]
        warp_epoch = self.warp_epoch[warp]

        def unordered(records: _Records) -> Array:
            other = records.thread[places]
            in_between = (self._warp_of(other) == warp) & (records.second[places] != warp_epoch)
            in_own_block = (records.first[places] == epoch) & ~in_between
            foreign = self._of_other_blocks(other, places, threads)
            return (other != NOBODY) & (other != threads) & (foreign | in_own_block)

        phases, reads = self.phases, self.shared_reads
        wrong = unordered(self.shared_writes)
        if phases is not None:
            wrong = phases.unknown_writes(threads, places, self.shared_writes.thread[places], wrong)
        self._complain("shared", "write", wrong, self.shared_writes, places, threads, instruction)
        if writes:
            wrong = unordered(reads)
            if phases is not None:
                wrong = phases.unknown_reads(threads, places, wrong)
                phases.record_write(places)
            self._complain("shared", "read", wrong, reads, places, threads, instruction)
            for record, value in zip(vars(self.shared_writes).values(), (threads, epoch, warp_epoch), strict=True):
                record[places] = value
            reads.thread[places] = NOBODY
            return
        if phases is not None:
            phases.record_reads(threads, places)
        # Readers of one epoch are remembered together, so that a write by one of them is still seen to race.
        other = reads.thread[places]
        both = (other != NOBODY) & (other != threads) & (reads.first[places] == epoch)
        together = np.where(self._warp_of(other) == warp, SEVERAL - 1 - warp, SEVERAL)
        value = np.where(both, together, threads)
        reads.thread[places] = value
        stored = reads.thread[places]
        for alike in (True, False):  # lanes of this very access that met at one place
            meets = (stored != value) & ((self._warp_of(stored) == warp) == alike)
            reads.thread[places[meets]] = SEVERAL - 1 - warp[meets] if alike else SEVERAL
        reads.first[places], reads.second[places] = epoch, warp_epoch

    def _of_other_blocks(self, others: Array, places: Array, threads: Array) -> Array | bool:
        """Where a record is of another block than the thread: epochs tell nothing then."""
        if self.clusters is None or self.phases is None:
            return False
        block = np.where(others >= 0, others // self.threads, places // self.phases.places)  # only its own block reads
        return block != threads // self.threads

    def _warp_of(self, reader: Array) -> Array:
        """The warp of a recorded thread, or of several threads of one warp; otherwise NOBODY."""
        warp_of_several = np.where(reader < SEVERAL, SEVERAL - 1 - reader, NOBODY)
        return np.where(reader >= 0, self.machine.warp[reader], warp_of_several)

    def _check_global(
        self, access: Access, places: Array, threads: Array, writes: bool, instruction: Instruction
    ) -> None:
        assert access.buffer is not None
        records = self.written.get(access.buffer.address)
        if records is None:
            if not writes:
                return
            records = _Records.empty(-(-(access.buffer.bytes + access.buffer.shift) // WORD))
            self.written[access.buffer.address] = records
        threads = threads + self.machine.first_block * self.threads
        other = records.thread[places]
        foreign = (other != NOBODY) & (other // self.threads != threads // self.threads)
        for index in np.flatnonzero(foreign):
            known = self.known[threads[index] // self.threads]
            writer, place = int(other[index]), places[index]
            if records.first[place] < known.epochs[writer // self.threads]:
                continue
            if records.second[place] < known.threads.get(writer, 0):
                continue
            wrong = np.arange(len(places)) == index
            self._complain("global", "write", wrong, records, places, threads, instruction)
        if writes:
            records.thread[places] = threads
            records.first[places] = self.epoch[threads // self.threads]
            records.second[places] = self.step[threads]
            together = records.thread[places] // self.threads != threads // self.threads
            self._complain("global", "write", together, records, places, threads, instruction)

    def _complain(
        self, memory: str, kind: str, wrong: Array, records: _Records, places: Array, threads: Array, text: Instruction
    ) -> None:
        if not wrong.any():
            return
        index = int(np.flatnonzero(wrong)[0])
        shift = 0 if memory == "global" else self.machine.first_block * self.threads
        mine, other = int(threads[index]) + shift, int(records.thread[places[index]])
        them = "several threads" if other < 0 else self._name(other + shift)
        raise PTXError(f"race on {memory} memory: {self._name(mine)} comes unordered after a {kind} by {them}", text)

    def _name(self, thread: int) -> str:
        return f"block {thread // self.threads} thread {thread % self.threads}"
