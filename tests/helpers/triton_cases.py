"""The cases of tests/helpers/op_cases.py, computed by the Triton ops."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from op_cases import Case, make
from torch import Tensor

from incline_fast.ops._arguments import per_row
from incline_fast.ops.triton_kernels import affine_norm

__all__ = ["TritonCase", "make_triton"]


class TritonCase(Case):
    """A case whose two forms run the Triton ops, whatever backend is named."""

    def __call__(self, backend: str = "triton") -> tuple[Tensor, Tensor]:
        """(y, r') of the functional op."""
        op = getattr(affine_norm, f"affine_{self.norm}_norm")
        return op(self.x, self.options.get("residual"), *self.arguments())

    def in_place(self, backend: str = "triton") -> tuple[Tensor, Tensor]:
        """(y, r') of the in-place op, run on copies with the same strides."""
        op = getattr(affine_norm, f"affine_{self.norm}_norm_")
        residual = self.options.get("residual")
        written = _copy(self.x if residual is None else residual)
        y = torch.empty_like(self.x) if residual is None else _copy(self.x)
        op(y, written, residual is not None, *self.arguments())
        return y, written

    def arguments(self) -> tuple[Any, ...]:
        """What follows x and residual in the ops' schemas."""
        options, map = self.options, self.map
        norm = (self.weight,) if self.norm == "rms" else (self.weight, self.norm_bias)
        maps = (map.down, map.up, map.down_scale, map.up_scale, options.get("bias"))
        alpha, row_alpha = per_row(options.get("alpha", 1.0))
        beta, row_beta = per_row(options.get("beta", 1.0))
        eps = options.get("eps", 1e-6 if self.norm == "rms" else 1e-5)
        rows = (row_alpha, row_beta, options.get("row_map"), alpha, beta)
        return *norm, *maps, *rows, eps, options.get("weight_offset", 0.0)


def make_triton(*arguments: Any, **options: Any) -> TritonCase:
    """``op_cases.make`` for the Triton ops."""
    case = make(*arguments, **options)
    return TritonCase(**{field.name: getattr(case, field.name) for field in fields(case)})


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
