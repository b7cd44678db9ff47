"""The Triton kernels compiled for GPUs that need not be present: what machine_code.py judges and docs/gpu.md shows.

A variant is a kernel with every option that costs registers (a residual, maps per row, a bias, LayerNorm) in one of the
configurations that the autotuner may choose.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from emulator.machine_code import ARCHITECTURES, KernelCode, launch_bounds, read_cubin
from emulator.triton_driver import emulated
from incline_fast.ops.triton_kernels._decode import MAX_TOKENS_DENSE, MAX_TOKENS_LOW_RANK, decode, suitable
from incline_fast.ops.triton_kernels._elimination import WIDTH, factor, invert
from incline_fast.ops.triton_kernels._product import block_depth, operand
from incline_fast.ops.triton_kernels._rows import WARPS, epilogue

AMD = "gfx942"
KINDS = {
    "bf16": ("*bf16", "*bf16", False),
    "bf16 + bf16": ("*bf16", "*bf16", True),
    "fp32 + fp32, bf16 map": ("*fp32", "*bf16", True),
    "fp16": ("*fp16", "*fp16", False),
    "fp32 + fp32, fp16 map": ("*fp32", "*fp16", True),
    "fp32 + fp32, fp32 map": ("*fp32", "*fp32", True),
    "bf16, int8 map": ("*bf16", "*i8", False),
}
"""Activations (+ residual) and map by name: (type of the activations, type of the map, whether there is a residual)."""
DTYPES = {"*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp32": torch.float32, "*i8": torch.int8}
NUMBERS = {"alpha": "fp32", "beta": "fp32", "eps": "fp32", "weight_offset": "fp32"}
TUNINGS = tuple(decode.configs)


@dataclass(frozen=True)
class Variant:
    """A kernel with the types of its pointers (those that are not named are absent) and its constants."""

    name: str
    kernel: Any
    pointers: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = WARPS
    stages: int = 3
    wide: bool = True
    matrix: bool = False

    def compile(self, target: GPUTarget) -> Any:
        """The kernel with aligned pointers and sizes that are multiples of 16."""
        function = self.kernel.fn if hasattr(self.kernel, "configs") else self.kernel
        signature: dict[str, str] = {}
        absent: dict[str, Any] = {}
        for name in function.arg_names:
            if name in self.pointers:
                signature[name] = self.pointers[name]
            elif name in self.constants or not _is_number(name):
                signature[name], absent[name] = "constexpr", self.constants.get(name)
            else:
                signature[name] = NUMBERS.get(name, "i32")
        aligned = [name for name in signature if name in (*self.pointers, "hidden", "rank") or name.endswith("stride")]
        attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        source = ASTSource(function, signature, absent, attributes)
        return triton.compile(source, target=target, options={"num_warps": self.warps, "num_stages": self.stages})


def _is_number(name: str) -> bool:
    sizes = ("num_tokens", "hidden", "rank", "num_maps", "size", "first")
    return name in NUMBERS or name in sizes or name.endswith(("_stride", "_row", "_column"))


def variants() -> Iterator[Variant]:
    """Every variant, in the order of the page."""
    for low_rank in (False, True):
        for kind in KINDS:
            yield from decode_variants(kind, low_rank)
    pointers = dict.fromkeys(("x", "residual", "weight", "norm_bias", "y", "edited", "bias"), "*bf16")
    pointers |= {"mapped": "*fp32", "row_map": "*i32"}
    for resident in (True, False):
        constants = {"CENTRE": True, "BLOCK_D": 4096, "RESIDENT": resident}
        name = f"epilogue, bf16 + bf16, {'d = 4096' if resident else 'd > 4096'}"
        yield Variant(name, epilogue, pointers, constants)
    for dtype in ("*fp32", "*fp64"):
        for kernel in (factor, invert):
            pointers = {"source": dtype, "result": dtype, "info": "*i32"}
            constants = {"SIZE": 128, "WIDTH": WIDTH}
            yield Variant(f"{kernel.__name__}, {dtype[1:]}", kernel, pointers, constants, warps=8, wide=False)


def decode_variants(kind: str, low_rank: bool) -> Iterator[Variant]:
    """``decode`` with the widest tile of tokens, once for each configuration that the autotuner may choose."""
    activations, weights, residual = KINDS[kind]
    value = torch.float32 if residual else DTYPES[activations]
    outer, inner = operand(value, DTYPES[weights]), operand(torch.float32, DTYPES[weights])
    depth = block_depth(outer, inner if low_rank else outer)
    pointers = dict.fromkeys(("x", "weight", "y", "edited", "bias"), activations) | {"up": weights}
    pointers |= {"z": "*fp32", "mapped": "*fp32", "counters": "*i32", "row_map": "*i32", "row_alpha": "*fp32"}
    pointers |= {"residual": activations} if residual else {}
    pointers |= {"down": weights} if low_rank else {}
    if weights == "*i8":
        pointers |= {"up_scale": "*fp32"} | ({"down_scale": "*fp32"} if low_rank else {})
    constants = {"TOKENS": MAX_TOKENS_LOW_RANK if low_rank else MAX_TOKENS_DENSE, "SLOTS": 3, "SPLITS": 4}
    constants |= {"BLOCK_K": depth, "OPERAND": outer[0], "PARTS": outer[1]}
    constants |= {"FACTOR_OPERAND": inner[0], "FACTOR_PARTS": inner[1]}
    constants |= {"CENTRE": True, "BLOCK_D": 4096, "RESIDENT": True, "PROGRAMMATIC": False}
    for config in allowed(activations, weights, residual, depth):
        columns = config.kwargs["BLOCK_N"]
        yield Variant(
            f"decode, {'low rank' if low_rank else 'dense'}, {kind}, {columns} x {depth}, {config.num_stages} stages",
            decode,
            pointers,
            {**constants, "BLOCK_N": columns},
            stages=config.num_stages,
            matrix=weights != "*fp32",
        )


def allowed(activations: str, weights: str, residual: bool, depth: int) -> Sequence[triton.Config]:
    """The configurations that are left to the autotuner on an A100, whose shared memory is the smallest of ours."""
    like = {kind: SimpleNamespace(element_size=lambda kind=kind: DTYPES[kind].itemsize) for kind in DTYPES}
    arguments = {"x": like[activations], "residual": like[activations] if residual else None, "up": like[weights]}
    with emulated(80):
        return suitable(list(TUNINGS), arguments, BLOCK_K=depth)


def code_of(variant: Variant, arch: str) -> KernelCode:
    """A variant's machine code; Triton's shared memory is dynamic, and counted."""
    kernel = variant.compile(GPUTarget("cuda", int(arch.removeprefix("sm_")), 32))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        (code,) = read_cubin(path, arch, launch_bounds(kernel.asm["ptx"]))
    return replace(
        code, name=variant.name, shared=kernel.metadata.shared, wants_wide=variant.wide, wants_matrix=variant.matrix
    )


def codes_of(variant: Variant) -> list[KernelCode]:
    """A variant on every architecture of the table."""
    return [code_of(variant, arch) for arch in ARCHITECTURES]


AMD_HEADS = ("kernel", "VGPRs", "AGPRs", "VGPR spills", "SGPR spills", "shared memory, B")


def amd_cells(variant: Variant) -> list[str]:
    """A row of the table of what the AMD back end says of its code."""
    kernel = variant.compile(GPUTarget("hip", AMD, 64))
    if kernel.asm["hsaco"][:4] != b"\x7fELF":
        raise ValueError(f"{variant.name}: the AMD back end gave no ELF file")
    numbers = dict(re.findall(r"^[\s-]+\.([sv]gpr_spill_count|[av]gpr_count):\s+(\d+)$", kernel.asm["amdgcn"], re.M))
    names = ("vgpr_count", "agpr_count", "vgpr_spill_count", "sgpr_spill_count")
    return [f"`{variant.name}`", *(numbers[name] for name in names), str(kernel.metadata.shared)]


def amd_variants() -> Iterator[Variant]:
    """The first configuration of every kind."""
    for low_rank in (False, True):
        for kind in KINDS:
            yield next(decode_variants(kind, low_rank))
