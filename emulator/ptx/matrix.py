"""Tensor-core instructions.

Products are exact, the sum over k runs upwards in fp64 (int64 for int8), the addend comes last and the result is
rounded once: the definition that the fiber emulator has as well, so that the two agree. A GPU has an order of its own.
"""

from __future__ import annotations

import re

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.data import address_of, load, store, vector
from emulator.ptx.lanes import Lanes
from emulator.ptx.machine import Machine, warp_instruction
from emulator.ptx.parser import Instruction
from emulator.ptx.scalars import Array, decode, encode

PER_REGISTER = {"f16": 2, "bf16": 2, "tf32": 1, "s8": 4, "u8": 4}
LANE = np.arange(32)
GROUP, MEMBER = LANE // 4, LANE % 4


@warp_instruction("mma")
def _multiply(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """mma.sync.aligned.m16n8kK.row.col.D.A.B.C with A, B of one width."""
    shape = next((part for part in current.parts if re.fullmatch(r"m\d+n\d+k\d+", part)), "")
    result_kind, a_kind, b_kind, addend_kind = current.parts[-4:]
    known = a_kind in PER_REGISTER and b_kind in PER_REGISTER and shape.startswith("m16n8")
    if not known or result_kind != addend_kind or "sp" in current.parts:
        raise PTXError("the emulator knows mma.m16n8 of f16, bf16, tf32, s8 and u8 alone", current)
    depth = int(shape.split("k")[1])
    target, a_names, b_names, addend = (vector(operand) for operand in current.operands)
    a = _fragment_a(machine, a_names, a_kind, depth, lanes)
    b = _fragment_b(machine, b_names, b_kind, depth, lanes)
    total = np.zeros((len(a), 16, 8), np.int64 if a_kind[1:] == "8" else np.float64)
    for k in range(depth):
        total += a[:, :, k, None] * b[:, k, None, :]
    _write_result(machine, target, addend, result_kind, total, lanes)


def _elements(machine: Machine, name: str, kind: str, lanes: Lanes) -> list[Array]:
    """The numbers in one register, lowest first, as [warps, 32]."""
    word = np.broadcast_to(machine.read(name, "b32", lanes), lanes.count).reshape(-1, 32)
    if kind == "tf32":
        return [(word & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)]
    per = PER_REGISTER[kind]
    bits = 32 // per
    pieces = [(word >> np.uint32(bits * i)).astype(f"u{bits // 8}") for i in range(per)]
    wide = np.int64 if per == 4 else np.float64
    return [decode(piece, kind).astype(wide) for piece in pieces]


def _fragment_a(machine: Machine, names: list[str], kind: str, depth: int, lanes: Lanes) -> Array:
    """[warps, 16, depth]: register r holds row GROUP + 8 (r % 2) and the r // 2-th part of k."""
    per = PER_REGISTER[kind]
    out = np.zeros((lanes.count // 32, 16, depth), np.int64 if per == 4 else np.float64)
    for register, name in enumerate(names):
        for i, element in enumerate(_elements(machine, name, kind, lanes)):
            out[:, GROUP + 8 * (register % 2), MEMBER * per + i + 4 * per * (register // 2)] = element
    return out


def _fragment_b(machine: Machine, names: list[str], kind: str, depth: int, lanes: Lanes) -> Array:
    """[warps, depth, 8]: register r holds column GROUP and the r-th part of k."""
    per = PER_REGISTER[kind]
    out = np.zeros((lanes.count // 32, depth, 8), np.int64 if per == 4 else np.float64)
    for register, name in enumerate(names):
        for i, element in enumerate(_elements(machine, name, kind, lanes)):
            out[:, MEMBER * per + i + 4 * per * register, GROUP] = element
    return out


def _write_result(
    machine: Machine, target: list[str], addend: list[str], kind: str, total: Array, lanes: Lanes
) -> None:
    def piece(i: int) -> Array:
        return total[:, GROUP + 8 * (i // 2), MEMBER * 2 + i % 2].reshape(-1)

    if kind == "f16":
        for i, name in enumerate(target):
            word = machine.read(addend[i], "b32", lanes)
            halves = []
            for j in range(2):
                old = decode((word >> np.uint32(16 * j)).astype(np.uint16), "f16").astype(np.float64)
                halves.append(encode(piece(2 * i + j) + old, "f16").astype(np.uint32))
            machine.write(name, halves[0] | halves[1] << np.uint32(16), "b32", lanes)
        return
    for i, name in enumerate(target):
        old = machine.read(addend[i], kind, lanes)
        machine.write(name, piece(i) + old.astype(total.dtype), kind, lanes)


@warp_instruction("ldmatrix")
def _load_matrix(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """Lane l names row l % 8 of matrix l // 8; every lane gets two 16-bit numbers of each matrix."""
    address = np.broadcast_to(address_of(machine, current.operands[1], lanes), lanes.count)
    for matrix, target in enumerate(vector(current.operands[0])):
        owners = _owners(lanes, matrix)
        words = load(machine, "shared", address[_is_owner(lanes, matrix)], 4, 4, owners, current)
        rows = np.stack(words, axis=-1).view(np.uint16).reshape(-1, 8, 8)  # [warps, row, column]
        row, column = _places("trans" in current.parts)
        halves = rows[:, row, column].astype(np.uint32)  # [warps, 2, 32]
        machine.write(target, (halves[:, 0] | halves[:, 1] << np.uint32(16)).reshape(-1), "b32", lanes)


@warp_instruction("stmatrix")
def _store_matrix(machine: Machine, current: Instruction, lanes: Lanes) -> None:
    """The reverse of ldmatrix."""
    address = np.broadcast_to(address_of(machine, current.operands[0], lanes), lanes.count)
    for matrix, source in enumerate(vector(current.operands[1])):
        word = np.broadcast_to(machine.read(source, "b32", lanes), lanes.count).reshape(-1, 32)
        rows = np.empty((len(word), 8, 8), np.uint16)
        row, column = _places("trans" in current.parts)
        rows[:, row, column] = np.stack([word, word >> np.uint32(16)], axis=1).astype(np.uint16)
        words = list(rows.reshape(-1, 8).view(np.uint32).T)
        store(machine, "shared", address[_is_owner(lanes, matrix)], 4, words, _owners(lanes, matrix), current)


def _is_owner(lanes: Lanes, matrix: int) -> Array:
    """Lanes that name the rows of a matrix."""
    return np.arange(lanes.count) % 32 // 8 == matrix


def _owners(lanes: Lanes, matrix: int) -> Lanes:
    return lanes.where(_is_owner(lanes, matrix))


def _places(transposed: bool) -> tuple[Array, Array]:
    """Rows and columns [2, 32] of the two numbers of every lane."""
    row, column = np.stack([GROUP, GROUP]), np.stack([MEMBER * 2, MEMBER * 2 + 1])
    return (column, row) if transposed else (row, column)
