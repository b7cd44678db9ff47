"""Registers of all threads as numpy arrays, and the order in which instructions run.

Threads at the same instruction run together, those at the lowest one first: that brings diverged branches together
again. A thread that has just read what others may write gives way to them, so that loops which wait for another block
end. Barriers and warp operations hold threads until all the named ones have arrived.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.barriers import Barriers
from emulator.ptx.lanes import Lanes
from emulator.ptx.parser import Instruction, Kernel
from emulator.ptx.scalars import BITS, Array, decode, encode, raw

if TYPE_CHECKING:
    from emulator.ptx.async_copy import AsyncCopies
    from emulator.ptx.clusters import Clusters
    from emulator.ptx.memory import Memory
    from emulator.ptx.ordering import Ordering
    from emulator.ptx.phase_barriers import PhaseBarriers
    from emulator.ptx.traffic import TrafficReport


Handler = Callable[["Machine", Instruction, Lanes], None]
HANDLERS: dict[str, Handler] = {}
WARP_HANDLERS: dict[str, Handler] = {}
MAX_STEPS = 5_000_000


def instruction(*names: str) -> Callable[[Handler], Handler]:
    """Registers what an opcode does to the threads that execute it."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def warp_instruction(*names: str) -> Callable[[Handler], Handler]:
    """Likewise for opcodes that wait for the other lanes of the warp."""

    def register(handler: Handler) -> Handler:
        WARP_HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


class Machine:
    """A number of whole blocks, and of whole clusters, that run to their end."""

    copies: AsyncCopies  # set by the launch
    phases: PhaseBarriers  # likewise
    clusters: Clusters  # likewise

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        first_block: int,
        blocks: int,
        memory: Memory,
        ordering: Ordering,
        report: TrafficReport,
        seed: int,
        cluster: int = 1,
    ) -> None:
        self.kernel, self.memory, self.ordering, self.report = kernel, memory, ordering, report
        self.threads = prod(block)
        self.blocks, self.cluster = blocks, cluster
        self.count = self.threads * blocks
        self.random = np.random.default_rng(seed) if seed else None
        number = np.arange(self.count)
        in_block = number % self.threads
        self.block = number // self.threads
        self.lane = (in_block % 32).astype(np.uint32)
        self.warps = -(-self.threads // 32) * blocks
        self.warp = self.block * (self.warps // blocks) + in_block // 32
        self.first_block = first_block
        self.registers = {name: np.zeros(self.count, raw(bits)) for name, bits in kernel.registers.items()}
        self.special = self._special_registers(grid, block, in_block)
        self.symbols = memory.symbols
        self.alive = np.ones(self.count, np.bool_)
        self.barriers = Barriers(self)
        self.groups: dict[int, list[Lanes]] = defaultdict(list)
        self.deferred: dict[int, list[Lanes]] = defaultdict(list)
        self.parked: dict[int, list[Lanes]] = defaultdict(list)
        self.immediates: dict[tuple[str, str], Array] = {}
        self.gave_way = False

    def _special_registers(self, grid: tuple[int, ...], block: tuple[int, ...], in_block: Array) -> dict[str, Array]:
        lane = self.lane.astype(np.uint64)
        one, full = np.uint64(1), np.uint64(0xFFFFFFFF)
        block_number = self.block + self.first_block
        values: dict[str, Any] = {
            "laneid": lane,
            "warpid": in_block // 32,
            "nwarpid": self.warps // self.blocks,
            "lanemask_eq": one << lane,
            "lanemask_lt": (one << lane) - one,
            "lanemask_le": (one << (lane + one)) - one,
            "lanemask_gt": full & ~((one << (lane + one)) - one),
            "lanemask_ge": full & ~((one << lane) - one),
            "dynamic_smem_size": self.memory.dynamic_bytes,
            "WARP_SZ": 32,
        }
        values |= {
            "cluster_ctarank": block_number % self.cluster,
            "cluster_nctarank": self.cluster,
            "is_explicit_cluster": self.cluster > 1,
        }
        values |= dict.fromkeys(("smid", "gridid", "clock", "clock64", "globaltimer"), 0)
        for axis, name in enumerate("xyz"):
            values[f"tid.{name}"] = in_block // prod(block[:axis]) % block[axis]
            values[f"ctaid.{name}"] = block_number // prod(grid[:axis]) % grid[axis]
            values[f"ntid.{name}"] = block[axis]
            values[f"nctaid.{name}"] = grid[axis]
            cluster = 1 if axis else self.cluster
            values[f"clusterid.{name}"] = values[f"ctaid.{name}"] // cluster
            values[f"nclusterid.{name}"] = grid[axis] // cluster
            values[f"cluster_ctaid.{name}"] = values[f"ctaid.{name}"] % cluster
            values[f"cluster_nctaid.{name}"] = cluster
        return {f"%{name}": np.asarray(value, np.uint64).reshape(-1) for name, value in values.items()}

    # ---- operands ----------------------------------------------------------------------------------------------------

    def read(self, operand: str, kind: str, lanes: Lanes) -> Array:
        """Values of a register, special register, immediate or symbol; one value stands for all lanes."""
        register = self.registers.get(operand)
        if register is not None:
            bits = register[lanes.index]
            wanted = raw(BITS[kind])
            return decode(bits if bits.dtype == wanted else bits.astype(wanted), kind)
        if operand[0] == "!":
            return ~self.read(operand[1:], kind, lanes)
        if operand in self.special:
            values = self.special[operand]
            values = values[lanes.index] if len(values) > 1 else values
            return decode(values.astype(raw(BITS[kind])), kind)
        key = (operand, kind)
        if key not in self.immediates:
            self.immediates[key] = self._immediate(operand, kind)
        return self.immediates[key]

    def _immediate(self, operand: str, kind: str) -> Array:
        wanted = raw(BITS[kind])
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
            single = np.array([int(match.group(1), 16)], np.uint32)
            return single.view(np.float32).astype(np.float64) if kind == "f64" else decode(single.astype(wanted), kind)
        if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", operand):
            return decode(np.array([int(match.group(1), 16)], np.uint64), kind)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            value = int(operand.rstrip("U"), 0)
            if kind == "pred":
                return np.array([value != 0])
            return decode(np.array([value & (2 ** BITS[kind] - 1)], np.uint64).astype(wanted), kind)
        if re.fullmatch(r"-?\d*\.\d*([eE][-+]?\d+)?", operand):
            return decode(encode(np.array([float(operand)]), kind), kind)
        if match := re.fullmatch(r"([\w$]+)(?:\s*\+\s*(\d+))?", operand):
            name, offset = match.groups()
            if name in self.symbols:
                return np.array([self.symbols[name] + int(offset or 0)], np.uint64).astype(wanted)
        raise KeyError(f"the PTX operand {operand!r} is neither a register, a number nor a known symbol")

    def write(self, operand: str, values: Array, kind: str, lanes: Lanes) -> None:
        """Numbers of a PTX type into a register; a wider register is filled up as the type's sign says."""
        if operand == "_":
            return
        register = self.registers[operand]
        bits = encode(np.asarray(values), kind)
        if bits.dtype != register.dtype:
            if kind[0] == "s":
                bits = decode(bits, kind).astype(np.int64)
            bits = bits.astype(register.dtype)
        register[lanes.index] = bits

    # ---- execution ---------------------------------------------------------------------------------------------------

    def run(self, max_steps: int) -> None:
        """All threads to their end."""
        self.groups[0].append(Lanes(None, self.count))
        steps = 0
        while self.groups or self.deferred:
            if not self.groups:
                self.phases.check_progress()
                self.groups, self.deferred = self.deferred, defaultdict(list)
            start = min(self.groups)
            lanes: Lanes | None = Lanes.merged(self.groups.pop(start))
            position = start
            while lanes is not None and position not in self.groups and not self._others_are_behind(position):
                lanes = self._step(position, lanes)
                position += 1
                steps += 1
                if steps > max_steps:
                    raise PTXError(f"no end after {max_steps} steps", self.kernel.instructions[position - 1])
            if lanes is not None:
                self.groups[position].append(lanes)
        self._check_that_nobody_waits()
        self.phases.check_end()

    def _others_are_behind(self, position: int) -> bool:
        return any(other < position for other in self.groups)

    def _step(self, position: int, lanes: Lanes) -> Lanes | None:
        """Execute one instruction; the lanes that go on with the next one."""
        current = self.kernel.instructions[position]
        active, passive = lanes, None
        if current.guard is not None:
            chosen = self.registers[current.guard][lanes.index] != current.negated
            active = lanes.where(chosen)
            if active.count == 0:
                return lanes
            if active.count < lanes.count:
                passive = lanes.where(~chosen)
        name = current.name
        if name == "bra":
            self.groups[self.kernel.labels[current.operands[-1]]].append(active)
            return passive
        if name in ("ret", "exit"):
            self._finish(active, current)
            return passive
        if name in ("bar", "barrier") and current.parts[1] != "warp":
            return self._join(passive, self._barrier_step(current, position, active))
        warp_handler = WARP_HANDLERS.get(name)
        if warp_handler is not None:
            return self._join(passive, self._warp_step(warp_handler, current, position, active))
        handler = HANDLERS.get(name)
        if handler is None:
            raise PTXError("the emulator does not know this instruction", current)
        self.report.count(name, self.warps_of(active))
        self.gave_way = False
        handler(self, current, active)
        if self.gave_way:
            self.deferred[position + 1].append(active)
            return passive
        return lanes

    def _barrier_step(self, current: Instruction, position: int, lanes: Lanes) -> Lanes | None:
        """Lanes come to the barrier of a block or a cluster; those that go on with the next instruction."""
        if current.parts[1] != "cluster":
            return self.barriers.arrive(current, position, lanes)
        if "aligned" in current.parts:
            lanes = self._gather(current, position, lanes)
            self.clusters.check_alignment(current, position)
        return self.clusters.barrier(current, position, lanes) if lanes.count else None

    def _warp_step(self, handler: Handler, current: Instruction, position: int, lanes: Lanes) -> Lanes | None:
        """Execute for the warps of which all named lanes have arrived; the others wait."""
        lanes = self._gather(current, position, lanes)
        if lanes.count == 0:
            return None
        self.report.count(current.name, self.warps_of(lanes))
        handler(self, current, lanes)
        return lanes

    def _gather(self, current: Instruction, position: int, lanes: Lanes) -> Lanes:
        """Those of which all named lanes of the warp have arrived; the others wait."""
        lanes = Lanes.merged([lanes, *self.parked.pop(position, [])])
        present = self.bits_of_warps(lanes)
        needed = self.named_lanes(current, lanes) & self.bits_of_warps(self.living())[self.warp[lanes.index]]
        if not (needed >> self.lane[lanes.index].astype(np.uint64) & np.uint64(1)).all():
            raise PTXError("a lane is not in the mask that it names", current)
        complete = (needed & ~present[self.warp[lanes.index]]) == 0
        if not complete.all():
            self.parked[position].append(lanes.where(~complete))
            lanes = lanes.where(complete)
        return lanes

    def named_lanes(self, current: Instruction, lanes: Lanes) -> Array:
        """The member mask of a warp instruction, one for each lane."""
        if current.name in ("mma", "ldmatrix", "stmatrix") or current.parts[1:2] == ("cluster",):
            mask = np.array([0xFFFFFFFF], np.uint64)
        elif current.name == "activemask":
            mask = self.bits_of_warps(lanes)[self.warp[lanes.index]]
        else:
            mask = self.read(current.operands[-1], "u32", lanes).astype(np.uint64)
        return np.broadcast_to(mask, lanes.count)

    def bits_of_warps(self, lanes: Lanes) -> Array:
        """For each warp, a bit for each lane that is among ``lanes``."""
        weights = np.ldexp(1.0, self.lane[lanes.index].astype(np.int64))
        return np.bincount(self.warp[lanes.index], weights, self.warps).astype(np.uint64)

    def living(self) -> Lanes:
        return Lanes(None, self.count) if self.alive.all() else Lanes(np.flatnonzero(self.alive), self.count)

    def warps_of(self, lanes: Lanes) -> int:
        """How many warps have a lane among ``lanes``."""
        if lanes.count == self.count:
            return self.warps
        return int(np.count_nonzero(np.diff(self.warp[lanes.index]))) + 1

    def give_way(self) -> None:
        """Called by an access to what other threads may change: let them run first."""
        self.gave_way = self.phases.news = True

    @staticmethod
    def _join(first: Lanes | None, second: Lanes | None) -> Lanes | None:
        parts = [part for part in (first, second) if part is not None]
        return Lanes.merged(parts) if parts else None

    def name_of(self, thread: int) -> str:
        """As errors name a thread of the machine."""
        block, number = divmod(int(thread), self.threads)
        return f"block {block + self.first_block} thread {number}"

    def _finish(self, lanes: Lanes, current: Instruction) -> None:
        """Threads that return may be the last for which others wait."""
        self.alive[lanes.index] = False
        for position, parts in self.parked.items():
            self.groups[position].extend(parts)
        self.parked.clear()
        for position, released in self.barriers.release_after_exit():
            self.groups[position].append(released)
        self.clusters.finish(lanes, current)

    def _check_that_nobody_waits(self) -> None:
        waiting = [(position, lanes) for position, parts in self.parked.items() for lanes in parts]
        waiting += self.barriers.waiting()
        waiting += self.clusters.waiting()
        if not waiting:
            return
        position, lanes = waiting[0]
        where = self.name_of(lanes.numbers[0])
        problem = f"deadlock: {sum(lanes.count for _, lanes in waiting)} threads wait, among them {where}"
        raise PTXError(problem + self.clusters.who_waits(), self.kernel.instructions[position])
