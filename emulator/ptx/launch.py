"""Runs one kernel launch: arguments to parameter memory, blocks in groups through a machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from emulator.ptx import arithmetic, async_copy, bits, clusters, matrix, phase_barriers, warp  # noqa: F401  (they register instructions)
from emulator.ptx.dependency import Dependency
from emulator.ptx.machine import MAX_STEPS, Machine
from emulator.ptx.memory import Buffer, Memory
from emulator.ptx.ordering import Ordering
from emulator.ptx.parser import Kernel, Variable, parse
from emulator.ptx.scalars import BITS, FLOAT, Array, encode
from emulator.ptx.traffic import TrafficReport

MAX_LANES = 1 << 17
MAX_SHARED = 1 << 28
MAX_THREADS = 1024

Shape = tuple[int, int, int]
Argument = int | float | bytes | np.ndarray | torch.Tensor | Buffer | None


def launch(
    source: str,
    name: str,
    grid: Shape,
    block: Shape,
    arguments: Sequence[Argument],
    *,
    dynamic_bytes: int = 0,
    buffers: Mapping[str, np.ndarray | torch.Tensor] | None = None,
    seed: int = 0,
    resident: int | None = None,
    max_steps: int = MAX_STEPS,
    constants: Collection[str] | None = None,
    cluster: int = 1,
) -> TrafficReport:
    """Execute the entry ``name`` of a PTX module and return what it moved.

    Arguments go to the parameters in order: numbers, arrays and CPU tensors (their address is passed and their elements
    may be accessed, nothing beside them), ``bytes`` for structs. ``buffers`` names further memory that may be accessed,
    such as what the pointers in a struct point to; its names are those of the report. ``seed`` draws the order of
    atomics; ``resident`` blocks run together (default: as many as fit): with 1, no block can wait for a later one.
    ``constants``, where given, makes this a programmatic dependent launch: the buffers of other names belong to the
    previous launch until griddepcontrol.wait. ``cluster`` neighbouring blocks along x are a cluster and run together:
    ``resident`` is rounded down to whole clusters, of which there is at least one.

    Raises PTXError for what would fault on a GPU or has no guaranteed result, ValueError for a misfit launch.
    """
    kernel = parse(source, name)
    _check_shape(grid, block, cluster)
    if len(arguments) > len(kernel.parameters):
        raise ValueError(f"{kernel.name} has {len(kernel.parameters)} parameters, not {len(arguments)}")
    memory_buffers = [buffer_of(key, value) for key, value in (buffers or {}).items()]
    parameters = _pack(kernel, arguments, memory_buffers)
    memory_buffers += [_module_buffer(variable) for variable in kernel.module]
    threads, blocks, report = prod(block), prod(grid), TrafficReport()
    ordering = Ordering(blocks, threads)
    together = resident or _fitting(kernel, threads, dynamic_bytes)
    together = max(together // cluster, 1) * cluster
    with np.errstate(all="ignore"):
        for first in range(0, blocks, together):
            count = min(together, blocks - first)
            memory = Memory(kernel, memory_buffers, parameters, count, threads, dynamic_bytes)
            machine = Machine(kernel, grid, block, first, count, memory, ordering, report, seed, cluster)
            machine.copies = async_copy.AsyncCopies(machine.count)
            machine.phases = phase_barriers.PhaseBarriers(machine)
            machine.clusters = clusters.Clusters(machine)
            ordering.begin(machine, len(memory.shared))
            if constants is not None:
                memory.dependency = Dependency(constants, first, count, threads)
            machine.run(max_steps)
            if memory.dependency is not None:
                memory.dependency.check_end(kernel.instructions[-1])
    return report


def buffer_of(name: str, value: np.ndarray | torch.Tensor) -> Buffer:
    """The memory of an array or CPU tensor, from its first to its last element."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{name} is on {value.device}; the emulator runs on cpu tensors")
        last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        span = (last + 1) * value.element_size() if value.numel() else 0
        return Buffer(name, value.data_ptr(), span, value)
    if any(stride < 0 for stride in value.strides):
        raise ValueError(f"{name} has negative strides")
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.strides, strict=True))
    return Buffer(name, value.ctypes.data, last + value.itemsize if value.size else 0, value)


def _check_shape(grid: Shape, block: Shape, cluster: int) -> None:
    if not 1 <= prod(block) <= MAX_THREADS:
        raise ValueError(f"block = {block}: allowed are 1 to {MAX_THREADS} threads")
    if min(grid) < 1 or grid[0] >= 2**31 or max(grid[1:]) > 65535:
        raise ValueError(f"grid = {grid}: allowed are 1 to (2^31 - 1, 65535, 65535) blocks")
    if not 1 <= cluster <= clusters.MAX_CLUSTER or grid[0] % cluster:
        raise ValueError(f"cluster = {cluster}: allowed are 1 to {clusters.MAX_CLUSTER} blocks that divide {grid[0]}")


def _fitting(kernel: Kernel, threads: int, dynamic_bytes: int) -> int:
    """How many blocks fit into one machine."""
    shared = dynamic_bytes + sum(variable.bytes for variable in kernel.shared)
    return max(1, min(MAX_LANES // threads, MAX_SHARED // max(shared, 1)))


def _pack(kernel: Kernel, arguments: Sequence[Argument], buffers: list[Buffer]) -> Array:
    """Parameter memory; buffers of the arguments are added to ``buffers``."""
    end = max((variable.offset + variable.bytes for variable in kernel.parameters), default=0)
    packed = np.zeros(-(-end // 16) * 16 + 16, np.uint8)
    for variable, argument in zip(kernel.parameters, arguments, strict=False):
        if isinstance(argument, (np.ndarray, torch.Tensor)):
            argument = buffer_of(variable.name, argument)
        if isinstance(argument, Buffer):
            if argument.bytes:
                buffers.append(argument)
            argument = argument.address
        value = _bytes_of(variable, 0 if argument is None else argument)
        if len(value) != variable.bytes:
            raise ValueError(f"parameter {variable.name} takes {variable.bytes} bytes, not {len(value)}")
        packed[variable.offset : variable.offset + variable.bytes] = np.frombuffer(value, np.uint8)
    return packed


def _bytes_of(variable: Variable, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, float) or variable.kind in FLOAT or variable.kind == "bf16":
        kind = variable.kind if variable.kind in FLOAT or variable.kind == "bf16" else f"f{BITS[variable.kind]}"
        return encode(np.array([value], np.float64), kind).tobytes()
    return (int(value) & (2 ** (8 * variable.bytes) - 1)).to_bytes(variable.bytes, "little")


def _module_buffer(variable: Variable) -> Buffer:
    """A variable of the module, fresh for every launch."""
    size = BITS[variable.kind] // 8
    content = np.zeros(max(variable.bytes, 1), np.uint8)
    for i, value in enumerate(variable.values):
        content[i * size : (i + 1) * size] = np.frombuffer((value % 2 ** (8 * size)).to_bytes(size, "little"), np.uint8)
    return Buffer(variable.name, content.ctypes.data, len(content), content)
