"""Thread block clusters: mapa, stores into the shared memory of other blocks, and barrier.cluster.

An address of shared::cluster has in its upper byte one more than the rank of its block; without, it is the own block's.
A store to another block lands as late as it may: when the phase ends in which its thread arrives after it, or one that
knows of it. Until then its target is garbage, and the target's block must not end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emulator.errors import PTXError
from emulator.ptx import data
from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, instruction
from emulator.ptx.memory import GARBAGE
from emulator.ptx.parser import Instruction
from emulator.ptx.phase_order import CLUSTER
from emulator.ptx.scalars import Array
from emulator.ptx.traffic import service_groups

if TYPE_CHECKING:
    from emulator.ptx.cluster_order import ClusterOrder

WINDOW = 24  # bits of an address within its block
MAX_CLUSTER = 16
NO_RANK = 254  # stands for all ranks that the upper byte has no room for
QUALIFIERS = {"arrive": {"release", "aligned"}, "wait": {"acquire", "aligned"}}


@dataclass
class _Stored:
    """What threads have stored to other blocks by one instruction, and when; ``words`` are those of shared memory."""

    threads: Array
    target: Array  # a block for each
    words: Array  # a row for each
    values: Array  # likewise
    time: int
    instruction: Instruction

    def part(self, chosen: Array) -> _Stored:
        arrays = (self.threads[chosen], self.target[chosen], self.words[chosen], self.values[chosen])
        return _Stored(*arrays, self.time, self.instruction)


class Clusters:
    """The clusters of a machine; it holds whole ones."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.arrived, self.waited = (np.zeros(machine.count, np.int32) for _ in range(2))  # how often
        self.waits, self.position = np.zeros(machine.count, np.bool_), np.zeros(machine.count, np.int64)
        self.cluster = machine.block // machine.cluster
        count = machine.blocks // machine.cluster
        self.phase = np.zeros(count, np.int32)
        self.gathered = np.zeros(machine.blocks, np.bool_)  # all threads have arrived in this phase
        self.tells, self.told = np.zeros(count, np.bool_), np.zeros(count, np.bool_)  # of griddepcontrol.wait
        self.stored: list[_Stored] = []

    # ---- the barrier -------------------------------------------------------------------------------------------------

    def check_alignment(self, current: Instruction, position: int) -> None:
        """Lanes that wait here for the others of their warp wait in vain for those that wait likewise elsewhere."""
        machine = self.machine
        for lanes in machine.parked.get(position, []):
            for other, parts in machine.parked.items():
                if other == position or machine.kernel.instructions[other].parts[1:2] != ("cluster",):
                    continue
                elsewhere = machine.warp[np.concatenate([part.numbers for part in parts])]
                apart = np.isin(machine.warp[lanes.index], elsewhere)
                machine.phases.fail("lanes of a warp come apart to an aligned barrier", apart, lanes, current)

    def barrier(self, current: Instruction, position: int, lanes: Lanes) -> Lanes | None:
        """Lanes come to half a barrier; those that need not wait go on."""
        action = current.parts[2]
        if action not in QUALIFIERS or not QUALIFIERS[action].issuperset(current.parts[3:]):
            raise PTXError("of barrier.cluster the emulator knows arrive.release and wait.acquire alone", current)
        self.machine.report.count("barrier.cluster", self.machine.warps_of(lanes))
        self.machine.phases.news = True
        if action == "arrive":
            self._arrive(lanes, current)
            return lanes
        return self._wait(lanes, position, current)

    def _arrive(self, lanes: Lanes, current: Instruction) -> None:
        machine, threads = self.machine, lanes.numbers
        twice = self.arrived[threads] != self.waited[threads]
        machine.phases.fail("arrives at the cluster barrier again without a wait", twice, lanes, current)
        self._order.arrive(threads)
        if machine.memory.dependency is not None:
            self.tells[self.cluster[threads[machine.memory.dependency.knows(threads)]]] = True
        self.arrived[threads] += 1
        self._judge()

    def _wait(self, lanes: Lanes, position: int, current: Instruction) -> Lanes | None:
        threads = lanes.numbers
        alone = self.arrived[threads] == self.waited[threads]
        self.machine.phases.fail("waits at the cluster barrier without having arrived", alone, lanes, current)
        ended = self.phase[self.cluster[threads]] >= self.arrived[threads]
        self.waits[threads[~ended]] = True
        self.position[threads[~ended]] = position
        if not ended.any():
            return None
        self._pass(threads[ended])
        return lanes.where(ended)

    def _pass(self, threads: Array) -> None:
        self.waited[threads] = self.arrived[threads]
        self.waits[threads] = False
        self._order.wait(threads, self.waited[threads])
        if self.machine.memory.dependency is not None:
            self.machine.memory.dependency.phase_barrier(threads, self.told[self.cluster[threads]])

    def _judge(self) -> None:
        """Which blocks have gathered, and which phases have ended."""
        machine = self.machine
        lacking = machine.alive & (self.arrived == self.phase[self.cluster])
        missing = np.bincount(machine.block[lacking], minlength=machine.blocks)
        living = np.bincount(machine.block[machine.alive], minlength=machine.blocks)
        for block in np.flatnonzero((missing == 0) & (living > 0) & ~self.gathered):
            self.gathered[block] = True
            self._order.release(int(block))
        missing, living = (counts.reshape(-1, machine.cluster).sum(1) for counts in (missing, living))
        ends = (missing == 0) & (living > 0)
        if ends.any():
            self._end_phases(ends)

    def _end_phases(self, ends: Array) -> None:
        """Of some clusters, each of which is true here."""
        machine = self.machine
        self._land(ends)
        self.phase[ends] += 1
        self.gathered[np.repeat(ends, machine.cluster)] = False
        self.told[ends] |= self.tells[ends]
        self._order.end_phases(np.flatnonzero(ends), self.phase)
        released = np.flatnonzero(self.waits & ends[self.cluster])
        if len(released):
            self._pass(released)
        for position in np.unique(self.position[released]):
            lanes = Lanes(released[self.position[released] == position], machine.count)
            machine.groups[int(position) + 1].append(lanes)

    def finish(self, lanes: Lanes, current: Instruction) -> None:
        """Threads that return are no longer waited for."""
        if self.machine.ordering.clusters is None:
            return
        threads, alive = lanes.numbers, self.machine.alive
        between = self.arrived[threads] != self.waited[threads]
        self.machine.phases.fail("ends between arriving and waiting at the cluster barrier", between, lanes, current)
        living = np.bincount(self.machine.block[alive], minlength=self.machine.blocks)
        for stored in self.stored:
            too_late = np.flatnonzero(living[stored.target] == 0)
            if len(too_late):
                block = int(stored.target[too_late[0]]) + self.machine.first_block
                writer = self.machine.name_of(stored.threads[too_late[0]])
                problem = f"block {block} ends before what {writer} stored to its shared memory was waited for"
                raise PTXError(problem, stored.instruction)
        self._judge()

    def waiting(self) -> list[tuple[int, Lanes]]:
        """(instruction, lanes) of all that wait."""
        threads = np.flatnonzero(self.waits)
        return [(int(self.position[threads[0]]), Lanes(threads, self.machine.count))] if len(threads) else []

    def who_waits(self) -> str:
        """For reports of deadlocks."""
        threads = np.flatnonzero(self.waits)
        if len(threads) == 0:
            return ""
        return f"; {len(threads)} at the cluster barrier, among them {self.machine.name_of(threads[0])}"

    @property
    def _order(self) -> ClusterOrder:
        assert self.machine.ordering.clusters is not None
        return self.machine.ordering.clusters

    # ---- other blocks' memory ----------------------------------------------------------------------------------------

    def _rank(self, lanes: Lanes) -> Array:
        return self.machine.block[lanes.index] % self.machine.cluster

    def _split(self, address: Array, lanes: Lanes) -> tuple[Array, Array]:
        """Offsets within their blocks, and the ranks of these."""
        address = np.broadcast_to(address, lanes.count)
        upper = (address >> np.uint64(WINDOW)).astype(np.int64)
        return address & np.uint64((1 << WINDOW) - 1), np.where(upper, upper - 1, self._rank(lanes))

    def own_offset(self, address: Array, lanes: Lanes, current: Instruction) -> Array:
        """Offsets of addresses that must be of the own block."""
        offset, rank = self._split(address, lanes)
        fail = self.machine.phases.fail
        fail("the emulator knows loads from the own block alone", rank != self._rank(lanes), lanes, current)
        return offset

    def store(self, address: Array, size: int, values: list[Array], lanes: Lanes, current: Instruction) -> None:
        """Raw words, one array for each element. Into the own block it is a usual store."""
        offset, rank = self._split(address, lanes)
        own = rank == self._rank(lanes)
        words = np.stack([np.broadcast_to(value, lanes.count) for value in values], axis=1)
        if own.any():
            data.store(self.machine, "shared", offset[own], size, list(words[own].T), lanes.where(own), current)
        if not own.all():
            self._store(rank[~own], offset[~own], words[~own], lanes.where(~own), current)

    def _store(self, rank: Array, offset: Array, values: Array, lanes: Lanes, current: Instruction) -> None:
        machine, threads = self.machine, lanes.numbers
        width = values.itemsize * values.shape[1]
        target = self._targets(rank, lanes, current)
        blocks = machine.block.copy()
        blocks[threads] = target
        access = machine.memory.locate("shared", offset, width, lanes, blocks, current)[0]
        machine.phases.guard(access, width, current)
        machine.ordering.check(access, width, True, current)
        machine.ordering.check_together(access, width, current)
        group = service_groups(lanes, machine.warp, machine.lane, width) * machine.blocks + target
        request = machine.warp[threads] * machine.blocks + target
        machine.report.remote_access(offset.astype(np.int64), group, width, request, current.place)
        access.words[access.offset[:, None] + np.arange(width)] = GARBAGE
        words = access.offset[:, None] // values.itemsize + np.arange(values.shape[1])
        self.stored.append(_Stored(threads, target, words, values, self._order.phases.now, current))

    def _targets(self, rank: Array, lanes: Lanes, current: Instruction) -> Array:
        """The blocks of these ranks: they must exist, have started and not have ended."""
        machine = self.machine
        fail = machine.phases.fail
        fail(f"a rank beyond the cluster of {machine.cluster} blocks", rank >= machine.cluster, lanes, current)
        early = self._order.phases.known[lanes.numbers, CLUSTER] == 0
        fail("stores to a block that may not have started, before a wait at the cluster barrier", early, lanes, current)
        target = self.cluster[lanes.numbers] * machine.cluster + rank
        living = np.bincount(machine.block[machine.alive], minlength=machine.blocks)
        fail("stores to a block that has ended", living[target] == 0, lanes, current)
        return target

    def _land(self, ends: Array) -> None:
        """What has been stored before an arrival in the phases that end."""
        left = []
        for stored in self.stored:
            lands = ends[self.cluster[stored.threads]] & self._order.is_released(stored.threads, stored.time)
            landing = stored.part(lands)
            self.machine.memory.shared.view(stored.values.dtype)[landing.words] = landing.values
            if not lands.all():
                left.append(stored.part(~lands))
        self.stored = left


@instruction("mapa")
def _map(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    if current.parts[1] != "shared_cluster":
        raise PTXError("of mapa the emulator knows mapa.shared::cluster alone", current)
    target, source, rank = current.operands
    address = machine.read(source, "u64", lanes)
    outside = address >= np.uint64(1 << WINDOW)
    machine.phases.fail("takes an address in the own block's shared memory", outside, lanes, current)
    ranks = np.minimum(machine.read(rank, "u32", lanes).astype(np.uint64), np.uint64(NO_RANK))
    machine.write(target, (ranks + np.uint64(1)) << np.uint64(WINDOW) | address, "u64", lanes)
