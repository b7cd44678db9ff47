"""Which implementation serves a call: the compiled CPU op or plain PyTorch.

The extension is one shared library, ``incline_fast/_C.abi3.so``; loading it registers ``torch.ops.incline_fast.*``.
A pure-Python installation has no such file and runs the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from incline_fast.maps import AffineMap

__all__ = ["BACKENDS", "EXTENSION", "Backend", "choose", "differentiates", "explain", "mark_written"]

Backend = Literal["auto", "cpu", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "reference")


def _load_extension() -> Path | None:
    path = Path(__file__).resolve().parent.parent / "_C.abi3.so"
    if not path.exists():
        return None
    torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    return path


EXTENSION: Path | None = _load_extension()
"""The loaded extension, None in a pure-Python installation."""


def choose(device: torch.device, backend: str) -> bool:
    """Whether a call on ``device`` runs the compiled op (True) or the reference (False).

    Raises:
        ValueError: unknown backend; a device that the backend cannot serve; ``"cpu"`` without the extension.
    """
    if backend == "auto":
        if device.type == "cpu":
            return EXTENSION is not None
        raise ValueError(
            f'x is on device "{device}"; backend="auto" has kernels for "cpu" only. '
            'Move the tensors to the CPU, or ask for plain PyTorch with backend="reference".'
        )
    if backend == "reference":
        return False
    if backend != "cpu":
        raise ValueError(f'backend is "{backend}"; allowed: {", ".join(BACKENDS)}')
    if EXTENSION is None:
        raise ValueError(
            'backend="cpu" needs the compiled extension, and this is a pure-Python installation; '
            'reinstall without INCLINE_FAST_BUILD=0, or use backend="reference"'
        )
    if device.type != "cpu":
        raise ValueError(f'x is on device "{device}"; backend="cpu" serves CPU tensors only')
    return True


def differentiates(*arguments: Tensor | AffineMap | float | None) -> bool:
    """Whether autograd would record a call with these arguments."""
    if not torch.is_grad_enabled():
        return False
    for argument in arguments:
        tensors = (argument.down, argument.up) if isinstance(argument, AffineMap) else (argument,)
        if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors):
            return True
    return False


def mark_written(x: Tensor, residual: Tensor | None) -> None:
    """Tell autograd that the op wrote to these tensors, so that a graph which saved them reports it."""
    torch.autograd.graph.increment_version(x)
    if residual is not None:
        torch.autograd.graph.increment_version(residual)


def explain(backend: str = "auto", *, device: torch.device | str = "cpu") -> str:
    """Say which implementation ``affine_rms_norm`` and ``affine_layer_norm`` would run, and why.

    Args:
        backend: as passed to the op.
        device: device of the op's tensors.

    Raises:
        ValueError: as the op itself would.
    """
    if not choose(torch.device(device), backend):
        why = 'backend="reference" was asked for' if backend == "reference" else "no compiled extension is installed"
        return f"reference (plain PyTorch): {why}"
    isa = torch.ops.incline_fast.cpu_isa()
    return (
        f"cpu (compiled, {isa}, {torch.get_num_threads()} threads): {EXTENSION} is loaded. AffineMap passes its packed "
        "panels, made once; raw [G, N, K] tensors given to torch.ops.incline_fast.* are packed anew in every call"
    )
