"""The memories that a kernel sees, with every access checked against their bounds and its alignment.

Global memory is the buffers that were handed to the launch, at their true addresses. Shared and local memory start as
garbage; in generic addressing they lie in windows of their own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from emulator.errors import PTXError
from emulator.ptx.lanes import Lanes
from emulator.ptx.parser import Instruction, Kernel, Variable
from emulator.ptx.scalars import UNSIGNED, Array

if TYPE_CHECKING:
    from emulator.ptx.dependency import Dependency

SHARED_WINDOW = 1 << 60
LOCAL_WINDOW = 1 << 61
GARBAGE = 0xFF  # NaN in every type of float, so that zero times it shows as well
PAGE = 16


@dataclass
class Buffer:
    """A piece of global memory at its true address. ``owner`` keeps it alive."""

    name: str
    address: int
    bytes: int
    owner: object = None
    views: dict[int, Array] = field(default_factory=dict)

    def view(self, size: int) -> Array:
        """As unsigned words of ``size`` bytes, from the multiple of 16 at or below its address."""
        if size not in self.views:
            span = -(-(self.bytes + self.shift) // PAGE) * PAGE
            raw = (ctypes.c_uint8 * span).from_address(self.address - self.shift)
            self.views[size] = np.ctypeslib.as_array(raw).view(UNSIGNED[8 * size])
        return self.views[size]

    @property
    def shift(self) -> int:
        return self.address % PAGE


@dataclass
class Access:
    """Where the elements of one access lie: part of the lanes, a space, and byte offsets into it."""

    lanes: Lanes
    chosen: slice | Array
    space: str
    buffer: Buffer | None
    words: Array
    offset: Array


class Memory:
    """Global buffers, and the shared, local and parameter memory of the blocks of one machine."""

    dependency: Dependency | None = None  # of a programmatic launch

    def __init__(
        self,
        kernel: Kernel,
        buffers: Sequence[Buffer],
        parameters: Array,
        blocks: int,
        threads: int,
        dynamic_bytes: int,
    ) -> None:
        self.buffers = sorted(buffers, key=lambda buffer: buffer.address)
        self.dynamic_bytes = dynamic_bytes
        self.parameters = parameters
        self.symbols: dict[str, int] = {variable.name: variable.offset for variable in kernel.parameters}
        for buffer in self.buffers:
            self.symbols.setdefault(buffer.name, buffer.address)
        static = [variable for variable in kernel.shared if variable.count]
        dynamic = [variable for variable in kernel.shared if not variable.count]
        used = self._lay_out(static, 0)
        start = -(-used // PAGE) * PAGE if dynamic_bytes else used
        for variable in dynamic:
            self.symbols[variable.name] = start
        self.shared_bytes = start + dynamic_bytes
        self.local_bytes = self._lay_out(kernel.local, 0)
        self.shared_stride, self.shared = _garbage(blocks, self.shared_bytes)
        self.local_stride, self.local = _garbage(blocks * threads, self.local_bytes)

    def _lay_out(self, variables: Sequence[Variable], start: int) -> int:
        for variable in variables:
            start = -(-start // variable.align) * variable.align
            self.symbols[variable.name] = start
            start += variable.bytes
        return start

    def locate(
        self, space: str, address: Array, size: int, lanes: Lanes, blocks: Array, instruction: Instruction
    ) -> list[Access]:
        """Check [address, address + size) of every lane; usually one access, more if lanes hit several buffers.

        ``blocks`` is the block of every thread of the machine.
        """
        return self.locate_many(space, address, size, np.array([size]), lanes, blocks, instruction)

    def locate_many(
        self, space: str, address: Array, align: int, size: Array, lanes: Lanes, blocks: Array, instruction: Instruction
    ) -> list[Access]:
        """Likewise for sizes that are multiples of the alignment, one for each lane or for all."""
        address = np.broadcast_to(address, lanes.count)
        if (address % np.uint64(align)).any():
            _fail(f"misaligned access of {align} bytes", address, address % np.uint64(align) != 0, lanes, instruction)
        if space == "generic":
            space, address = self._generic(address, lanes, instruction)
        offset = address.astype(np.int64)
        if space == "param":
            return [Access(lanes, slice(None), "param", None, self.parameters, offset)]
        if space == "shared":
            offset = np.where(offset >= SHARED_WINDOW, offset - SHARED_WINDOW, offset)
            return self._private(space, offset, self.shared_bytes, size, lanes, blocks[lanes.index], instruction)
        if space == "local":
            offset = np.where(offset >= LOCAL_WINDOW, offset - LOCAL_WINDOW, offset)
            return self._private(space, offset, self.local_bytes, size, lanes, lanes.numbers, instruction)
        accesses = self._global(offset, size, lanes, instruction)
        if self.dependency is not None:
            for access in accesses:
                self.dependency.check(access, instruction)
        return accesses

    def _generic(self, address: Array, lanes: Lanes, instruction: Instruction) -> tuple[str, Array]:
        shared = (address >= np.uint64(SHARED_WINDOW)) & (address < np.uint64(LOCAL_WINDOW))
        local = address >= np.uint64(LOCAL_WINDOW)
        if not shared.any() and not local.any():
            return "global", address
        for space, inside in (("shared", shared), ("local", local)):
            if inside.all():
                return space, address
        return _fail("one generic access to several memories", address, shared, lanes, instruction)

    def _private(
        self, space: str, offset: Array, limit: int, size: Array, lanes: Lanes, rows: Array, instruction: Instruction
    ) -> list[Access]:
        outside = (offset < 0) | (offset + size > limit)
        if outside.any():
            _fail(f"out of bounds of {limit} bytes of {space} memory", offset, outside, lanes, instruction)
        memory, stride = (self.shared, self.shared_stride) if space == "shared" else (self.local, self.local_stride)
        return [Access(lanes, slice(None), space, None, memory, rows * stride + offset)]

    def _global(self, address: Array, size: Array, lanes: Lanes, instruction: Instruction) -> list[Access]:
        end = address + size
        low, high = int(address.min()), int(end.max())
        for buffer in self.buffers:
            if buffer.address <= low and high <= buffer.address + buffer.bytes:
                offset = address - (buffer.address - buffer.shift)
                return [Access(lanes, slice(None), "global", buffer, buffer.view(1), offset)]
        out, left = [], np.ones(len(address), np.bool_)
        for buffer in self.buffers:
            inside = left & (address >= buffer.address) & (end <= buffer.address + buffer.bytes)
            if inside.any():
                offset = address[inside] - (buffer.address - buffer.shift)
                out.append(
                    Access(lanes.where(inside), np.flatnonzero(inside), "global", buffer, buffer.view(1), offset)
                )
                left &= ~inside
        if left.any():
            _fail("out of bounds of all global buffers", address, left, lanes, instruction)
        return out


def gather(access: Access, element: int, size: int) -> Array:
    """Raw words of ``size`` bytes, the element-th of each lane's access."""
    words = access.buffer.view(size) if access.buffer is not None else access.words.view(UNSIGNED[8 * size])
    return words[access.offset // size + element]


def scatter(access: Access, element: int, size: int, values: Array) -> None:
    """Store raw words; where lanes meet at one address the last one wins."""
    words = access.buffer.view(size) if access.buffer is not None else access.words.view(UNSIGNED[8 * size])
    words[access.offset // size + element] = values[access.chosen] if values.shape != (1,) else values


def _garbage(rows: int, limit: int) -> tuple[int, Array]:
    stride = max(-(-limit // PAGE) * PAGE, PAGE)
    return stride, np.full(rows * stride // 8, int.from_bytes([GARBAGE] * 8), np.uint64).view(np.uint8)


def _fail(problem: str, address: Array, wrong: Array, lanes: Lanes, instruction: Instruction) -> tuple[str, Array]:
    first = int(np.flatnonzero(wrong)[0])
    thread = int(lanes.numbers[first])
    raise PTXError(f"{problem}: thread {thread} of the launch, address {int(address[first]):#x}", instruction)
