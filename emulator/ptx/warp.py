"""Instructions in which the lanes of a warp work together: they run once all named lanes have arrived."""

from __future__ import annotations

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, warp_instruction
from emulator.ptx.parser import Instruction
from emulator.ptx.scalars import Array


@warp_instruction("bar", "barrier")
def _warp_barrier(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    machine.ordering.warp_barrier(lanes)


@warp_instruction("shfl")
def _shuffle(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    value = np.broadcast_to(machine.read(current.operands[1], "b32", lanes), lanes.count)
    by = machine.read(current.operands[2], "u32", lanes).astype(np.int64) & 31
    control = machine.read(current.operands[3], "u32", lanes).astype(np.int64)
    lane = machine.lane[lanes.index].astype(np.int64)
    segment, clamp = control >> 8 & 31, control & 31
    low, high = lane & segment, (lane & segment) | (clamp & ~segment)
    mode = current.parts[2]
    source = {"bfly": lane ^ by, "down": lane + by, "up": lane - by, "idx": low | (by & ~segment)}[mode]
    valid = source >= high if mode == "up" else source <= high
    source = np.where(valid, source, lane)
    everyone = np.zeros(machine.count, np.uint32)
    everyone[lanes.index] = value
    here = np.zeros(machine.count, np.bool_)
    here[lanes.index] = True
    number = lanes.numbers - lane + source
    if (number >= machine.count).any() or not here[number].all():
        raise PTXError("a shuffle reads a lane that is outside its mask or has returned", current)
    targets = current.operands[0].split("|")
    machine.write(targets[0].strip(), everyone[number], "b32", lanes)
    if len(targets) > 1:
        machine.write(targets[1].strip(), valid, "pred", lanes)


@warp_instruction("vote")
def _vote(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    predicate = np.broadcast_to(machine.read(current.operands[1], "pred", lanes), lanes.count)
    true = machine.bits_of_warps(lanes.where(predicate)) if predicate.any() else np.zeros(machine.warps, np.uint64)
    warp = machine.warp[lanes.index]
    true, present = true[warp], machine.bits_of_warps(lanes)[warp]
    mode = current.parts[2]
    if mode == "ballot":
        machine.write(current.operands[0], true, "b32", lanes)
        return
    result = {"all": true == present, "any": true != 0, "uni": (true == 0) | (true == present)}[mode]
    machine.write(current.operands[0], result, "pred", lanes)


@warp_instruction("activemask")
def _active_mask(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    machine.write(current.operands[0], machine.bits_of_warps(lanes)[machine.warp[lanes.index]], "b32", lanes)


@warp_instruction("elect")
def _elect(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    lane = machine.lane[lanes.index]
    first = np.full(machine.warps, 32, np.uint32)
    np.minimum.at(first, machine.warp[lanes.index], lane)
    chosen = first[machine.warp[lanes.index]]
    target, predicate = current.operands[0].split("|")
    machine.write(target.strip(), chosen, "b32", lanes)
    machine.write(predicate.strip(), chosen == lane, "pred", lanes)


REDUCTIONS = {
    **{"add": np.add, "min": np.minimum, "max": np.maximum},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
}


@warp_instruction("redux")
def _reduce(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    value = np.broadcast_to(machine.read(current.operands[1], current.parts[-1], lanes), lanes.count)
    machine.write(current.operands[0], _by_warp(machine, lanes, value, current.parts[2]), current.parts[-1], lanes)


def _by_warp(machine: Machine, lanes: Lanes, value: Array, name: str) -> Array:
    warp = machine.warp[lanes.index]
    starts = np.flatnonzero(np.diff(warp, prepend=-1))
    totals = REDUCTIONS[name].reduceat(value, starts).astype(value.dtype)
    return totals[np.cumsum(np.diff(warp, prepend=warp[0]) != 0)]


@warp_instruction("match")
def _match(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    if current.parts[1] != "any":
        raise PTXError("the emulator knows match.any alone", current)
    value = np.broadcast_to(machine.read(current.operands[1], f"b{current.parts[-1][1:]}", lanes), lanes.count)
    _, group = np.unique(np.stack([machine.warp[lanes.index], value.astype(np.int64)]), axis=1, return_inverse=True)
    bits = np.bincount(group.reshape(-1), np.ldexp(1.0, machine.lane[lanes.index].astype(np.int64))).astype(np.uint64)
    machine.write(current.operands[0], bits[group.reshape(-1)], "b32", lanes)
