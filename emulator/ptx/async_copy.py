"""cp.async. A copy is read and delivered when its group is waited for; until then its target holds garbage, so that a
forgotten wait gives wrong numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.data import accesses_of, address_of
from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, instruction
from emulator.ptx.memory import GARBAGE, gather, scatter
from emulator.ptx.parser import Instruction
from emulator.ptx.scalars import Array

BULK = [
    ("cp", "async", "bulk", target, "global", "mbarrier_complete_tx_bytes")
    for target in ("shared_cta", "shared_cluster")
]


@dataclass
class PendingCopy:
    """One cp.async of some lanes; ``group`` is how many groups each lane had committed before it."""

    target: Array
    source: Array
    size: int
    bytes_to_read: Array
    group: Array
    lanes: Lanes
    instruction: Instruction

    def part(self, chosen: Array) -> PendingCopy:
        arrays = (self.target[chosen], self.source[chosen], self.bytes_to_read[chosen], self.group[chosen])
        target, source, bytes_to_read, group = arrays
        lanes = self.lanes.where(chosen)
        return PendingCopy(target, source, self.size, bytes_to_read, group, lanes, self.instruction)


class AsyncCopies:
    """The copies of a machine's threads that have not arrived."""

    def __init__(self, threads: int) -> None:
        self.committed = np.zeros(threads, np.int64)
        self.pending: list[PendingCopy] = []

    def wait(self, machine: Machine, lanes: Lanes, groups_left: int) -> None:
        """Deliver all but each lane's latest ``groups_left`` committed groups; -1 takes in what is not committed."""
        limit = np.full(machine.count, np.iinfo(np.int64).min)
        limit[lanes.index] = self.committed[lanes.index] - groups_left
        still_pending = []
        for copy in self.pending:
            arrived = copy.group < limit[copy.lanes.index]
            if arrived.any():
                _deliver(machine, copy.part(arrived))
            if not arrived.all():
                still_pending.append(copy.part(~arrived))
        self.pending = still_pending


def _prefetch(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """Brings nothing, but what it asks for has to be there, and must not be the previous launch's."""
    first = np.broadcast_to(address_of(machine, current.operands[0], lanes), lanes.count)
    size = np.broadcast_to(machine.read(current.operands[1], "u32", lanes), lanes.count)
    if (size % 16).any() or not size.all():
        raise PTXError("cp.async.bulk.prefetch takes a multiple of 16 bytes", current)
    for address in (first, first + size.astype(np.uint64) - np.uint64(16)):
        machine.memory.locate("global", address, 16, lanes, machine.block, current)


@instruction("cp")
def _copy(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    if current.parts[1:4] == ("async", "bulk", "prefetch"):
        _prefetch(machine, current, lanes)
        return
    if current.parts in BULK:
        machine.phases.copy(lanes, current)
        return
    if current.parts[1] != "async" or {"bulk", "mbarrier"}.intersection(current.parts):
        raise PTXError(
            "of cp the emulator knows cp.async, cp.async.bulk.prefetch and bulk copies to shared memory alone", current
        )
    if "commit_group" in current.parts:
        machine.copies.committed[lanes.index] += 1
    elif "wait_all" in current.parts:
        machine.copies.wait(machine, lanes, -1)
    elif "wait_group" in current.parts:
        machine.copies.wait(machine, lanes, int(current.operands[0], 0))
    else:
        machine.copies.pending.append(_start(machine, current, lanes))


def _start(machine: Machine, current: Instruction, lanes: Lanes) -> PendingCopy:
    target = np.broadcast_to(address_of(machine, current.operands[0], lanes), lanes.count)
    source = np.broadcast_to(address_of(machine, current.operands[1], lanes), lanes.count)
    size = int(current.operands[2], 0)
    count = machine.read(current.operands[3], "u32", lanes) if len(current.operands) > 3 else np.array([size])
    count = np.broadcast_to(count, lanes.count).astype(np.int64)
    # It may be written at any time from now on.
    for access in accesses_of(machine, "shared", target, size, 1, lanes, current, writes=True, judged=True):
        for i in range(size):
            scatter(access, i, 1, np.full(1, GARBAGE, np.uint8))
    reading = lanes.where(count > 0)
    if reading.count:
        accesses_of(machine, "global", source[count > 0], size, 1, reading, current, writes=False, judged=True)
    return PendingCopy(target, source, size, count, machine.copies.committed[lanes.index].copy(), lanes, current)


def _deliver(machine: Machine, copy: PendingCopy) -> None:
    memory, lanes = machine.memory, copy.lanes
    target = memory.locate("shared", copy.target, copy.size, lanes, machine.block, copy.instruction)
    for access in target:
        machine.ordering.check(access, copy.size, True, copy.instruction)
    for i in range(copy.size):
        values = np.zeros(lanes.count, np.uint8)
        wanted = copy.bytes_to_read > i
        if wanted.any():
            address = copy.source[wanted] + np.uint64(i)
            numbers = np.flatnonzero(wanted)
            for access in memory.locate("global", address, 1, lanes.where(wanted), machine.block, copy.instruction):
                values[numbers[access.chosen]] = gather(access, 0, 1)
        for access in target:
            scatter(access, i, 1, values)
