"""Which implementation runs a call: compiled kernels for CPU or CUDA, Triton kernels, or plain PyTorch."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from incline_fast.maps import AffineMap
from incline_fast.ops._arguments import DECODE_TOKENS, num_rows
from incline_fast.ops._extension import CUDA_EXTENSION, CUDA_PROBLEM, EXTENSION, TRITON, batch_invariant

__all__ = [
    "BACKENDS",
    "Backend",
    "Route",
    "choose",
    "differentiates",
    "explain",
    "has_kernels",
    "route_of",
    "triton_ops",
]

Backend = Literal["auto", "cpu", "cuda", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "cuda", "triton", "reference")
Route = Literal["cpu", "cuda", "triton", "reference"]


def choose(
    device: torch.device, backend: str, num_tokens: int = 1, gradient: bool = False, alike: bool = False
) -> Route:
    """Which implementation runs a call on ``device``.

    ``gradient``: autograd is to record it. ``alike``: what :func:`_are_alike` says, for more than a decode step.

    Raises:
        ValueError: unknown backend; a device for which the backend has no kernels; a backend that is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend is "{backend}"; allowed: {", ".join(BACKENDS)}')
    if backend == "reference":
        return "reference"
    if backend == "auto":
        return _automatic(device, num_tokens, gradient, alike)
    if missing := _missing(backend, gradient):
        raise ValueError(missing)
    served = "cpu" if backend == "cpu" else "cuda"
    if device.type != served:
        raise ValueError(f'x is on device "{device}"; backend="{backend}" serves {served.upper()} tensors only')
    return "cpu" if backend == "cpu" else "cuda" if backend == "cuda" else "triton"


def route_of(x: Tensor, residual: Tensor | None, map: AffineMap, backend: str, gradient: bool) -> Route:
    """:func:`choose` for a call on ``x``, with the common case first: checks are a noticeable part of a small call."""
    if backend == "auto" and x.is_cpu and EXTENSION is not None:
        return "cpu"
    tokens, alike = num_rows(x), False
    if tokens > DECODE_TOKENS and (residual is None or residual.dtype == x.dtype):
        alike = _are_alike(x.dtype, map.dtype, map.num_maps)
    return choose(x.device, backend, tokens, gradient, alike)


def _are_alike(dtype: torch.dtype, map_dtype: torch.dtype, num_maps: int) -> bool:
    """Whether torch's product of 16-bit operands loses no more than an unfused layer, where the residual has x's type:
    the map has it too and serves all rows."""
    return num_maps == 1 and map_dtype == dtype and dtype in (torch.bfloat16, torch.float16)


def _automatic(device: torch.device, num_tokens: int, gradient: bool, alike: bool) -> Route:
    if device.type == "cpu":
        return "cpu" if EXTENSION is not None else "reference"
    triton = TRITON and not gradient
    # Of operands that are not alike Triton's form takes torch's product in fp32, and the CUDA kernels have none.
    cuda = num_tokens <= DECODE_TOKENS or alike or not triton or batch_invariant()
    if device.type == "cuda" and CUDA_EXTENSION is not None and cuda:
        return "cuda"
    if device.type == "cuda" and triton:
        return "triton"
    raise ValueError(
        f'x is on device "{device}"; backend="auto" has {_available(device, gradient)}. '
        'Move the tensors, or ask for plain PyTorch with backend="reference".'
    )


def _available(device: torch.device, gradient: bool) -> str:
    if device.type != "cuda":
        return 'kernels for "cpu" and "cuda" only'
    triton = "those of Triton have no gradient" if TRITON and gradient else "Triton is not installed"
    return f'kernels for "cpu" only ({CUDA_PROBLEM}; {triton})'


def _missing(backend: str, gradient: bool) -> str:
    if backend == "cpu" and EXTENSION is None:
        return (
            'backend="cpu" needs the compiled extension, and this is a pure-Python installation; '
            'reinstall without INCLINE_FAST_BUILD=0, or use backend="reference"'
        )
    if backend == "cuda" and CUDA_EXTENSION is None:
        return f'backend="cuda" has no kernels: {CUDA_PROBLEM}'
    if backend == "triton" and not TRITON:
        return 'backend="triton" needs Triton: pip install triton'
    if backend == "triton" and gradient:
        return 'backend="triton" has no gradient, and an input requires one; use "cuda" or "reference"'
    return ""


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" finds kernels for a residual stream of ``dtype`` on ``device``, or the reference on the CPU."""
    if device.type == "cpu":
        return True
    return device.type == "cuda" and (CUDA_EXTENSION is not None or TRITON) and dtype is not torch.float64


def triton_ops() -> ModuleType:
    """The Triton forms of the ops, with the arguments of ``torch.ops.incline_fast.*``; imports Triton."""
    return import_module("incline_fast.ops.triton_kernels.affine_norm")


def differentiates(*arguments: Tensor | AffineMap | float | None) -> bool:
    """Whether autograd, where it is enabled, would record a call with these arguments."""
    for argument in arguments:
        tensors = (argument.down, argument.up) if isinstance(argument, AffineMap) else (argument,)
        if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors):
            return True
    return False


def explain(
    backend: str = "auto",
    *,
    device: torch.device | str = "cpu",
    num_tokens: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    map_dtype: torch.dtype | None = None,
    num_maps: int = 1,
) -> str:
    """Say which implementation ``affine_rms_norm`` and ``affine_layer_norm`` would run, and why.

    Args:
        backend: as passed to the op.
        device: device of the op's tensors.
        num_tokens: rows of x.
        dtype: of x and of the residual.
        map_dtype: of the map, if that is another one.
        num_maps: maps among which a ``row_map`` chooses.

    Raises:
        ValueError: as the op itself would.
    """
    alike = _are_alike(dtype, map_dtype or dtype, num_maps)
    route = choose(torch.device(device), backend, num_tokens, alike=alike)
    if route == "reference":
        why = 'backend="reference" was asked for' if backend == "reference" else "no compiled extension is installed"
        return f"reference (plain PyTorch): {why}"
    if route == "cpu":
        isa = torch.ops.incline_fast.cpu_isa()
        return (
            f"cpu (compiled, {isa}, {torch.get_num_threads()} threads): {EXTENSION} is loaded. AffineMap passes its "
            "packed panels, made once; raw [G, N, K] tensors given to torch.ops.incline_fast.* are packed anew in "
            "every call"
        )
    why = _why_on_gpu(route, num_tokens) if backend == "auto" else f'backend="{backend}" was asked for'
    return f"{route}: {why}. {_bits_on_gpu(route, num_tokens)}This choice has not yet been measured on a GPU"


def _why_on_gpu(route: str, num_tokens: int) -> str:
    if route == "cuda":
        if not TRITON:
            return f"{CUDA_EXTENSION} is loaded, and Triton is not installed"
        if num_tokens > DECODE_TOKENS:
            if not batch_invariant():
                return f"{CUDA_EXTENSION} is loaded, and {num_tokens} tokens and one map have the same 16-bit type"
            return f"{CUDA_EXTENSION} is loaded, and set_batch_invariant(True) keeps to it for {num_tokens} tokens"
        return f"{CUDA_EXTENSION} is loaded, and {num_tokens} tokens are a decode step (up to {DECODE_TOKENS})"
    if CUDA_EXTENSION is None:
        return f"Triton is installed, and there are no CUDA kernels: {CUDA_PROBLEM}"
    return f"Triton is installed, and {num_tokens} tokens are more than a decode step (up to {DECODE_TOKENS})"


def _bits_on_gpu(route: str, num_tokens: int) -> str:
    if batch_invariant():
        return "A row's bits do not depend on the number of tokens (set_batch_invariant(True)). "
    if num_tokens > DECODE_TOKENS:
        return "With one map the product is torch's, and its rounding may depend on the number of tokens. "
    if route == "cuda" and num_tokens > 1:
        return (
            "With one map the product may be torch's, depending on the map's shape (docs/gpu_design.md), and its "
            "rounding may depend on the number of tokens. "
        )
    return ""
