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
from incline_fast.torch_modes import is_plain

__all__ = ["AffineLayerNorm", "AffineRMSNorm"]

_MAP_PARTS = ("down", "up", "down_scale", "up_scale")


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
        self._hold_map(map)
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

    def _hold_map(self, map: AffineMap) -> None:
        for part in _MAP_PARTS:
            self._hold(f"map_{part}", getattr(map, part))
        self._map = map

    @property
    def map(self) -> AffineMap:
        """The linear part; its weights are this layer's state ``map_up``, ``map_down`` and, of int8, their scales."""
        map, buffers = self._map, self._buffers
        # Code that replaces the state (load_state_dict, functional_call, to) replaces the map's tensors.
        if (
            buffers.get("map_up") is map.up
            and (map.down is None or buffers.get("map_down") is map.down)
            and (map.up_scale is None or buffers.get("map_up_scale") is map.up_scale)
            and (map.down_scale is None or buffers.get("map_down_scale") is map.down_scale)
        ):
            return map
        return self._map_of_state()

    @map.setter
    def map(self, map: AffineMap) -> None:
        for part in _MAP_PARTS:
            delattr(self, f"map_{part}")
        self._hold_map(map)

    def _map_of_state(self) -> AffineMap:
        parts = {part: self._tensor(f"map_{part}") for part in _MAP_PARTS}
        map = self._map
        if all(parts[part] is getattr(map, part) for part in _MAP_PARTS):  # parameters
            return map
        map = AffineMap(**parts)
        if not torch.compiler.is_compiling() and all(is_plain(part) for part in parts.values() if part is not None):
            self._map = map
        return map

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert all tensors (``.to``, ``.half``, ``.cuda``); scales follow to the device and stay fp32."""
        scales = {name: self._buffers[name] for name in ("map_up_scale", "map_down_scale")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, scale in scales.items():
            converted = self._buffers[name]
            if scale is not None and converted is not None and converted.dtype is not scale.dtype:
                self._buffers[name] = scale.to(converted.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load as every module does, but never float weights into an int8 map or the other way round."""
        for part in ("up", "down"):
            own, given = self._tensor(f"map_{part}"), state_dict.get(f"{prefix}map_{part}")
            if own is not None and given is not None and (own.dtype is torch.int8) != (given.dtype is torch.int8):
                error_msgs.append(
                    f"{prefix}map_{part} is {given.dtype} in the state dict and {own.dtype} in the layer: int8 weights "
                    "have scales of their own; make the layer with a map of the same kind, map.quantize() or map.to()"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._map.forget_layouts()

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
        """Edit the residual stream in place, return y; the convention of :func:`incline_fast.ops.affine_rms_norm_`.

        Args:
            x: ``[..., d]``, the residual stream, or with ``residual`` what is added to it.
            residual: ``[..., d]`` or None.
            alpha, beta: numbers, or tensors ``[num_tokens]``; None for the layer's own.
            row_map: int32 ``[num_tokens]``, each row's map in the stack, or None; negative: only normalised.

        Raises:
            ValueError: an argument's dtype, shape, device or value is not allowed; the message names it.
        """
        # As self.map, without its call: a small problem is over in a few microseconds.
        map, buffers = self._map, self._buffers
        up, down = map.up, map.down
        other_down = down is not None and buffers.get("map_down") is not down
        if other_down or buffers.get("map_up") is not up or map.up_scale is not None:
            map = self.map
        return RMS_NORM.in_place(
            x,
            (self._parameters["weight"] if "weight" in self._parameters else self._tensor("weight"),),
            map,
            residual,
            buffers["bias"] if "bias" in buffers else self._tensor("bias"),
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
        """Edit the residual stream in place, return y; arguments as in :meth:`AffineRMSNorm.forward`."""
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
