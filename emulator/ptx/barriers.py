"""bar.sync and its relatives: threads wait for all running threads of their block, or for the given number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emulator.ptx.lanes import Lanes
from emulator.ptx.parser import Instruction
from emulator.ptx.scalars import Array

if TYPE_CHECKING:
    from emulator.ptx.machine import Machine


@dataclass
class _Barrier:
    """One barrier resource of every block: who waits, at which instruction, for how many, with which predicate."""

    waits: Array
    position: Array
    wanted: Array
    predicate: Array


class Barriers:
    """The numbered barriers of all blocks of a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.numbered: dict[int, _Barrier] = {}

    def arrive(self, instruction: Instruction, position: int, lanes: Lanes) -> Lanes | None:
        """Lanes come to a barrier; those that it releases and that are at this instruction go on."""
        machine = self.machine
        machine.report.count("bar", machine.warps_of(lanes))
        operands = instruction.operands
        reduces = "red" in instruction.parts
        first = 1 if reduces else 0  # bar.red has its result in front and its predicate behind
        arrive_at = self._barrier(int(operands[first], 0))
        counts = operands[first + 1 : len(operands) - first]
        wanted = machine.read(counts[0], "u32", lanes).astype(np.int64) if counts else -1
        arrive_at.waits[lanes.index] = True
        arrive_at.position[lanes.index] = position
        arrive_at.wanted[lanes.index] = wanted
        if reduces:
            arrive_at.predicate[lanes.index] = machine.read(operands[-1], "pred", lanes)
        own = None
        for where, released in self._release(arrive_at):
            if where == position:
                own = released
            else:
                machine.groups[where + 1].append(released)
        return own

    def release_after_exit(self) -> list[tuple[int, Lanes]]:
        """(next instruction, lanes) of those that waited for threads which have returned."""
        return [(where + 1, lanes) for barrier in self.numbered.values() for where, lanes in self._release(barrier)]

    def waiting(self) -> list[tuple[int, Lanes]]:
        """(instruction, lanes) of all that wait."""
        out = []
        for barrier in self.numbered.values():
            numbers = np.flatnonzero(barrier.waits)
            if len(numbers):
                out.append((int(barrier.position[numbers[0]]), Lanes(numbers, self.machine.count)))
        return out

    def _barrier(self, number: int) -> _Barrier:
        if number not in self.numbered:
            count = self.machine.count
            integers = [np.zeros(count, np.int64) for _ in range(2)]
            self.numbered[number] = _Barrier(np.zeros(count, np.bool_), *integers, np.zeros(count, np.bool_))
        return self.numbered[number]

    def _release(self, barrier: _Barrier) -> list[tuple[int, Lanes]]:
        """Frees the blocks of which enough threads wait."""
        machine = self.machine
        numbers = np.flatnonzero(barrier.waits)
        if len(numbers) == 0:
            return []
        blocks = machine.block[numbers]
        here = np.bincount(blocks, minlength=machine.blocks)
        living = np.bincount(machine.block[machine.alive], minlength=machine.blocks)
        wanted = np.where(barrier.wanted[numbers] < 0, living[blocks], barrier.wanted[numbers])
        numbers = numbers[here[blocks] >= wanted]
        if len(numbers) == 0:
            return []
        barrier.waits[numbers] = False
        machine.ordering.block_barrier(numbers)
        if machine.memory.dependency is not None:
            machine.memory.dependency.block_barrier(numbers)
        out = []
        for position in np.unique(barrier.position[numbers]):
            lanes = Lanes(numbers[barrier.position[numbers] == position], machine.count)
            self._write_result(machine.kernel.instructions[position], barrier, numbers, lanes)
            out.append((int(position), lanes))
        return out

    def _write_result(self, instruction: Instruction, barrier: _Barrier, released: Array, lanes: Lanes) -> None:
        if "red" not in instruction.parts:
            return
        machine = self.machine
        blocks = machine.block[released]
        true = np.bincount(blocks, barrier.predicate[released], machine.blocks)[machine.block[lanes.index]]
        if "popc" in instruction.parts:
            machine.write(instruction.operands[0], true.astype(np.uint32), "u32", lanes)
        else:
            all_of_them = np.bincount(blocks, minlength=machine.blocks)[machine.block[lanes.index]]
            result = true == all_of_them if "and" in instruction.parts else true > 0
            machine.write(instruction.operands[0], result, "pred", lanes)
