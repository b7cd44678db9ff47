"""Machine code of the Triton kernels for GPUs that nobody here has: it exists, spills nothing, and loads wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from emulation.machine_code import KernelCode, launch_bounds, read_cubin
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from incline_fast.triton_kernels._decode import MAX_TOKENS_DENSE, MAX_TOKENS_LOW_RANK, decode
from incline_fast.triton_kernels._elimination import WIDTH, factor, invert
from incline_fast.triton_kernels._product import block_depth, operand
from incline_fast.triton_kernels._rows import WARPS, epilogue

pytestmark = pytest.mark.gpu_emulated
NVIDIA = [80, 90, 100]
KINDS = {
    "bf16": ("*bf16", "*bf16", False),
    "bf16_residual": ("*bf16", "*bf16", True),
    "bf16_fp32": ("*fp32", "*bf16", True),
    "fp16": ("*fp16", "*fp16", False),
    "fp16_fp32": ("*fp32", "*fp16", True),
    "fp32": ("*fp32", "*fp32", True),
    "int8": ("*bf16", "*i8", False),
}
"""(activations, map, with a residual)"""
DTYPES = {"*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp32": torch.float32, "*i8": torch.int8}
NUMBERS = {"alpha": "fp32", "beta": "fp32", "eps": "fp32", "weight_offset": "fp32"}


def compile_for(
    target: GPUTarget, kernel: Any, pointers: dict[str, str], constants: dict[str, Any], **options: Any
) -> Any:
    """The kernel with aligned pointers and sizes that are multiples of 16; pointers that are not named are absent."""
    function = kernel.fn if hasattr(kernel, "configs") else kernel
    signature: dict[str, str] = {}
    absent: dict[str, Any] = {}
    for name in function.arg_names:
        if name in pointers:
            signature[name] = pointers[name]
        elif name in constants or not _is_number(name):
            signature[name], absent[name] = "constexpr", constants.get(name)
        else:
            signature[name] = NUMBERS.get(name, "i32")
    aligned = [name for name in signature if name in pointers or name.endswith("stride") or name in ("hidden", "rank")]
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(function, signature, absent, attributes)
    return triton.compile(source, target=target, options=options)


def _is_number(name: str) -> bool:
    sizes = ("num_tokens", "hidden", "rank", "num_maps", "size", "first")
    return name in NUMBERS or name in sizes or name.endswith(("_stride", "_row", "_column"))


def compile_decode(target: GPUTarget, kind: str, low_rank: bool, block: int, stages: int) -> Any:
    activations, weights, residual = KINDS[kind]
    value = torch.float32 if residual else DTYPES[activations]
    stream, factor = operand(value, DTYPES[weights]), operand(torch.float32, DTYPES[weights])
    pointers = dict.fromkeys(("x", "weight", "y", "edited", "bias"), activations) | {"up": weights}
    pointers |= {"z": "*fp32", "image": "*fp32", "counters": "*i32", "row_map": "*i32", "row_alpha": "*fp32"}
    pointers |= {"residual": activations} if residual else {}
    pointers |= {"down": weights} if low_rank else {}
    if weights == "*i8":
        pointers |= {"up_scale": "*fp32"} | ({"down_scale": "*fp32"} if low_rank else {})
    constants = {
        "TOKENS": MAX_TOKENS_LOW_RANK if low_rank else MAX_TOKENS_DENSE,
        "SLOTS": 3,
        "SPLITS": 4,
        "BLOCK_N": block,
        "BLOCK_K": block_depth(stream, factor if low_rank else stream),
        "OPERAND": stream[0],
        "PARTS": stream[1],
        "FACTOR_OPERAND": factor[0],
        "FACTOR_PARTS": factor[1],
        "CENTRE": True,
        "BLOCK_D": 4096,
        "RESIDENT": True,
    }
    return compile_for(target, decode, pointers, constants, num_warps=WARPS, num_stages=stages)


def judged(kernel: Any, arch: int, folder: Path) -> KernelCode:
    """The kernel's code, which the gate lets pass: no spills, no stack."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    (code,) = read_cubin(path, f"sm_{arch}", launch_bounds(kernel.asm["ptx"]))
    assert code.complaints() == []
    return code


@pytest.mark.parametrize("arch", NVIDIA)
@pytest.mark.parametrize("low_rank", [False, True], ids=["dense", "low_rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_decode(kind: str, low_rank: bool, arch: int, tmp_path: Path) -> None:
    """The widest tiles with every option, which need the most registers; wide blocks where all GPUs are alike."""
    for block, stages in ((16, 6), (32, 3)) if arch == 90 else ((32, 3),):
        kernel = compile_decode(GPUTarget("cuda", arch, 32), kind, low_rank, block, stages)
        code = judged(kernel, arch, tmp_path)
        assert code.wide_loads
        assert (code.matrix_products > 0) == (kind != "fp32")


@pytest.mark.parametrize("arch", NVIDIA)
def test_the_others(arch: int, tmp_path: Path) -> None:
    target = GPUTarget("cuda", arch, 32)
    pointers = dict.fromkeys(("x", "residual", "weight", "norm_bias", "y", "edited", "bias"), "*bf16")
    pointers |= {"image": "*fp32", "row_map": "*i32"}
    for block, resident in ((4096, True), (4096, False)):
        constants = {"CENTRE": True, "BLOCK_D": block, "RESIDENT": resident}
        assert judged(compile_for(target, epilogue, pointers, constants, num_warps=WARPS), arch, tmp_path).wide_loads
    for dtype in ("*fp32", "*fp64"):
        for kernel in (factor, invert):
            pointers = {"source": dtype, "result": dtype, "info": "*i32"}
            constants = {"SIZE": 128, "WIDTH": WIDTH}
            judged(compile_for(target, kernel, pointers, constants, num_warps=8), arch, tmp_path)


@pytest.mark.parametrize("low_rank", [False, True], ids=["dense", "low_rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_amd(kind: str, low_rank: bool) -> None:
    """Compiles for gfx942 (MI300); nothing of it has been executed."""
    kernel = compile_decode(GPUTarget("hip", "gfx942", 64), kind, low_rank, 16, 2)
    assert kernel.asm["hsaco"][:4] == b"\x7fELF"
    assert ".amdgcn_target" in kernel.asm["amdgcn"]
