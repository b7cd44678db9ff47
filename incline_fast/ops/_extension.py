"""What is loaded and set: the compiled extensions, Triton, whether a row's bits come before speed, and whether launches
may overlap.

The extensions are shared libraries. ``incline_fast/_C.abi3.so`` registers ``torch.ops.incline_fast.*`` and their CPU
kernels, ``_cuda.abi3.so`` their CUDA kernels. A pure-Python installation has neither and runs the reference.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

__all__ = [
    "CUDA_EXTENSION",
    "CUDA_PROBLEM",
    "EXTENSION",
    "TRITON",
    "batch_invariant",
    "programmatic_launch",
    "set_batch_invariant",
    "set_programmatic_launch",
]

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

    Up to 64 tokens with Triton, up to 1 to 24 with CUDA, by the shape of the map, and with several maps any number of
    them, the kernels do so anyway. More tokens of one map are multiplied by torch, which should be faster, and its
    rounding may depend on how many they are. Enabled, the decode kernels take any number of tokens, and "auto" stays
    with one family of kernels (CUDA where it is there, otherwise Triton).

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


_programmatic_launch = False


def set_programmatic_launch(enabled: bool) -> None:
    """Let the GPU kernels begin before the kernel ahead of them on the CUDA stream has ended. Off at first.

    This is CUDA's programmatic dependent launch, on GPUs from compute capability 9.0 on; others are launched as usual.
    A kernel that begins early requests its first weights and then waits for the end of the kernel ahead; it lets the
    kernel behind it begin early too, if that one is launched in this way. Results are the same bits. What it saves has
    not yet been measured on a GPU.

    It is off at first because it asks two things of the program:

    - Maps must not be written by a kernel that can still be running, since they are read before the wait. After writing
      a map on the GPU, call ``torch.cuda.synchronize()`` before the next call of an op. Before torch.compile call the
      op once, so that the layout that the kernels read is not made within the graph. Everything else may be written by
      the kernel ahead as usual.
    - Every other kernel on the stream that is launched in this way must itself wait for the kernel ahead of it before
      it ends. Kernels that are launched as usual need nothing.

    The setting is the process's. A captured CUDA graph keeps what it was captured with. Triton kernels under
    torch.compile are launched as usual.

    Args:
        enabled: whether launches may overlap.
    """
    global _programmatic_launch
    _programmatic_launch = enabled
    if CUDA_EXTENSION is not None:
        torch.ops.incline_fast.set_programmatic_launch(enabled)


def programmatic_launch() -> bool:
    """The value that :func:`set_programmatic_launch` was last given."""
    return _programmatic_launch
