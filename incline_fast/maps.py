"""AffineMap: the linear part of an intervention, dense or low rank, one map or a stack of them.

A map learned from n < d sentences has rank at most n (the dual form of least squares), so it is kept as two factors:
``up @ (down @ h)`` reads ``2 rank d`` weights instead of ``d^2``. An int8 map reads half of what a bf16 map does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from incline_fast.arguments import matrix
from incline_fast.packing import PANEL, on_huge_pages, pack
from incline_fast.torch_modes import full_precision, is_plain

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["MAP_DTYPES", "AffineMap", "dequantized"]

MAP_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)
INT8_MAX = 127
"""Largest quantised weight; -128 is not used, so that a matrix and its negative quantise alike."""

Aligned = tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A layout of a map's weights.

    Attributes:
        parts: its tensors, in the order of the method that returns them.
        version: how often the weights had been written to; None where torch keeps no count (inference
            tensors, compiled code).
        saveable: whether a backward pass may save it. Compiled code cannot ask whether it runs in inference mode.
    """

    parts: tuple[Tensor | None, ...]
    version: int | None
    saveable: bool


class AffineMap:
    """One linear map ``R^d -> R^d``, or a stack of G maps of equal form and rank. Immutable.

    Layouts that kernels need are made once and kept until the weights are written to. Tensors made under a mode of
    torch that they cannot outlive (tracing, inference mode) are not kept. A copy or a pickle holds the weights alone.

    Attributes:
        up: ``[G, d, rank]`` (low rank) or ``[G, d, d]`` (dense).
        down: ``[G, rank, d]`` or None (dense).
        up_scale, down_scale: fp32 ``[G, d]`` and ``[G, rank]`` of an int8 map, one factor per row of ``up`` and
            ``down``; None otherwise. See :meth:`quantize`.
    """

    __slots__ = ("_aligned", "_packed", "down", "down_scale", "up", "up_scale")

    def __init__(
        self,
        down: Tensor | None,
        up: Tensor,
        *,
        down_scale: Tensor | None = None,
        up_scale: Tensor | None = None,
    ) -> None:
        _check(down, up)
        _check_scale("down", down, down_scale)
        _check_scale("up", up, up_scale)
        self.down = down
        self.up = up
        self.down_scale = down_scale
        self.up_scale = up_scale
        self._packed: _Kept | None = None
        self._aligned: _Kept | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The weights and scales, without the layouts made from them."""
        return _restored, (self.down, self.up, self.down_scale, self.up_scale)

    @classmethod
    def dense(cls, W: ArrayLike) -> AffineMap:
        """A dense map that acts as ``W @ h``; ``W`` is ``[d_out, d_in]`` or a stack ``[G, d_out, d_in]``.

        Like the factors of :meth:`low_rank`, it may be a tensor or a NumPy array, which is copied.
        """
        return cls(None, _as_stack("W", W))

    @classmethod
    def low_rank(cls, down: ArrayLike, up: ArrayLike) -> AffineMap:
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

        def joined(parts: list[Tensor | None]) -> Tensor | None:
            present = [part for part in parts if part is not None]
            return torch.cat(present) if present else None

        return cls(
            joined([m.down for m in maps]),
            torch.cat([m.up for m in maps]),
            down_scale=joined([m.down_scale for m in maps]),
            up_scale=joined([m.up_scale for m in maps]),
        )

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
        """The same map with its weights converted, an int8 map multiplied out; returns self when nothing changes.

        Args:
            dtype: of the weights; None keeps it.
            device: of the weights; None keeps it.

        Raises:
            TypeError: dtype int8 was asked of a float map, which is what :meth:`quantize` makes.
        """
        if dtype not in (None, self.dtype):
            if dtype is torch.int8:
                raise TypeError(f"dtype is torch.int8 and the map is {self.dtype}; quantize() makes int8 maps")
            down, up = self._weights(torch.float64 if dtype is torch.float64 else torch.float32)
            return AffineMap(None if down is None else down.to(device, dtype), up.to(device, dtype))
        return self.convert(lambda tensor: tensor.to(device=device))

    def convert(self, function: Callable[[Tensor], Tensor]) -> AffineMap:
        """The map with ``function`` applied to its weights; self where it returns each of them unchanged.

        The scales of an int8 map follow to the device and stay fp32, so that ``module.half()`` leaves them exact.
        """
        up = function(self.up)
        down = None if self.down is None else function(self.down)
        if up is self.up and down is self.down:
            return self
        up_scale = None if self.up_scale is None else self.up_scale.to(up.device)
        down_scale = None if self.down_scale is None else self.down_scale.to(up.device)
        return AffineMap(down, up, down_scale=down_scale, up_scale=up_scale)

    def quantize(self) -> AffineMap:
        """The map with int8 weights and one fp32 scale per output column: half the bytes of bf16.

        ``w[j, k] ~ scale[j] q[j, k]`` with ``scale[j] = max_k |w[j, k]| / 127`` and q rounded to the nearest of
        -127..127, for each factor of a low-rank map (symmetric quantisation, Jacob et al., CVPR 2018, arXiv
        1712.05877). The op sums over q in fp32 and multiplies the finished sum, so nothing but the weights is
        approximated: each is off by at most ``scale[j] / 2``.

        With normal weights and states, d from 640 to 4096, the image M h is off by 0.75% to 0.87% of its root mean
        square (two factors: 1% to 1.1%), where bf16 weights cost 0.17% (0.24%). **Measure it on your model's states**:
        maps of SmolLM2 135M lose 1% to 5%, those of Gemma 3 270M 7% to 44%, because a few dimensions of its residual
        stream are so large that the small weights which meet them decide the image (docs/notes/int8_maps.md).

        Raises:
            ValueError: a weight is not finite.
        """
        if self.dtype is torch.int8:
            return self
        up, up_scale = _quantized("up", self.up)
        if self.down is None:
            return AffineMap(None, up, up_scale=up_scale)
        down, down_scale = _quantized("down", self.down)
        return AffineMap(down, up, down_scale=down_scale, up_scale=up_scale)

    def apply(self, h: Tensor, index: int = 0) -> Tensor:
        """``M_index h`` in plain PyTorch; h is ``[..., d]`` and is converted to the map's dtype (int8: to fp32)."""
        down, up = self._weights()
        z = h.to(up.dtype)
        with full_precision(up.device):
            if down is not None:
                z = z @ down[index].T
            return z @ up[index].T

    def as_dense(self) -> Tensor:
        """The maps as matrices ``[G, d, d]``, those of int8 maps in fp32."""
        down, up = self._weights()
        with full_precision(up.device):
            return up if down is None else up @ down

    def _weights(self, compute: torch.dtype = torch.float32) -> tuple[Tensor | None, Tensor]:
        """``(down, up)`` as numbers: int8 weights times their scales, in ``compute``."""
        return dequantized(self.down, self.down_scale, compute), dequantized(self.up, self.up_scale, compute)

    def packed(self) -> tuple[Tensor | None, Tensor]:
        """``(down, up)`` in the panel layout of the CPU kernels, see :func:`incline_fast.packing.pack`.

        Packed once and kept, on huge pages, except where a gradient has to flow back to the weights.
        """
        kept, up, down = self._packed, self.up, self.down
        # The body of _still_holds: a call would add to the microseconds of a small problem. Dynamo has no versions.
        if kept is not None and not is_dynamo_compiling() and not up.requires_grad and kept.version is not None:
            if down is None:
                if kept.version == up._version:
                    return kept.parts  # type: ignore[return-value]
            elif kept.version == up._version + down._version and not down.requires_grad:
                return kept.parts  # type: ignore[return-value]
        if kept is not None and self._still_holds(kept):
            return kept.parts  # type: ignore[return-value]
        parts, self._packed = self._keep(
            lambda: (None if down is None else on_huge_pages(pack(down)), on_huge_pages(pack(up)))
        )
        return parts  # type: ignore[return-value]

    def aligned(self) -> Aligned:
        """``(down, up, down_scale, up_scale)`` as GPU kernels need them: contiguous, the rank a multiple of 16.

        A rank is filled up with zeros, so that every row of ``up`` begins at a multiple of 16 bytes. Made once and
        kept, except where a gradient has to flow back to the weights.
        """
        kept = self._aligned
        if kept is not None and self._still_holds(kept):
            return kept.parts  # type: ignore[return-value]
        parts, self._aligned = self._keep(self._align)
        return parts  # type: ignore[return-value]

    def keeps_aligned(self) -> bool:
        """Whether :meth:`aligned` gives what was made before."""
        return self._aligned is not None and self._still_holds(self._aligned)

    def forget_layouts(self) -> None:
        """Make the layouts anew when they are next asked for. Compiled code does not see writes to the weights."""
        self._packed = self._aligned = None

    def _align(self) -> Aligned:
        down, up, down_scale = self.down, self.up.contiguous(), self.down_scale
        if down is None:
            return None, up, None, self.up_scale
        missing = -down.shape[1] % PANEL
        down_scale = None if down_scale is None else F.pad(down_scale, (0, missing))
        return F.pad(down, (0, 0, 0, missing)).contiguous(), F.pad(up, (0, missing)), down_scale, self.up_scale

    def _requires_grad(self) -> bool:
        return self.up.requires_grad or (self.down is not None and self.down.requires_grad)

    def _version(self) -> int:
        """Grows with every write to the weights."""
        return self.up._version + (0 if self.down is None else self.down._version)

    def _still_holds(self, kept: _Kept) -> bool:
        """Whether a layout is that of the weights as they are now, and no gradient has to flow to them."""
        if self._requires_grad():
            return False
        if torch.compiler.is_compiling():
            return kept.saveable or not torch.is_grad_enabled()
        return self.up.is_inference() if kept.version is None else kept.version == self._version()

    def _keep(self, make: Callable[[], tuple[Tensor | None, ...]]) -> tuple[tuple[Tensor | None, ...], _Kept | None]:
        """A layout, and the record by which later calls reuse it, None where they must not."""
        if self._requires_grad():
            return make(), None
        if torch.compiler.is_compiling():
            # Dynamo puts the outputs of its graph into the place of traced tensors; an exporter does not.
            parts = make()
            kept = None if torch.compiler.is_exporting() else _Kept(parts, None, torch.is_grad_enabled())
            return parts, kept
        version = None if self.up.is_inference() else self._version()
        with torch.inference_mode(False):
            parts = make()
        plain = all(is_plain(part) for part in parts if part is not None)
        return parts, _Kept(parts, version, saveable=True) if plain else None

    def __repr__(self) -> str:
        form = "dense" if self.down is None else f"rank {self.rank}"
        return f"AffineMap({form}, hidden_size={self.hidden_size}, num_maps={self.num_maps}, dtype={self.dtype})"


def _restored(down: Tensor | None, up: Tensor, down_scale: Tensor | None, up_scale: Tensor | None) -> AffineMap:
    return AffineMap(down, up, down_scale=down_scale, up_scale=up_scale)


@overload
def dequantized(weight: Tensor, scale: Tensor | None, compute: torch.dtype) -> Tensor: ...
@overload
def dequantized(weight: Tensor | None, scale: Tensor | None, compute: torch.dtype) -> Tensor | None: ...
def dequantized(weight: Tensor | None, scale: Tensor | None, compute: torch.dtype) -> Tensor | None:
    """``scale[g, j] weight[g, j, k]`` in dtype ``compute``; the weight itself where there is no scale."""
    return weight if weight is None or scale is None else weight.to(compute) * scale.to(compute).unsqueeze(-1)


def _quantized(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 ``[G, N, K]`` and fp32 scales ``[G, N]``; a row of zeros keeps the scale 0."""
    weight = weight.detach()
    scale = (weight.abs().amax(-1, keepdim=True).double() / INT8_MAX).float()
    if not bool(scale.isfinite().all()):
        raise ValueError(f"{name} holds NaN, infinite values or more than fp32 can; finite weights can be quantised")
    rounded = (weight / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    return rounded.clamp_(-INT8_MAX, INT8_MAX).to(torch.int8), scale.squeeze(-1)


def _as_stack(name: str, value: ArrayLike) -> Tensor:
    tensor = matrix(name, value)
    if tensor.dim() not in (2, 3):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected a matrix or a stack [G, rows, columns]")
    return tensor.unsqueeze(0) if tensor.dim() == 2 else tensor


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


def _check_scale(name: str, weight: Tensor | None, scale: Tensor | None) -> None:
    """int8 weights have a scale per output column, others have none."""
    if weight is None or weight.dtype is not torch.int8:
        if scale is not None:
            kind = "absent" if weight is None else weight.dtype
            raise ValueError(f"{name}_scale is given, but {name} is {kind}; only int8 weights have a scale")
        return
    expected = tuple(weight.shape[:2])
    if scale is None:
        raise TypeError(
            f"{name} has dtype torch.int8 and no {name}_scale; quantize() makes int8 maps with their scales"
        )
    if scale.dtype is not torch.float32 or tuple(scale.shape) != expected or scale.device != weight.device:
        raise ValueError(
            f"{name}_scale is {scale.dtype} {tuple(scale.shape)} on {scale.device}; expected torch.float32 {expected} "
            f"on {weight.device}"
        )
    if scale.requires_grad:
        raise ValueError(f"{name}_scale requires a gradient; int8 maps are constants, differentiate the float map")
