"""mbarrier, and the bulk copies into shared memory that arrive at one.

A phase of a barrier ends when all have arrived who are expected, and all bytes that were announced. Copies land as late
as they may: when somebody waits for the end of a phase that lacks nothing else. Until then their target is garbage, a
further arrival is one too many, and the block must not end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.data import address_of, space_of
from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, instruction
from emulator.ptx.memory import GARBAGE, Access
from emulator.ptx.ordering import WORD
from emulator.ptx.parser import Instruction
from emulator.ptx.phase_order import BARRIERS, FOREVER, PhaseOrder
from emulator.ptx.scalars import Array

MAX_COUNT = 2**20 - 1  # of arrivals, and of bytes
PATIENCE = 100  # rounds in which all threads that can run wait in vain
QUALIFIERS = {"shared", "shared_cta", "b64", "release", "acquire", "cta"}


@dataclass
class _Copy:
    """Of one lane: ``source`` are the bytes themselves, ``target`` is where they go in the shared memory."""

    source: Array
    target: int
    instruction: Instruction


@dataclass
class _Barrier:
    """What the current phase still lacks."""

    arrivals: int
    pending: int
    announced: int = 0
    copies: list[_Copy] = field(default_factory=list)

    @property
    def copied(self) -> int:
        return sum(len(copy.source) for copy in self.copies)


class PhaseBarriers:
    """The barriers of all blocks of a machine, BARRIERS numbers for each block."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.number = np.zeros(len(machine.memory.shared) // 8, np.int32)  # one more; 0 where there is no barrier
        self.barriers: dict[int, _Barrier] = {}
        self.used = np.zeros(machine.blocks, np.int32)
        count = machine.blocks * BARRIERS
        self.phase = np.zeros(count, np.int64)
        self.due = np.zeros(count, np.bool_)  # lacks nothing but that its copies land
        self.initialiser = np.full(count, -1, np.int64)
        self.shown = np.full(count, FOREVER, np.int64)  # when the initialiser has shown it to the copies
        self.tells, self.told = np.zeros(count, np.bool_), np.zeros(count, np.bool_)  # of griddepcontrol.wait
        self.news, self.idle_rounds = False, 0
        self.in_vain: dict[int, tuple[int, Instruction]] = {}  # a thread that waits for the barrier of this number

    @property
    def order(self) -> PhaseOrder:
        assert self.machine.ordering.phases is not None
        return self.machine.ordering.phases

    def fail(self, problem: str, wrong: Array, lanes: Lanes, current: Instruction) -> None:
        """Raise PTXError if anything is wrong."""
        wrong = np.broadcast_to(wrong, lanes.count)
        if wrong.any():
            raise PTXError(f"{problem}: {self.machine.name_of(lanes.numbers[wrong][0])}", current)

    # ---- which barrier -----------------------------------------------------------------------------------------------

    def _locate(self, operand: str, lanes: Lanes, current: Instruction) -> Access:
        machine = self.machine
        address = address_of(machine, operand, lanes)
        access = machine.memory.locate(space_of(current), address, 8, lanes, machine.block, current)[0]
        if access.space != "shared":
            self.fail("a barrier must be in shared memory", np.array([True]), access.lanes, current)
        return access

    def find(self, operand: str, lanes: Lanes, current: Instruction) -> Array:
        """The number of each lane's barrier."""
        access = self._locate(operand, lanes, current)
        numbers = self.number[access.offset // 8].astype(np.int64) - 1
        self.fail("a barrier that was never initialised", numbers < 0, lanes, current)
        self.machine.ordering.check(access, WORD, False, current)
        return numbers

    def guard(self, access: Access, size: int, current: Instruction) -> None:
        """Other instructions must not touch a barrier."""
        if self.barriers:
            words = access.offset[:, None] // 8 + np.arange(max(size // 8, 1))
            hit = self.number[words].any(1)
            self.fail("the memory of a phase barrier is none for loads, stores and copies", hit, access.lanes, current)

    def init(self, lanes: Lanes, current: Instruction) -> None:
        access = self._locate(current.operands[0], lanes, current)
        arrivals = np.broadcast_to(self.machine.read(current.operands[1], "u32", lanes), lanes.count)
        self.fail(f"not 1 to {MAX_COUNT} arrivals", (arrivals < 1) | (arrivals > MAX_COUNT), lanes, current)
        self.machine.ordering.check(access, 8, True, current)
        for thread, word, expected in zip(lanes.numbers, access.offset // 8, arrivals, strict=True):
            if self.number[word]:
                raise PTXError(f"a barrier that is in use is initialised: {self.machine.name_of(thread)}", current)
            block = self.machine.block[thread]
            if self.used[block] == BARRIERS:
                raise PTXError(f"the emulator knows {BARRIERS} barriers of a block", current)
            number = int(block) * BARRIERS + int(self.used[block])
            self.used[block] += 1
            self.number[word] = number + 1
            self.initialiser[number] = thread
            self.barriers[number] = _Barrier(int(expected), int(expected))

    def invalidate(self, lanes: Lanes, current: Instruction) -> None:
        numbers = self.find(current.operands[0], lanes, current)
        under_way = np.array([bool(self.barriers[int(number)].copies) for number in numbers])
        self.fail("a barrier of copies under way is invalidated", under_way, lanes, current)
        access = self._locate(current.operands[0], lanes, current)
        self.machine.ordering.check(access, 8, True, current)
        self.number[access.offset // 8] = 0

    def show(self, lanes: Lanes) -> None:
        """A fence between what the threads have done and the copies."""
        fencing = np.zeros(self.machine.count, np.bool_)
        fencing[lanes.index] = True
        if self.barriers:
            own = (self.initialiser >= 0) & (self.shown == FOREVER) & fencing[self.initialiser]
            self.shown[own] = self.order.tick()
            self.order.tick()

    # ---- phases ------------------------------------------------------------------------------------------------------

    def arrive(self, lanes: Lanes, current: Instruction, announced: Array) -> None:
        numbers = self.find(current.operands[1], lanes, current)
        announced = np.broadcast_to(announced, lanes.count)
        self.news = True
        self.order.tick()
        order = np.argsort(numbers, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            number = int(numbers[members[0]])
            while len(members):
                pending = self.barriers[number].pending
                if pending == 0:
                    name = self.machine.name_of(lanes.numbers[members[0]])
                    raise PTXError(f"one arrival too many before the phase has ended: {name}", current)
                some, members = members[:pending], members[pending:]
                self._arrive(number, lanes.numbers[some], int(announced[some].sum()), current)

    def _arrive(self, number: int, threads: Array, announced: int, current: Instruction) -> None:
        barrier = self.barriers[number]
        barrier.pending -= len(threads)
        barrier.announced += announced
        if barrier.announced > MAX_COUNT:
            raise PTXError(f"a phase announces more than {MAX_COUNT} bytes", current)
        self.order.arrive(number, threads)
        dependency = self.machine.memory.dependency
        self.tells[number] |= dependency is not None and dependency.knows(threads).any()
        self._judge(number, current)

    def _judge(self, number: int, current: Instruction) -> None:
        """Whether the phase has ended, or can."""
        barrier = self.barriers[number]
        if barrier.pending:
            return
        if barrier.copied > barrier.announced:
            raise PTXError(f"{barrier.copied} bytes arrive in a phase that announces {barrier.announced}", current)
        self.due[number] = barrier.copied == barrier.announced
        if self.due[number] and not barrier.copies:
            self._end_phase(number)

    def _end_phase(self, number: int) -> None:
        barrier, shared = self.barriers[number], self.machine.memory.shared
        for copy in barrier.copies:
            shared[copy.target : copy.target + len(copy.source)] = copy.source
        self.order.end_phase(number)
        self.told[number] |= self.tells[number]
        self.barriers[number] = _Barrier(barrier.arrivals, barrier.arrivals)
        self.due[number] = False
        self.phase[number] += 1

    def wait(self, lanes: Lanes, current: Instruction) -> None:
        machine = self.machine
        numbers = self.find(current.operands[1], lanes, current)
        parity = machine.read(current.operands[2], "u32", lanes)
        self.fail("a parity other than 0 and 1", parity > 1, lanes, current)
        can_end = (self.phase[numbers] % 2 != parity) | self.due[numbers]
        sees = can_end
        if machine.random is not None:  # some warps notice late
            sees = can_end & (machine.random.random(machine.warps) < 0.5)[machine.warp[lanes.index]]
        for number in np.unique(numbers[sees & (self.phase[numbers] % 2 == parity)]):
            self._end_phase(int(number))
        machine.write(current.operands[0], sees, "pred", lanes)
        if sees.any():
            self._pass(lanes.numbers[sees], numbers[sees])
        self.news |= bool(can_end.any())
        if not sees.all():
            machine.gave_way = True
        if not can_end.all():
            first = np.flatnonzero(~can_end)[0]
            self.in_vain.setdefault(int(numbers[first]), (int(lanes.numbers[first]), current))

    def _pass(self, threads: Array, numbers: Array) -> None:
        self.order.wait(threads, numbers)
        if self.machine.memory.dependency is not None:
            self.machine.memory.dependency.phase_barrier(threads, self.told[numbers])

    # ---- copies ------------------------------------------------------------------------------------------------------

    def copy(self, lanes: Lanes, current: Instruction) -> None:
        machine, operands = self.machine, current.operands
        numbers = self.find(operands[3], lanes, current)
        hidden = ~self.order.knows(lanes.numbers, self.initialiser[numbers], self.shown[numbers])
        self.fail("no proxy fence has shown this barrier to the copies", hidden, lanes, current)
        size = np.broadcast_to(machine.read(operands[2], "u32", lanes), lanes.count).astype(np.int64)
        self.fail("a copy of no bytes, or not of a multiple of 16", (size == 0) | (size % 16 != 0), lanes, current)
        target, source = (address_of(machine, operand, lanes) for operand in operands[:2])
        where = machine.memory.locate_many("shared", target, 16, size, lanes, machine.block, current)[0]
        pieces = machine.memory.locate_many("global", source, 16, size, lanes, machine.block, current)
        self.news = True
        for piece in pieces:
            self._count(piece, size[piece.chosen], current)
        self._take_targets(where, size, numbers, current)
        for piece in pieces:
            self._start(piece, where.offset[piece.chosen], size[piece.chosen], numbers[piece.chosen], current)

    def _count(self, source: Access, size: Array, current: Instruction) -> None:
        for alike in np.unique(size):
            access = _part(source, size == alike)
            self.machine.ordering.check(access, int(alike), False, current)
            self.machine.report.bulk_copy(access, int(alike))

    def _take_targets(self, target: Access, size: Array, numbers: Array, current: Instruction) -> None:
        """Nobody may touch them from now on, and what they hold is garbage."""
        for alike in np.unique(size):
            chosen = size == alike
            access = _part(target, chosen)
            self.guard(access, int(alike), current)
            self.machine.ordering.begin_copy(access, int(alike), numbers[chosen], current)
            for offset in access.offset:
                access.words[offset : offset + alike] = GARBAGE

    def _start(self, source: Access, target: Array, size: Array, numbers: Array, current: Instruction) -> None:
        assert source.buffer is not None
        memory = source.buffer.view(1)
        for first, goes_to, count, number in zip(source.offset, target, size, numbers, strict=True):
            copy = _Copy(memory[first : first + count], int(goes_to), current)
            self.barriers[int(number)].copies.append(copy)
            self._judge(int(number), current)

    # ---- what never ends ---------------------------------------------------------------------------------------------

    def check_progress(self) -> None:
        """Called when all threads that can run have given way."""
        self.idle_rounds = self.idle_rounds + 1 if self.in_vain and not self.news else 0
        if self.idle_rounds == PATIENCE:
            waits = [self.machine.name_of(thread) + self._lacks(number) for number, (thread, _) in self.in_vain.items()]
            current = next(iter(self.in_vain.values()))[1]
            who = ", ".join(waits) + self.machine.clusters.who_waits()
            raise PTXError(f"deadlock at phase barriers: {who}", current)
        self.news, self.in_vain = False, {}

    def _lacks(self, number: int) -> str:
        barrier = self.barriers[number]
        lacks = f"{barrier.pending} arrivals and {barrier.announced - barrier.copied} bytes"
        return f" waits for phase {self.phase[number]} of a barrier, which lacks {lacks}"

    def check_end(self) -> None:
        """Called when all threads have returned."""
        for number, barrier in self.barriers.items():
            if barrier.copies:
                block = number // BARRIERS + self.machine.first_block
                problem = f"block {block} ends while bytes are copied into its shared memory"
                raise PTXError(problem, barrier.copies[0].instruction)


def _part(access: Access, chosen: Array) -> Access:
    lanes = access.lanes.where(chosen)
    return Access(lanes, slice(None), access.space, access.buffer, access.words, access.offset[chosen])


@instruction("mbarrier")
def _barrier(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    action = tuple(part for part in current.parts[1:] if part not in QUALIFIERS)
    phases, operands = machine.phases, current.operands
    if action == ("init",):
        phases.init(lanes, current)
    elif action == ("inval",):
        phases.invalidate(lanes, current)
    elif action in (("try_wait", "parity"), ("test_wait", "parity")):
        phases.wait(lanes, current)
    elif action == ("arrive",) and operands[0] == "_" and len(operands) == 2:
        phases.arrive(lanes, current, np.zeros(1, np.int64))
    elif action == ("arrive", "expect_tx") and operands[0] == "_":
        phases.arrive(lanes, current, machine.read(operands[2], "u32", lanes).astype(np.int64))
    else:
        raise PTXError("of mbarrier the emulator knows init, inval, waits for a parity, and arrivals into _", current)
