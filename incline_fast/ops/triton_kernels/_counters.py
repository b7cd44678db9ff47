"""Zeroed int32 counters for kernels that set them back to zero before they end.

A launch may share its counters with an earlier one of the same CUDA stream, which has ended by then, but not with one
that can run beside it. So each CUDA stream has its own counters, and so does each call captured into a CUDA graph,
since graphs captured on one stream can be replayed on several. All come from one slab per device, allocated at the
first call outside of a capture: memory of a graph's own pool would not outlive the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["zeroed"]

_PER_CALL = 16
_SLAB = 1 << 18
"""1 MiB per device: 16384 CUDA streams and captured calls."""


class _Slab:
    """Counters of one device, given out in pieces that are never taken back."""

    def __init__(self, device: torch.device) -> None:
        self.memory = torch.zeros(_SLAB, dtype=torch.int32, device=device)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the next user may be another CUDA stream
        self.used = 0
        self.by_cuda_stream: dict[int, Tensor] = {}

    def piece(self) -> Tensor | None:
        """The next piece, None when all are given out."""
        if self.used + _PER_CALL > len(self.memory):
            return None
        self.used += _PER_CALL
        return self.memory[self.used - _PER_CALL : self.used]


_slabs: dict[torch.device, _Slab] = {}


def zeroed(like: Tensor, count: int) -> Tensor:
    """``count`` counters for one launch on the current CUDA stream of ``like``'s device.

    Where the slab has none to give - more counters than a piece has, pieces used up, a capture before any other call,
    or a traced call, whose memory belongs to the compiler - they are a new tensor, which costs a small fill.
    """
    fresh = type(like) not in (Tensor, torch.nn.Parameter) or count > _PER_CALL
    counters = None if fresh else _from_slab(like.device)
    return torch.zeros(count, dtype=torch.int32, device=like.device) if counters is None else counters


def _from_slab(device: torch.device) -> Tensor | None:
    cuda_stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if device not in _slabs:
        if capturing:
            return None
        _slabs[device] = _Slab(device)
    slab = _slabs[device]
    if capturing:
        return slab.piece()
    if cuda_stream not in slab.by_cuda_stream:
        piece = slab.piece()
        if piece is None:
            return None
        slab.by_cuda_stream[cuda_stream] = piece
    return slab.by_cuda_stream[cuda_stream]
