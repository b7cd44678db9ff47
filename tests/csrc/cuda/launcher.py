"""Runs the launchers of csrc/cuda on CPU tensors: their kernels as fibers, or as the PTX that nvcc makes of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from op_cases import Case
from torch import Tensor

from emulator import ptx
from emulator.build import CSRC, FiberLibrary, Sanitizer, load_fibers
from emulator.build import ptx as compile_ptx

# The tests bring their own counters.
SOURCES = sorted(path for path in (CSRC / "cuda").rglob("*.cu") if path.name != "ticket_pool.cu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8]  # the order of enum class DType
Int64 = ctypes.c_int64
Pointer = ctypes.c_void_p


class Rows(ctypes.Structure):
    _fields_ = (
        ("data", Pointer),
        ("dtype", ctypes.c_int8),
        ("ndim", Int64),
        ("sizes", ctypes.POINTER(Int64)),
        ("strides", ctypes.POINTER(Int64)),
    )


class Maps(ctypes.Structure):
    _fields_ = (
        ("data", Pointer),
        ("dtype", ctypes.c_int8),
        ("packed", ctypes.c_bool),
        *((name, Int64) for name in ("columns", "depth", "map_stride", "column_stride", "depth_stride")),
        ("scale", Pointer),
    )


class AffineNorm(ctypes.Structure):
    _fields_ = (
        ("norm", ctypes.c_int8),
        ("num_rows", Int64),
        ("hidden_size", Int64),
        *((name, Rows) for name in ("x", "residual", "edited", "y", "weight", "norm_bias", "bias")),
        ("down", Maps),
        ("up", Maps),
        ("row_alpha", Rows),
        ("row_beta", Rows),
        ("row_map", Pointer),
        ("row_map_stride", Int64),
        ("num_maps", Int64),
        *((name, ctypes.c_double) for name in ("alpha", "beta", "eps", "weight_offset")),
    )


class LaunchRecord(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("cluster", ctypes.c_uint),
        ("dynamic_bytes", ctypes.c_longlong),
        ("parameter", Pointer),
        ("parameter_bytes", ctypes.c_longlong),
    )


def rows(tensor: Tensor | None) -> Rows:
    if tensor is None:
        return Rows()
    dims = Int64 * tensor.dim()
    return Rows(
        tensor.data_ptr(), DTYPES.index(tensor.dtype), tensor.dim(), dims(*tensor.shape), dims(*tensor.stride())
    )


def maps(tensor: Tensor | None, scale: Tensor | None) -> Maps:
    if tensor is None:
        return Maps()
    shape = (tensor.shape[1], tensor.shape[2], *tensor.stride())
    scale_pointer = None if scale is None else scale.data_ptr()
    return Maps(tensor.data_ptr(), DTYPES.index(tensor.dtype), False, *shape, scale_pointer)


@cache
def library(sanitizer: Sanitizer = "none") -> FiberLibrary:
    """The launchers with their kernels as fibers."""
    return load_fibers([*SOURCES, Path(__file__).with_name("bindings.cpp")], sanitizer=sanitizer)


@dataclass
class Call:
    """A case on the device: its outputs, its workspace, and the tensors that its launches may touch."""

    case: Case
    y: Tensor
    edited: Tensor
    op: AffineNorm
    workspace: Tensor
    tickets: Tensor
    mapped: Tensor | None
    buffers: dict[str, Tensor]
    programmatic: bool = False
    bulk_copies: bool = False

    def plan(self, fibers: FiberLibrary) -> None:
        """Let the library describe the launches; it holds them until the next plan."""
        mapped = None if self.mapped is None else ctypes.byref(rows(self.mapped))
        function = fibers.function("cuda_plan", *[Pointer] * 4, *[ctypes.c_bool] * 2, restype=ctypes.c_char_p)
        workspace = self.workspace.data_ptr() if self.workspace.numel() else None
        options = (self.programmatic, self.bulk_copies)
        raise_if(function(ctypes.byref(self.op), workspace, self.tickets.data_ptr(), mapped, *options))


def raise_if(message: bytes | None) -> None:
    if message is not None:
        raise ValueError(message.decode())


def prepare(
    case: Case,
    *,
    in_place: bool = False,
    mapped: Tensor | None = None,
    sanitizer: Sanitizer = "none",
    programmatic: bool = False,
    bulk_copies: bool = False,
) -> Call:
    """Describe a case to the launcher. In place, x (and the residual) are copied first and then written to.

    With ``bulk_copies`` for a device that has them.
    """
    x, residual = case.x, case.options.get("residual")
    if in_place:
        x = like(x).copy_(x)
        residual = None if residual is None else like(residual).copy_(residual)
        edited = x if residual is None else residual
        y = x if residual is not None else torch.empty_like(x)
    else:
        y, edited = torch.full_like(x, torch.nan), torch.full_like(x if residual is None else residual, torch.nan)
    options = case.options
    op = AffineNorm()
    op.norm, op.hidden_size = int(case.norm == "layer"), x.shape[-1]
    op.num_rows, op.num_maps = x.numel() // x.shape[-1], case.map.num_maps
    op.x, op.residual, op.edited, op.y = rows(x), rows(residual), rows(edited), rows(y)
    op.weight, op.norm_bias, op.bias = rows(case.weight), rows(case.norm_bias), rows(options.get("bias"))
    op.down = maps(case.map.down, case.map.down_scale)
    op.up = maps(case.map.up, case.map.up_scale)
    for name in ("alpha", "beta"):
        value = options.get(name, 1.0)
        if isinstance(value, Tensor):
            setattr(op, f"row_{name}", rows(value))
        setattr(op, name, 1.0 if isinstance(value, Tensor) else value)
    if (row_map := options.get("row_map")) is not None:
        op.row_map, op.row_map_stride = row_map.data_ptr(), row_map.stride(0)
    op.eps = options.get("eps", 1e-5 if case.norm == "layer" else 1e-6)
    op.weight_offset = options.get("weight_offset", 0.0)
    fibers = library(sanitizer)
    bytes_needed = fibers.function("cuda_workspace_bytes", Pointer, restype=ctypes.c_longlong)(ctypes.byref(op))
    # Whatever was in the workspace must not matter: NaN in every float.
    workspace = torch.full((bytes_needed // 4,), torch.nan)
    tickets = torch.zeros(fibers.function("cuda_ticket_count", restype=ctypes.c_int)(), dtype=torch.int32)
    named = {"x": x, "residual": residual, "edited": edited, "y": y, "workspace": workspace, "tickets": tickets}
    named |= {"weight": case.weight, "norm_bias": case.norm_bias, "mapped": mapped}
    named |= {name: getattr(case.map, name) for name in ("down", "up", "down_scale", "up_scale")}
    named |= {name: value for name, value in options.items() if isinstance(value, Tensor) and name != "residual"}
    present = {name: tensor for name, tensor in named.items() if tensor is not None and tensor.numel()}
    # In place, an output is an input under a second name.
    first = {tensor.data_ptr(): name for name, tensor in reversed(present.items())}
    buffers = {name: tensor for name, tensor in present.items() if first[tensor.data_ptr()] == name}
    return Call(case, y, edited, op, workspace, tickets, mapped, buffers, programmatic, bulk_copies)


def like(tensor: Tensor) -> Tensor:
    """Empty memory with the same strides."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def run_fibers(call: Call, *, seed: int = 0, resident: int = 4, sanitizer: Sanitizer = "none") -> tuple[Tensor, Tensor]:
    """(y, r') by fibers; the counters must be back at zero."""
    fibers = library(sanitizer)
    fibers.schedule(seed, resident)
    call.plan(fibers)
    raise_if(fibers.function("cuda_run", restype=ctypes.c_char_p)())
    assert not call.tickets.any(), "a counter did not return to zero"
    return call.y, call.edited


def launches(call: Call) -> Sequence[LaunchRecord]:
    """What the launcher would start."""
    fibers = library()
    call.plan(fibers)
    count = fibers.function("cuda_launch_count", restype=ctypes.c_int)()
    get = fibers.function("cuda_launch", ctypes.c_int, restype=LaunchRecord)
    return [get(index) for index in range(count)]


def run_ptx(call: Call, arch: str, **options: int | None) -> tuple[Tensor, Tensor, ptx.TrafficReport]:
    """(y, r') by the PTX that nvcc makes for ``arch``, and what it moved.

    Of a programmatic call the maps alone may be touched before the launch ahead has ended.
    """
    report = ptx.TrafficReport()
    for launch in launches(call):
        name = launch.kernel.decode()
        argument = ctypes.string_at(launch.parameter, launch.parameter_bytes)
        report += ptx.launch(
            source_of(name, arch),
            name,
            tuple(launch.grid),
            (launch.threads, 1, 1),
            [argument],
            cluster=launch.cluster,
            dynamic_bytes=launch.dynamic_bytes,
            buffers=call.buffers,
            constants=("down", "up") if call.programmatic else None,
            **options,
        )
    assert not call.tickets.any(), "a counter did not return to zero"
    return call.y, call.edited, report


@cache
def source_of(kernel: str, arch: str) -> str:
    """The PTX module that holds a kernel."""
    for source in SOURCES:
        text = compile_ptx(source, arch)
        if f".entry {kernel}(" in text:
            return text
    raise ValueError(f"no source of csrc/cuda has an entry {kernel} for {arch}")
