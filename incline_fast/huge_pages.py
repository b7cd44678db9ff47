"""Memory for weights that are read from front to back in every call: pages of 2 MiB instead of 4 KiB."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

__all__ = ["HUGE_PAGE", "on_huge_pages"]

HUGE_PAGE = 2 << 20
"""Bytes of a huge page on x86-64, and on AArch64 with small pages of 4 KiB."""


def on_huge_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy that begins on a boundary of 2 MiB and for whose whole huge pages Linux is asked.

    A hardware prefetcher stops at the end of a page, and every page costs a walk through the page tables. The last huge
    page may stay empty for an eighth of the tensor's size; where more of it would, small pages take the rest. A tensor
    that is too small for one, is not in main memory, or is only traced (by ``torch.compile``, or as a fake tensor) is
    returned as it is, and so is everything on systems without ``madvise``. The memory is mapped for the copy alone and
    unmapped when the last tensor that uses it is freed.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return tensor
    pages = (tensor.nbytes + tensor.nbytes // 8) // HUGE_PAGE
    if not tensor.is_cpu or pages == 0:
        return tensor
    size = max(tensor.nbytes, pages * HUGE_PAGE)
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    try:
        memory.madvise(advice, begin, pages * HUGE_PAGE)
    except OSError:  # a kernel without huge pages
        return tensor
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin)
    return copy.view(tensor.shape).copy_(tensor)
