"""AffineMap: the linear part of an intervention, dense or low rank, one map or a stack of them.

A map learned from n < d sentences has rank at most n (the dual form of least squares), so it is kept as two factors:
``up @ (down @ h)`` reads ``2 rank d`` weights instead of ``d^2``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PANEL", "AffineMap", "pack", "unpack"]

PANEL = 16
"""Output columns per panel of the packed layout: one 512-bit or two 256-bit fp32 vectors."""

MAP_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class AffineMap:
    """One linear map ``R^d -> R^d``, or a stack of G maps of equal form and rank. Immutable.

    Attributes:
        up: ``[G, d, rank]`` (low rank) or ``[G, d, d]`` (dense).
        down: ``[G, rank, d]`` or None (dense).
    """

    __slots__ = ("_packed", "down", "up")

    def __init__(self, down: Tensor | None, up: Tensor) -> None:
        _check(down, up)
        self.down = down
        self.up = up
        self._packed: tuple[Tensor | None, Tensor] | None = None

    @classmethod
    def dense(cls, W: Tensor) -> AffineMap:
        """A dense map that acts as ``W @ h``; ``W`` is ``[d_out, d_in]`` or a stack ``[G, d_out, d_in]``."""
        return cls(None, _as_stack("W", W))

    @classmethod
    def low_rank(cls, down: Tensor, up: Tensor) -> AffineMap:
        """A map of rank r that acts as ``up @ (down @ h)``; ``down`` is ``[r, d]``, ``up`` is ``[d, r]``, or stacks."""
        return cls(_as_stack("down", down), _as_stack("up", up))

    @classmethod
    def stack(cls, maps: Sequence[AffineMap]) -> AffineMap:
        """Stack maps of equal hidden size, form, rank and dtype for batches that mix languages (``row_map``)."""
        if not maps:
            raise ValueError("maps is empty; stack needs at least one AffineMap")
        kinds = {(m.hidden_size, m.rank, m.dtype) for m in maps}
        if len(kinds) > 1:
            raise ValueError(f"maps differ in (hidden_size, rank, dtype): {sorted(map(str, kinds))}; all must be equal")
        downs = [m.down for m in maps if m.down is not None]
        return cls(torch.cat(downs) if downs else None, torch.cat([m.up for m in maps]))

    @property
    def hidden_size(self) -> int:
        """Width d of the residual stream."""
        return int(self.up.shape[1])

    @property
    def num_maps(self) -> int:
        """Number G of maps in the stack."""
        return int(self.up.shape[0])

    @property
    def rank(self) -> int | None:
        """Rank of the factors, None for a dense map."""
        return None if self.down is None else int(self.down.shape[1])

    @property
    def is_low_rank(self) -> bool:
        """Whether the map is kept as two factors."""
        return self.down is not None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored weights."""
        return self.up.dtype

    @property
    def device(self) -> torch.device:
        """Device of the stored weights."""
        return self.up.device

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> AffineMap:
        """The same map with its weights converted; returns self when nothing changes."""
        up = self.up.to(device=device, dtype=dtype)
        down = None if self.down is None else self.down.to(device=device, dtype=dtype)
        return self if up is self.up and down is self.down else AffineMap(down, up)

    def apply(self, h: Tensor, index: int = 0) -> Tensor:
        """``M_index h`` in plain PyTorch; h is ``[..., d]`` and is converted to the map's dtype."""
        z = h.to(self.dtype)
        if self.down is not None:
            z = z @ self.down[index].T
        return z @ self.up[index].T

    def as_dense(self) -> Tensor:
        """The maps as matrices ``[G, d, d]``."""
        return self.up if self.down is None else self.up @ self.down

    def packed(self) -> tuple[Tensor | None, Tensor]:
        """``(down, up)`` in the panel layout of the CPU kernels, see :func:`pack`.

        Packed once and kept, except where a gradient has to flow back to the weights.
        """
        if self.up.requires_grad or (self.down is not None and self.down.requires_grad):
            return (None if self.down is None else pack(self.down)), pack(self.up)
        if self._packed is None:
            self._packed = (None if self.down is None else pack(self.down)), pack(self.up)
        return self._packed

    def __repr__(self) -> str:
        form = "dense" if self.down is None else f"rank {self.rank}"
        return f"AffineMap({form}, hidden_size={self.hidden_size}, num_maps={self.num_maps}, dtype={self.dtype})"


def pack(weight: Tensor) -> Tensor:
    """``[G, N, K]`` -> ``[G, ceil(N / 16), K, 16]``: panels of 16 output columns, k-major, zero-padded columns.

    A kernel walks one panel from k = 0 to K with unit stride and broadcasts the k-th activation: no horizontal sums.
    """
    if weight.dim() != 3:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected [G, N, K]")
    G, N, K = weight.shape
    panels = -(-N // PANEL)
    padded = F.pad(weight, (0, 0, 0, panels * PANEL - N))
    return padded.reshape(G, panels, PANEL, K).transpose(2, 3).contiguous()


def unpack(packed: Tensor, num_columns: int) -> Tensor:
    """Inverse of :func:`pack`: ``[G, P, K, 16]`` -> ``[G, num_columns, K]``."""
    if packed.dim() != 4 or packed.shape[-1] != PANEL or not 0 <= packed.shape[1] * PANEL - num_columns < PANEL:
        raise ValueError(
            f"packed has shape {tuple(packed.shape)}; expected [G, ceil({num_columns} / {PANEL}), K, {PANEL}]"
        )
    G, panels, K, _ = packed.shape
    return packed.transpose(2, 3).reshape(G, panels * PANEL, K)[:, :num_columns]


def _as_stack(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() not in (2, 3):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {shape}; expected a matrix or a stack [G, rows, columns]")
    return value.unsqueeze(0) if value.dim() == 2 else value


def _check(down: Tensor | None, up: Tensor) -> None:
    if up.dtype not in MAP_DTYPES:
        raise TypeError(f"up has dtype {up.dtype}; allowed: {', '.join(map(str, MAP_DTYPES))}")
    if up.shape[0] < 1:
        raise ValueError("up holds no map; a stack needs at least one")
    if down is None:
        if up.shape[1] != up.shape[2]:
            raise ValueError(f"W has shape {tuple(up.shape[1:])}; a dense map must be square [d, d]")
        return
    if down.dtype != up.dtype or down.device != up.device:
        raise TypeError(f"down is {down.dtype} on {down.device}, up is {up.dtype} on {up.device}; they must agree")
    G, d, rank = up.shape
    if tuple(down.shape) != (G, rank, d):
        raise ValueError(f"down has shape {tuple(down.shape)}, up {tuple(up.shape)}; expected down [{G}, {rank}, {d}]")
    if rank < 1:
        raise ValueError("rank is 0; a low-rank map needs at least one row in down")
