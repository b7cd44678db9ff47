"""Arithmetic, logic and comparison.

Approximate instructions give the correctly rounded result; a GPU may differ from it in the last places.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, instruction
from emulator.ptx.parser import Instruction
from emulator.ptx.scalars import (
    BITS,
    PACKED,
    SIGNED,
    UNSIGNED,
    Array,
    decode,
    encode,
    fused_multiply_add,
)

FLOATS = ("f16", "bf16", "f32", "f64")


@instruction("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max")
def _arithmetic(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind, operands = current.parts[-1], current.operands
    if kind in PACKED:
        _packed(machine, current, lanes)
        return
    if kind in FLOATS:
        values = [flushed(machine.read(operand, kind, lanes), current) for operand in operands[1:]]
        result = flushed(float_result(current, kind, values), current)
        machine.write(operands[0], saturated(result, current), kind, lanes)
        return
    wide = "wide" in current.parts
    result_kind = f"{kind[0]}{2 * BITS[kind]}" if wide else kind
    values = [machine.read(operand, kind, lanes) for operand in operands[1:3]]
    if wide:
        values = [value.astype(np.dtype(f"{'i' if kind[0] == 's' else 'u'}{BITS[kind] // 4}")) for value in values]
    values += [machine.read(operand, result_kind, lanes) for operand in operands[3:]]
    machine.write(operands[0], _integer_result(current, kind, values), result_kind, lanes)


def float_result(current: Instruction, kind: str, values: list[Array]) -> Array:
    """One rounding in fp32 and fp64; 16-bit types are computed in a wider one and rounded when they are written."""
    name = current.name
    if name in ("min", "max"):
        return _float_extreme(name, "NaN" in current.parts, values)
    if kind in ("f16", "bf16"):
        values = [value.astype(np.float64) for value in values]
    if name in ("fma", "mad"):
        fused = kind == "f32"
        return fused_multiply_add(*values) if fused else values[0] * values[1] + values[2]
    if name == "div":
        return values[0] / values[1]
    return {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name](*values)


def _float_extreme(name: str, keep_nan: bool, values: list[Array]) -> Array:
    numpy_name = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}[name][keep_nan]
    result = values[0]
    for value in values[1:]:
        result = numpy_name(result, value)
    return result


def flushed(values: Array, current: Instruction) -> Array:
    """Subnormal fp32 numbers to zero where the instruction says .ftz."""
    if "ftz" not in current.parts or values.dtype != np.float32:
        return values
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)


def saturated(values: Array, current: Instruction) -> Array:
    """Clamped to [0, 1], NaN to 0, where the instruction says .sat."""
    if "sat" not in current.parts:
        return values
    return np.where(np.isnan(values), values.dtype.type(0), np.clip(values, 0, 1))


def _packed(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """Two numbers in a register, each treated alone."""
    packed = current.parts[-1]
    kind, bits = PACKED[packed], BITS[packed]
    half = bits // 2
    words = [machine.read(operand, f"b{bits}", lanes) for operand in current.operands[1:]]
    word = words[0].dtype.type
    out = []
    for i in range(2):
        values = [decode((value >> word(i * half)).astype(UNSIGNED[half]), kind) for value in words]
        out.append(encode(saturated(float_result(current, kind, values), current), kind).astype(word) << word(i * half))
    machine.write(current.operands[0], out[0] | out[1], f"b{bits}", lanes)


def _integer_result(current: Instruction, kind: str, values: list[Array]) -> Array:
    name = current.name
    if name in ("min", "max"):
        return (np.minimum if name == "min" else np.maximum)(*values)
    if name in ("div", "rem"):
        return _divide(name, *values)
    if name in ("add", "sub"):
        exact = {"add": np.add, "sub": np.subtract}[name]
        return _saturated_integer(exact, values, kind) if "sat" in current.parts else exact(*values)
    product = _high_half(values[0], values[1], kind) if "hi" in current.parts else values[0] * values[1]
    return product + values[2] if name in ("mad", "fma") else product


def _saturated_integer(exact: Any, values: list[Array], kind: str) -> Array:
    info = np.iinfo(values[0].dtype)
    return np.clip(exact(*(value.astype(np.int64) for value in values)), info.min, info.max).astype(values[0].dtype)


def _high_half(a: Array, b: Array, kind: str) -> Array:
    bits = BITS[kind]
    if bits < 64:
        wide = np.int64 if kind[0] == "s" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    product = a.astype(object) * b.astype(object)
    return np.array([int(value) >> 64 for value in product.reshape(-1)], dtype=object).astype(a.dtype)


def _divide(name: str, a: Array, b: Array) -> Array:
    """C's division: towards zero. PTX leaves division by zero open; here it is division by one."""
    b = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // b
    if a.dtype.kind == "i":
        quotient = quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)
    return quotient if name == "div" else a - quotient * b


UNARY = {
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@instruction(*UNARY)
def _unary(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    value = flushed(machine.read(current.operands[1], kind, lanes), current)
    result = UNARY[current.name](value.astype(np.float64))
    if kind == "f32":
        result = flushed(result.astype(np.float32), current)
    machine.write(current.operands[0], result, kind, lanes)


@instruction("neg", "abs", "not", "cnot")
def _sign(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    packed = {"f16x2": np.uint32(0x80008000), "bf16x2": np.uint32(0x80008000)}.get(kind)
    if packed is not None:
        bits = machine.read(current.operands[1], "b32", lanes)
        machine.write(current.operands[0], bits ^ packed if current.name == "neg" else bits & ~packed, "b32", lanes)
        return
    value = machine.read(current.operands[1], kind, lanes)
    if current.name == "not":
        result = ~value
    elif current.name == "cnot":
        result = (value == 0).astype(value.dtype)
    else:
        result = np.negative(value) if current.name == "neg" else np.abs(value)
    machine.write(current.operands[0], result, kind, lanes)


@instruction("copysign")
def _copysign(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    sign, size = (machine.read(operand, kind, lanes) for operand in current.operands[1:])
    machine.write(current.operands[0], np.copysign(size, sign), kind, lanes)


LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction(*LOGIC)
def _logic(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    a, b = (machine.read(operand, kind, lanes) for operand in current.operands[1:])
    machine.write(current.operands[0], LOGIC[current.name](a, b), kind, lanes)


@instruction("shl", "shr")
def _shift(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    bits = BITS[kind]
    value = machine.read(current.operands[1], kind, lanes)
    by = machine.read(current.operands[2], "u32", lanes)
    clamped = np.minimum(by, bits - 1).astype(value.dtype)
    if current.name == "shr" and kind[0] == "s":
        result = value >> clamped
    else:
        shifted = value << clamped if current.name == "shl" else value >> clamped
        result = np.where(by >= bits, value.dtype.type(0), shifted)
    machine.write(current.operands[0], result, kind, lanes)


COMPARE = {
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater},
    **{"ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal},
}


def compare(name: str, a: Array, b: Array) -> Array:
    """A comparison of setp: ordered, or with a trailing u true for NaN, or num and nan."""
    if a.dtype.kind != "f":
        return COMPARE[name](a, b)
    unordered = np.isnan(a) | np.isnan(b)
    if name in ("nan", "num"):
        return unordered if name == "nan" else ~unordered
    if name in COMPARE:
        return COMPARE[name](a, b) & ~unordered
    return COMPARE[name[:-1]](a, b) | unordered


@instruction("setp")
def _set_predicate(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = current.parts[-1]
    a, b = (machine.read(operand, kind, lanes) for operand in current.operands[1:3])
    result = compare(current.parts[1], a, b)
    results = [result, ~result]
    if len(current.operands) > 3:
        combine = LOGIC[current.parts[2]]
        third = machine.read(current.operands[3], "pred", lanes)
        results = [combine(value, third) for value in results]
    for target, value in zip(current.operands[0].split("|"), results, strict=False):
        machine.write(target.strip(), value, "pred", lanes)


@instruction("set")
def _set(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    target_kind, kind = current.parts[-2:]
    a, b = (machine.read(operand, kind, lanes) for operand in current.operands[1:3])
    true = compare(current.parts[1], a, b)
    value = true.astype(np.float32) if target_kind[0] == "f" else -true.astype(SIGNED[BITS[target_kind]])
    machine.write(current.operands[0], value, target_kind, lanes)


@instruction("selp")
def _select(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    kind = f"b{BITS[current.parts[-1]]}"
    a, b = (machine.read(operand, current.parts[-1], lanes) for operand in current.operands[1:3])
    chosen = machine.read(current.operands[3], "pred", lanes)
    raw_a, raw_b = encode(a, current.parts[-1]), encode(b, current.parts[-1])
    machine.write(current.operands[0], np.where(chosen, raw_a, raw_b), kind, lanes)
