"""The Triton kernel that reads bytes and does nothing else: the floor of everything that reads them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["read"]

WORDS = 8192
"""Words of four bytes that one program reads: 16 bytes a thread and load, eight loads in flight."""
WARPS = 8


@triton.jit
def _read(words, sums, count, WORDS: tl.constexpr):
    """The sum of each piece of WORDS words: as little work as keeps the compiler from leaving the loads out."""
    index = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    piece = tl.load(words + index, mask=index < count, other=0)
    tl.store(sums + tl.program_id(0), tl.sum(piece, 0))


def read(tensor: Tensor) -> Tensor:
    """Read a contiguous tensor once; the int32 sums of its pieces, as four-byte words."""
    words = tensor.view(-1).view(torch.int32)
    sums = torch.empty(triton.cdiv(len(words), WORDS), dtype=torch.int32, device=tensor.device)
    _read[(len(sums),)](words, sums, len(words), WORDS=WORDS, num_warps=WARPS)
    return sums
