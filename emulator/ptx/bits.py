"""Conversions, and instructions that work on bit fields and bytes."""

from __future__ import annotations

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.arithmetic import saturated
from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, instruction
from emulator.ptx.parser import Instruction
from emulator.ptx.scalars import BITS, PACKED, SIGNED, UNSIGNED, Array, encode, round_to_bf16

TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@instruction("cvt")
def _convert(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    target, source = current.parts[-2:]
    if target in ("f16x2", "bf16x2"):
        _convert_two(machine, current, lanes)
        return
    value = machine.read(current.operands[1], source, lanes)
    rounding = next((part for part in current.parts if part in TO_INTEGER), None)
    if value.dtype.kind == "f" and target[0] in "su":
        value = _float_to_integer(value, target, TO_INTEGER[rounding or "rzi"])
    elif value.dtype.kind == "f":
        value = saturated(_float_to_float(value, target, rounding, current), current)
    elif target[0] in "fb" and not target.startswith("b1"):
        value = _integer_to_float(value, target)
    elif target[0] in "fb":
        value = value.astype(np.float64)
    elif "sat" in current.parts:
        value = _saturate(value, target)
    machine.write(current.operands[0], value, target, lanes)


def _float_to_integer(value: Array, target: str, rounded: np.ufunc) -> Array:
    """NaN to 0, others clamped to the range."""
    info = np.iinfo((SIGNED if target[0] == "s" else UNSIGNED)[BITS[target]])
    whole = np.where(np.isnan(value), 0, rounded(value.astype(np.float64)))
    inside = np.clip(whole, float(info.min), float(info.max))
    exact = np.where(
        inside >= float(info.max), info.max, np.where(inside >= float(info.max), 0, inside).astype(info.dtype)
    )
    return exact.astype(info.dtype)


def _float_to_float(value: Array, target: str, rounding: str | None, current: Instruction) -> Array:
    if rounding is not None:
        return TO_INTEGER[rounding](value)
    if "rz" in current.parts:
        return _toward_zero(value, target, current)
    return value


def _toward_zero(value: Array, target: str, current: Instruction) -> Array:
    if target == "bf16":
        return round_to_bf16(value, toward_zero=True)
    nearest = value.astype({"f16": np.float16, "f32": np.float32}[target])
    too_far = np.abs(nearest.astype(np.float64)) > np.abs(value.astype(np.float64))
    return np.where(too_far, np.nextafter(nearest, nearest.dtype.type(0)), nearest)


def _integer_to_float(value: Array, target: str) -> Array:
    return value.astype({"f16": np.float64, "bf16": np.float64, "f32": np.float32, "f64": np.float64}[target])


def _saturate(value: Array, target: str) -> Array:
    info = np.iinfo((SIGNED if target[0] == "s" else UNSIGNED)[BITS[target]])
    if value.dtype == np.uint64:
        return np.minimum(value, np.uint64(info.max)).astype(info.dtype)
    return np.clip(value.astype(np.int64), info.min, min(info.max, 2**63 - 1)).astype(info.dtype)


def _convert_two(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """cvt.bf16x2.f32 d, high, low."""
    target, source = current.parts[-2:]
    kind = PACKED[target]
    words = []
    for operand in current.operands[1:3]:
        value = machine.read(operand, source, lanes)
        if "relu" in current.parts:
            value = np.maximum(value, value.dtype.type(0))
        if "rz" in current.parts:
            value = _toward_zero(value, kind, current)
        words.append(encode(value, kind).astype(np.uint32))
    machine.write(current.operands[0], words[0] << np.uint32(16) | words[1], "b32", lanes)


@instruction("popc", "clz", "brev", "bfind", "ffs")
def _count_bits(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    bits = BITS[kind]
    value = machine.read(current.operands[1], f"u{bits}", lanes)
    digits = (value[:, None] >> np.arange(bits, dtype=value.dtype)) & value.dtype.type(1)  # lowest first
    if current.name == "popc":
        result = digits.sum(1)
    elif current.name == "brev":
        result = (digits[:, ::-1].astype(np.uint64) << np.arange(bits, dtype=np.uint64)).sum(1, dtype=np.uint64)
        machine.write(current.operands[0], result.astype(value.dtype), f"u{bits}", lanes)
        return
    else:
        if current.name == "bfind" and kind[0] == "s":
            raise PTXError("the emulator knows bfind for unsigned types alone", current)
        leading = np.where(value == 0, bits, digits[:, ::-1].argmax(1))
        place = leading if "shiftamt" in current.parts else bits - 1 - leading
        result = leading if current.name == "clz" else np.where(value == 0, -1, place)
    machine.write(current.operands[0], result.astype(np.int64).astype(np.uint32), "u32", lanes)


@instruction("bfe")
def _extract_field(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    bits = BITS[kind]
    operands = zip(current.operands[1:4], (f"u{bits}", "u32", "u32"), strict=True)
    value, start, length = (machine.read(operand, read_as, lanes).astype(np.int64) for operand, read_as in operands)
    start, length = start & 255, length & 255
    position = np.arange(bits)
    digits = np.broadcast_to(value, lanes.count)[:, None] >> position & 1  # lowest first
    source = np.broadcast_to(start[:, None] + position, digits.shape)
    taken = np.take_along_axis(digits, np.minimum(source, bits - 1), 1)
    # Beyond the field there are zeros, or copies of its highest bit.
    top = np.broadcast_to(np.clip(start + length - 1, 0, bits - 1)[:, None], (lanes.count, 1))
    sign = np.take_along_axis(digits, top, 1) * (length > 0)[:, None] if kind[0] == "s" else 0
    result = np.where((position < length[:, None]) & (source < bits), taken, sign).astype(np.uint64)
    packed = (result << position.astype(np.uint64)).sum(1, dtype=np.uint64)
    machine.write(current.operands[0], packed.astype(UNSIGNED[bits]), f"u{bits}", lanes)


@instruction("bfi")
def _insert_field(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    bits = BITS[kind]
    value, base = (machine.read(operand, f"u{bits}", lanes).astype(np.uint64) for operand in current.operands[1:3])
    start = machine.read(current.operands[3], "u32", lanes).astype(np.uint64) & np.uint64(255)
    length = machine.read(current.operands[4], "u32", lanes).astype(np.uint64) & np.uint64(255)
    one, full = np.uint64(1), np.uint64(2**64 - 1)
    field = np.where(length >= np.uint64(64), full, (one << np.minimum(length, np.uint64(63))) - one)
    shift = np.minimum(start, np.uint64(63))
    mask = np.where(start >= np.uint64(bits), np.uint64(0), field << shift)
    result = (base & ~mask) | ((value << shift) & mask)
    machine.write(current.operands[0], result.astype(UNSIGNED[bits]), f"u{bits}", lanes)


@instruction("prmt")
def _permute_bytes(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    if len(current.parts) > 2:
        raise PTXError("the emulator knows prmt without a mode alone", current)
    low, high, selector = (machine.read(operand, "b32", lanes).astype(np.uint64) for operand in current.operands[1:4])
    both = low | high << np.uint64(32)
    result = np.zeros(1, np.uint64)
    for i in range(4):
        pick = selector >> np.uint64(4 * i)
        byte = both >> ((pick & np.uint64(7)) * np.uint64(8)) & np.uint64(255)
        sign = np.where(byte >> np.uint64(7), np.uint64(255), np.uint64(0))
        result = result | np.where(pick & np.uint64(8), sign, byte) << np.uint64(8 * i)
    machine.write(current.operands[0], result.astype(np.uint32), "b32", lanes)


@instruction("shf")
def _funnel_shift(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    low, high, by = (machine.read(operand, "b32", lanes).astype(np.uint64) for operand in current.operands[1:4])
    by = np.minimum(by, np.uint64(32)) if "clamp" in current.parts else by & np.uint64(31)
    both = low | high << np.uint64(32)
    result = both << by >> np.uint64(32) if current.parts[1] == "l" else both >> by
    machine.write(current.operands[0], result.astype(np.uint32), "b32", lanes)


@instruction("lop3")
def _logic_of_three(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    a, b, c = (machine.read(operand, "b32", lanes) for operand in current.operands[1:4])
    table = int(current.operands[4], 0)
    result = np.zeros(1, np.uint32)
    for row in range(8):
        if table >> row & 1:
            terms = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result = result | terms
    machine.write(current.operands[0], result, "b32", lanes)


@instruction("dp4a")
def _dot_of_bytes(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    total = machine.read(current.operands[3], "s32", lanes).astype(np.int64)
    words = [machine.read(operand, "b32", lanes) for operand in current.operands[1:3]]
    for i in range(4):
        parts = []
        for word, kind in zip(words, current.parts[-2:], strict=True):
            byte = (word >> np.uint32(8 * i)).astype(np.uint8)
            parts.append((byte.view(np.int8) if kind == "s32" else byte).astype(np.int64))
        total = total + parts[0] * parts[1]
    machine.write(current.operands[0], total.astype(np.int32), "s32", lanes)
