"""Drop-in norm layers that edit the residual stream in place and return its normalised value.

Every pre-norm decoder computes ``residual = h; x = norm(h); ...; h = residual + f(x)``. A layer of this module in the
place of ``norm`` changes ``h`` itself, so both the residual stream and the block's input carry the intervention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from incline_fast.maps import AffineMap
from incline_fast.ops._arguments import PerRow
from incline_fast.ops.affine_norm import LAYER_NORM, RMS_NORM

__all__ = ["AffineLayerNorm", "AffineRMSNorm"]


class _AffineNorm(torch.nn.Module):
    """What both layers share: the norm's weight, the map, and how strongly it is applied."""

    weight: Tensor
    bias: Tensor | None
    norm_bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        map: AffineMap,
        *,
        bias: Tensor | None,
        alpha: float,
        beta: float,
        eps: float,
        weight_offset: float,
        backend: str,
    ) -> None:
        super().__init__()
        self.map = map
        self.alpha = alpha
        self.beta = beta
        self.eps = eps
        self.weight_offset = weight_offset
        self.backend = backend
        self._hold("weight", weight)
        self._hold("bias", bias)

    def _hold(self, name: str, value: Tensor | None) -> None:
        """Share a norm's parameter as a parameter, keep a plain tensor as a buffer."""
        if isinstance(value, torch.nn.Parameter):
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the map together with the layer's tensors (``.to``, ``.half``, ``.cuda``)."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.map = self.map.convert(fn)
        return self

    def _tensor(self, name: str) -> Any:
        """A parameter or buffer, past ``Module.__getattr__`` where it can be: three of those take 2 us."""
        if name in self._parameters:
            return self._parameters[name]
        if name in self._buffers:
            return self._buffers[name]
        return getattr(self, name)  # parametrised: a property

    def extra_repr(self) -> str:
        """The map and the strength, for ``print(layer)``."""
        return f"{self.map}, alpha={self.alpha}, beta={self.beta}, eps={self.eps}, weight_offset={self.weight_offset}"


class AffineRMSNorm(_AffineNorm):
    """``h <- beta h + alpha (M h + bias)`` in place, then ``RMSNorm(h) (weight + weight_offset)``.

    Args:
        weight: ``[d]``; a Parameter is shared with the norm that the layer stands in for.
        map: the linear part M.
        bias: ``[d]`` or ``[G, d]`` added to M h, or None.
        alpha, beta: assignable numbers; a call may override them with numbers or tensors ``[num_tokens]``.
        eps: added to the mean square.
        weight_offset: added to the weight (1.0 for Gemma).
        backend: as in :func:`incline_fast.ops.affine_rms_norm`.
    """

    def __init__(
        self,
        weight: Tensor,
        map: AffineMap,
        *,
        bias: Tensor | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        eps: float = 1e-6,
        weight_offset: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            weight, map, bias=bias, alpha=alpha, beta=beta, eps=eps, weight_offset=weight_offset, backend=backend
        )

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        alpha: PerRow | None = None,
        beta: PerRow | None = None,
        row_map: Tensor | None = None,
    ) -> Tensor:
        """Edit the residual stream in place, return y; the convention of :func:`incline_fast.ops.affine_rms_norm_`."""
        return RMS_NORM.in_place(
            x,
            (self._tensor("weight"),),
            self.map,
            residual,
            self._tensor("bias"),
            self.alpha if alpha is None else alpha,
            self.beta if beta is None else beta,
            row_map,
            self.eps,
            self.weight_offset,
            self.backend,
        )


class AffineLayerNorm(_AffineNorm):
    """``h <- beta h + alpha (M h + bias)`` in place, then ``LayerNorm(h) (weight + weight_offset) + norm_bias``.

    Args:
        weight: ``[d]``; a Parameter is shared with the norm that the layer stands in for.
        norm_bias: ``[d]`` or None, shared likewise.
        map, bias, alpha, beta, eps, weight_offset, backend: as in :class:`AffineRMSNorm`.
    """

    def __init__(
        self,
        weight: Tensor,
        norm_bias: Tensor | None,
        map: AffineMap,
        *,
        bias: Tensor | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        eps: float = 1e-5,
        weight_offset: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            weight, map, bias=bias, alpha=alpha, beta=beta, eps=eps, weight_offset=weight_offset, backend=backend
        )
        self._hold("norm_bias", norm_bias)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        alpha: PerRow | None = None,
        beta: PerRow | None = None,
        row_map: Tensor | None = None,
    ) -> Tensor:
        """Edit the residual stream in place, return y; as :func:`incline_fast.ops.affine_layer_norm_`."""
        return LAYER_NORM.in_place(
            x,
            (self._tensor("weight"), self._tensor("norm_bias")),
            self.map,
            residual,
            self._tensor("bias"),
            self.alpha if alpha is None else alpha,
            self.beta if beta is None else beta,
            row_map,
            self.eps,
            self.weight_offset,
            self.backend,
        )
