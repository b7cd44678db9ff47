"""Inputs of the fused ops, their fp64 reference, and the torch op called on them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from incline_fast import ops
from incline_fast.maps import AffineMap
from incline_fast.ops import reference
from incline_fast.ops._extension import EXTENSION

BACKENDS = ["reference"] if EXTENSION is None else ["reference", "cpu"]


@dataclass(frozen=True)
class Case:
    """Arguments of ``affine_rms_norm`` (norm="rms") or ``affine_layer_norm`` (norm="layer")."""

    norm: str
    x: Tensor
    weight: Tensor
    map: AffineMap
    norm_bias: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, backend: str) -> tuple[Tensor, Tensor]:
        """(y, r') of the functional form."""
        if self.norm == "rms":
            return ops.affine_rms_norm(self.x, self.weight, self.map, **self.options, backend=backend)
        return ops.affine_layer_norm(self.x, self.weight, self.norm_bias, self.map, **self.options, backend=backend)

    def in_place(self, backend: str) -> tuple[Tensor, Tensor]:
        """(y, r') of the in-place form, run on copies with the same strides."""
        x = _copy(self.x)
        options = dict(self.options)
        written = x
        if options.get("residual") is not None:
            written = options["residual"] = _copy(options["residual"])
        if self.norm == "rms":
            y = ops.affine_rms_norm_(x, self.weight, self.map, **options, backend=backend)
        else:
            y = ops.affine_layer_norm_(x, self.weight, self.norm_bias, self.map, **options, backend=backend)
        assert (y is x) == (written is not x)
        return y, written

    def expected(self) -> tuple[Tensor, Tensor]:
        """fp64 (y, r') from the same inputs."""
        double = self.double()
        options = {"down": double.map.down, "up": double.map.up, **double.options}
        if self.norm == "rms":
            return reference.affine_rms_norm(double.x, double.weight, **options)
        return reference.affine_layer_norm(double.x, double.weight, double.norm_bias, **options)

    def normed(self, edited: Tensor) -> Tensor:
        """fp64 norm of a given r', by torch's own norms: what y must be close to, however r' was rounded."""
        size = (edited.shape[-1],)
        weight = self.weight.double() + self.options.get("weight_offset", 0.0)
        if self.norm == "rms":
            return F.rms_norm(edited.double(), size, weight, self.options.get("eps", 1e-6))
        bias = None if self.norm_bias is None else self.norm_bias.double()
        return F.layer_norm(edited.double(), size, weight, bias, self.options.get("eps", 1e-5))

    def double(self) -> Case:
        """The same numbers in fp64."""
        return replace(
            self,
            x=self.x.double(),
            weight=self.weight.double(),
            map=self.map.to(torch.float64),
            norm_bias=None if self.norm_bias is None else self.norm_bias.double(),
            options={name: _double(value) for name, value in self.options.items()},
        )

    def but(self, **changes: Any) -> Case:
        """The case with some arguments replaced."""
        own = {f.name for f in fields(self)}
        mine = {name: value for name, value in changes.items() if name in own}
        options = {name: value for name, value in changes.items() if name not in own}
        return replace(self, **mine, options={**self.options, **options})


def make(
    norm: str,
    hidden: int,
    shape: tuple[int, ...],
    *,
    rank: int | None = None,
    num_maps: int = 1,
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    vector_dtype: torch.dtype | None = None,
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> Case:
    """A random case; ``shape`` are x's leading dimensions. Maps keep the scale of what they are applied to."""
    g = torch.Generator().manual_seed(seed)
    quantized = map_dtype is torch.int8
    map_dtype = torch.float32 if quantized else map_dtype or dtype
    vector_dtype = vector_dtype or dtype

    def normal(*size: int, to: torch.dtype = dtype, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=g) * scale).to(to)

    if rank is None:
        map = AffineMap.dense(normal(num_maps, hidden, hidden, to=map_dtype, scale=hidden**-0.5))
    else:
        down = normal(num_maps, rank, hidden, to=map_dtype, scale=hidden**-0.5)
        map = AffineMap.low_rank(down, normal(num_maps, hidden, rank, to=map_dtype, scale=rank**-0.5))
    if residual_dtype is not None:
        options["residual"] = normal(*shape, hidden, to=residual_dtype)
    if bias:
        options["bias"] = normal(num_maps, hidden, to=vector_dtype)
    return Case(
        norm,
        normal(*shape, hidden),
        normal(hidden, to=vector_dtype) + 1,
        map.quantize() if quantized else map,
        normal(hidden, to=vector_dtype) if norm == "layer" else None,
        options,
    )


def _copy(tensor: Tensor) -> Tensor:
    """A copy with the same strides, also where the tensor has gaps."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
