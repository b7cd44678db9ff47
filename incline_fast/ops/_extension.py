"""What is loaded and set: the compiled extensions, Triton, and whether a row's bits come before speed.

The extensions are shared libraries. ``incline_fast/_C.abi3.so`` registers ``torch.ops.incline_fast.*`` and their CPU
kernels, ``_cuda.abi3.so`` their CUDA kernels. A pure-Python installation has neither and runs the reference.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

__all__ = ["CUDA_EXTENSION", "CUDA_PROBLEM", "EXTENSION", "TRITON", "batch_invariant", "set_batch_invariant"]

_FOLDER = Path(__file__).resolve().parent.parent


def _load_extension() -> Path | None:
    path = _FOLDER / "_C.abi3.so"
    if not path.exists():
        return None
    torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    return path


def _load_cuda_extension() -> tuple[Path | None, str]:
    """The loaded library, or why there is none. A failure to load must not stop the CPU kernels from working."""
    path = _FOLDER / "_cuda.abi3.so"
    if EXTENSION is None:
        return None, "no compiled extension is installed"
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} was built without CUDA"
    if not path.exists():
        return None, f"{path} was not built, because there was no nvcc"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        return None, f"{path} does not load beside torch {torch.__version__}: {error.__cause__ or error}"
    return path, ""


EXTENSION: Path | None = _load_extension()
"""The loaded extension, None in a pure-Python installation."""

CUDA_EXTENSION, CUDA_PROBLEM = _load_cuda_extension()
"""The loaded CUDA kernels, and why there are none."""

TRITON = find_spec("triton") is not None
"""Whether Triton is installed."""

_batch_invariant = False


def set_batch_invariant(enabled: bool) -> None:
    """Keep the bits of a row on a GPU whatever the number of tokens, at the cost of speed. Off at first.

    Up to 8 tokens (Triton: 64), and with several maps any number of them, the kernels do so anyway. More tokens of one
    map are multiplied by torch, faster, and its rounding may depend on how many they are. Enabled, the decode kernels
    take any number of tokens, and "auto" stays with one family of kernels (CUDA where it is there, otherwise Triton).

    The CPU's compiled kernels always keep a row's bits; the reference never promises to, its products being torch's.
    The setting is the process's. torch.compile notices a change; a captured CUDA graph keeps what it was captured with.

    Args:
        enabled: whether bits come before speed.
    """
    global _batch_invariant
    _batch_invariant = enabled
    if CUDA_EXTENSION is not None:
        torch.ops.incline_fast.set_batch_invariant(enabled)


def batch_invariant() -> bool:
    """The value that :func:`set_batch_invariant` was last given."""
    return _batch_invariant
