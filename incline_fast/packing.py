"""The layout of weights for the CPU kernels: panels of 16 output columns, read front to back, on pages of 2 MiB."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "HUGE_PAGE",
    "PANEL",
    "empty_on_huge_pages",
    "is_packed",
    "on_huge_pages",
    "pack",
    "packed_shape",
    "rank_of",
    "unpack",
]

PANEL = 16
"""Output columns per panel of the packed layout: one 512-bit or two 256-bit fp32 vectors."""
HUGE_PAGE = 2 << 20
"""Bytes of a huge page on x86-64, and on AArch64 with small pages of 4 KiB."""


def pack(weight: Tensor) -> Tensor:
    """``[G, N, K]`` -> ``[G, ceil(N / 16), K, 16]``: panels of 16 output columns, k-major, zero-padded columns.

    A kernel walks one panel from k = 0 to K with unit stride and broadcasts the k-th activation: no horizontal sums.
    bf16 weights go to ``[G, ceil(N / 16), ceil(K / 2), 16, 2]``, pairs of k side by side and an odd K zero-padded: the
    order in which matrix units take them, and one in which 32 bits hold two weights that a shift and a mask widen.
    """
    if weight.dim() != 3:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected [G, N, K]")
    G, N, K = weight.shape
    panels, group = -(-N // PANEL), _group(weight.dtype)
    depth = -(-K // group)
    padded = F.pad(weight, (0, depth * group - K, 0, panels * PANEL - N))
    grouped = padded.reshape(G, panels, PANEL, depth, group).transpose(2, 3).contiguous()
    return grouped if group > 1 else grouped.squeeze(-1)


def unpack(packed: Tensor, num_columns: int, depth: int) -> Tensor:
    """Inverse of :func:`pack`: ``[G, num_columns, depth]``."""
    expected = packed_shape(packed.dtype, num_columns, depth)
    if tuple(packed.shape[1:]) != expected:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"packed has shape {tuple(packed.shape)}; expected [G, {sizes}]")
    pairs = packed if packed.dim() == 5 else packed.unsqueeze(-1)
    return pairs.transpose(2, 3).flatten(1, 2).flatten(2)[:, :num_columns, :depth]


def packed_shape(dtype: torch.dtype, num_columns: int, depth: int) -> tuple[int, ...]:
    """Shape of one packed map ``[num_columns, depth]``."""
    group = _group(dtype)
    shape = (-(-num_columns // PANEL), -(-depth // group), PANEL)
    return shape if group == 1 else (*shape, group)


def is_packed(weight: Tensor) -> bool:
    """Whether a stack of maps lies in panels."""
    return weight.dim() == (4 if _group(weight.dtype) == 1 else 5)


def rank_of(down: Tensor, up: Tensor) -> int:
    """Rank of two factors, read off one that is not packed; of two packed bf16 ones, rounded up to an even number."""
    if not is_packed(down):
        return int(down.shape[1])
    return int(up.shape[2]) * (_group(up.dtype) if is_packed(up) else 1)


def _group(dtype: torch.dtype) -> int:
    """Neighbours in k that the packed layout keeps together."""
    return 2 if dtype is torch.bfloat16 else 1


def on_huge_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy that begins on a boundary of 2 MiB and for whose whole huge pages Linux is asked.

    A hardware prefetcher stops at the end of a page, and every page costs a walk through the page tables. The last huge
    page may stay empty for an eighth of the tensor's size; where more of it would, small pages take the rest. A tensor
    that is too small for one, is not in main memory, or is only traced (by ``torch.compile``, or as a fake tensor) is
    returned as it is, and so is everything on systems without ``madvise``. The memory is mapped for the copy alone and
    unmapped when the last tensor that uses it is freed.
    """
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or not tensor.is_cpu:
        return tensor
    copy = empty_on_huge_pages(tensor.shape, tensor.dtype)
    return tensor if copy is None else copy.copy_(tensor)


def empty_on_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """Memory as that of :func:`on_huge_pages`, not written yet; None where there are no huge pages or too few bytes."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    count = math.prod(shape)
    nbytes = count * dtype.itemsize
    pages = (nbytes + nbytes // 8) // HUGE_PAGE
    if advice is None or pages == 0:
        return None
    memory = mmap.mmap(-1, max(nbytes, pages * HUGE_PAGE) + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    try:
        memory.madvise(advice, begin, pages * HUGE_PAGE)
    except OSError:  # a kernel without huge pages
        return None
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=begin).view(*shape)
