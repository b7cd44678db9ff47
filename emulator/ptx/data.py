"""Loads, stores, moves, atomics and asynchronous copies."""

from __future__ import annotations

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, instruction
from emulator.ptx.memory import LOCAL_WINDOW, SHARED_WINDOW, Access, gather, scatter
from emulator.ptx.parser import Instruction, split_operands
from emulator.ptx.scalars import BITS, Array, decode, encode
from emulator.ptx.traffic import service_groups

SPACES = ("global", "shared", "local", "param", "const")
STRONG = {"volatile", "relaxed", "acquire", "release", "acq_rel"}


def space_of(current: Instruction) -> str:
    """The state space that the opcode names, or generic."""
    for part in current.parts[1:]:
        name = part.split("_")[0]
        if name in SPACES:
            return "global" if name == "const" else name
    return "generic"


def address_of(machine: Machine, operand: str, lanes: Lanes) -> Array:
    """[register + offset], [symbol + offset] or [number]."""
    base, sign, offset = operand.strip("[] ").partition("+")
    if not sign and "-" in base[1:]:
        base, _, offset = base.partition("-")
        offset = f"-{offset.strip()}"
    address = machine.read(base.strip(), "u64", lanes)
    return address + np.array(int(offset or "0", 0), np.int64).astype(np.uint64)


def vector(operand: str) -> list[str]:
    """The parts of ``{a, b}``, or the operand alone."""
    return split_operands(operand[1:-1]) if operand[0] == "{" else [operand]


@instruction("ld", "ldu")
def _load(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    targets = vector(current.operands[0])
    size = BITS[kind] // 8
    strong = STRONG.intersection(current.parts)
    address = address_of(machine, current.operands[1], lanes)
    if strong:
        machine.give_way()
        _order_strong(machine, lanes, address, reads=True, writes=False)
        if "acquire" in strong:
            machine.ordering.fence(lanes)
    if "shared_cluster" in current.parts:
        address = machine.clusters.own_offset(address, lanes, current)
    values = load(machine, space_of(current), address, size, len(targets), lanes, current, judged=not strong)
    for target, value in zip(targets, values, strict=True):
        machine.write(target, decode(value, kind if kind[0] == "s" else f"b{BITS[kind]}"), _integer(kind), lanes)


@instruction("st")
def _store(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    sources = vector(current.operands[1])
    strong = STRONG.intersection(current.parts)
    address = address_of(machine, current.operands[0], lanes)
    if strong:
        machine.give_way()
        if "release" in strong:
            machine.ordering.fence(lanes)
        _order_strong(machine, lanes, address, reads=False, writes=True)
    values = [machine.read(source, f"b{BITS[kind]}", lanes) for source in sources]
    if "shared_cluster" in current.parts:
        if strong or "async" in current.parts:
            raise PTXError("of stores to a cluster's shared memory the emulator knows weak ones alone", current)
        machine.clusters.store(address, BITS[kind] // 8, values, lanes, current)
        return
    store(machine, space_of(current), address, BITS[kind] // 8, values, lanes, current, judged=not strong)


def _integer(kind: str) -> str:
    """Loads move bits; only signed types fill up a wider register differently."""
    return kind if kind[0] == "s" else f"b{BITS[kind]}"


def load(
    machine: Machine,
    space: str,
    address: Array,
    size: int,
    elements: int,
    lanes: Lanes,
    current: Instruction,
    *,
    judged: bool = True,
) -> list[Array]:
    """Raw words, one array for each element; checked, ordered and counted."""
    accesses = accesses_of(machine, space, address, size, elements, lanes, current, writes=False, judged=judged)
    if len(accesses) == 1:
        return [gather(accesses[0], element, size) for element in range(elements)]
    out = [np.zeros(lanes.count, f"u{size}") for _ in range(elements)]
    for access in accesses:
        for element in range(elements):
            out[element][access.chosen] = gather(access, element, size)
    return out


def store(
    machine: Machine,
    space: str,
    address: Array,
    size: int,
    values: list[Array],
    lanes: Lanes,
    current: Instruction,
    *,
    judged: bool = True,
) -> None:
    """Raw words, one array for each element; checked, ordered and counted."""
    for access in accesses_of(machine, space, address, size, len(values), lanes, current, writes=True, judged=judged):
        for element, value in enumerate(values):
            scatter(access, element, size, value)


def accesses_of(
    machine: Machine,
    space: str,
    address: Array,
    size: int,
    elements: int,
    lanes: Lanes,
    current: Instruction,
    *,
    writes: bool,
    judged: bool,
) -> list[Access]:
    """Locate an access, let it be judged for races, and count it."""
    accesses = machine.memory.locate(space, address, size * elements, lanes, machine.block, current)
    for access in accesses:
        if access.space == "shared":
            machine.phases.guard(access, size * elements, current)
        if judged and access.space in ("shared", "global"):
            machine.ordering.check(access, size * elements, writes, current)
        if access.space == "global":
            machine.report.global_access(access, machine.warp[access.lanes.index], size, elements, writes)
        elif access.space == "shared":
            group = service_groups(access.lanes, machine.warp, machine.lane, size * elements)
            offset = access.offset % machine.memory.shared_stride
            machine.report.shared_access(offset, group, size * elements, current.place)
    return accesses


def _order_strong(machine: Machine, lanes: Lanes, address: Array, *, reads: bool, writes: bool) -> None:
    for thread, where in zip(lanes.numbers, np.broadcast_to(address, lanes.count), strict=True):
        machine.ordering.strong(int(thread), int(where), reads, writes)


@instruction("mov")
def _move(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    target, source = current.operands
    if target[0] == "{":  # unpack
        names = vector(target)
        bits = BITS[kind] // len(names)
        value = machine.read(source, f"b{BITS[kind]}", lanes)
        for i, name in enumerate(names):
            part = value >> value.dtype.type(i * bits)
            machine.write(name, part.astype(f"u{bits // 8}"), f"b{bits}", lanes)
    elif source[0] == "{":  # pack
        names = vector(source)
        bits = BITS[kind] // len(names)
        word = np.dtype(f"u{BITS[kind] // 8}").type
        parts = [machine.read(name, f"b{bits}", lanes).astype(word) << word(i * bits) for i, name in enumerate(names)]
        machine.write(target, np.bitwise_or.reduce(np.broadcast_arrays(*parts)), f"b{BITS[kind]}", lanes)
    else:
        machine.write(target, machine.read(source, kind, lanes), kind, lanes)


@instruction("cvta")
def _convert_address(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    address = machine.read(current.operands[1], "u64", lanes)
    space = space_of(current)
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
    shift = np.uint64(window)
    value = np.where(address >= shift, address - shift, address) if "to" in current.parts else address + shift
    machine.write(current.operands[0], value, "u64", lanes)


# ---- atomics and fences ----------------------------------------------------------------------------------------------

UPDATES = {
    "add": lambda old, x, _: old + x,
    "min": lambda old, x, _: min(old, x),
    "max": lambda old, x, _: max(old, x),
    "and": lambda old, x, _: old & x,
    "or": lambda old, x, _: old | x,
    "xor": lambda old, x, _: old ^ x,
    "exch": lambda old, x, _: x,
    "cas": lambda old, x, y: y if old == x else old,
    "inc": lambda old, x, _: old.dtype.type(0) if old >= x else old + old.dtype.type(1),
    "dec": lambda old, x, _: x if old == 0 or old > x else old - old.dtype.type(1),
}


@instruction("atom", "red")
def _atomic(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """One lane after the other, in an order drawn from the seed."""
    kind = current.parts[-1]
    size = BITS[kind] // 8
    with_result = current.name == "atom"
    operands = current.operands[with_result:]
    update = UPDATES[next(part for part in current.parts if part in UPDATES)]
    address = np.broadcast_to(address_of(machine, operands[0], lanes), lanes.count)
    x = np.broadcast_to(machine.read(operands[1], kind, lanes), lanes.count)
    y = np.broadcast_to(machine.read(operands[2], kind, lanes), lanes.count) if len(operands) > 2 else x
    if {"release", "acq_rel"}.intersection(current.parts):
        machine.ordering.fence(lanes)
    old = np.empty(lanes.count, x.dtype)
    order = np.arange(lanes.count) if machine.random is None else machine.random.permutation(lanes.count)
    for access in machine.memory.locate(space_of(current), address, size, lanes, machine.block, current):
        members = np.arange(lanes.count)[access.chosen]
        position = {int(member): i for i, member in enumerate(members)}
        words = access.buffer.view(size) if access.buffer is not None else access.words.view(f"u{size}")
        if access.space == "global":
            machine.report.global_access(access, machine.warp[access.lanes.index], size, 1, True)
        for member in order:
            if int(member) not in position:
                continue
            place = access.offset[position[int(member)]] // size
            machine.ordering.strong(int(lanes.numbers[member]), int(address[member]), True, True)
            old[member] = decode(words[place : place + 1], kind)[0]
            new = np.asarray(update(old[member], x[member], y[member]), x.dtype).reshape(1)
            words[place] = encode(new, kind)[0]
    if {"acquire", "acq_rel"}.intersection(current.parts):
        machine.ordering.fence(lanes)
    machine.give_way()
    if with_result:
        machine.write(current.operands[0], old, kind, lanes)


@instruction("fence", "membar")
def _fence(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    if {"async", "mbarrier_init"}.intersection(current.parts):
        machine.phases.show(lanes)
    elif not {"cta", "proxy"}.intersection(current.parts):
        machine.ordering.fence(lanes)


@instruction("nanosleep")
def _sleep(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    machine.give_way()


@instruction("prefetch", "prefetchu", "applypriority", "discard")
def _hint(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """Changes nothing that a result could depend on."""


@instruction("trap")
def _trap(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    raise PTXError("the kernel trapped", current)
