"""The second half of an unfused pair: one kernel that adds and normalises, by torch.compile or of another library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from incline_fast.bench.problems import EPS, Problem

__all__ = ["ADD_NORMS", "AddNormKernel", "compiled_norm"]

AddNorm = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""``add_norm(change, x, weight, norm_bias)`` gives the norm of ``x + change``, and that sum."""


@dataclass(frozen=True)
class AddNormKernel:
    """``make`` gives the function; ``unfit`` says why a problem cannot use it, empty if it can."""

    make: Callable[[], AddNorm]
    unfit: Callable[[Problem], str]


def _norm(edited: Tensor, weight: Tensor, norm_bias: Tensor | None) -> Tensor:
    size = edited.shape[-1:]
    if norm_bias is None:
        return F.rms_norm(edited, size, weight, EPS)
    return F.layer_norm(edited, size, weight, norm_bias, EPS)


def _compiled() -> AddNorm:
    def add_norm(change: Tensor, x: Tensor, weight: Tensor, norm_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        edited = x + change
        return _norm(edited, weight, norm_bias), edited

    compiled: AddNorm = torch.compile(add_norm, dynamic=False, fullgraph=True)
    return compiled


def compiled_norm() -> AddNorm:
    """``norm(edited, bias, weight, norm_bias)``: adds the map's bias to a sum, and normalises, in one kernel."""

    def biased_norm(edited: Tensor, bias: Tensor, weight: Tensor, norm_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        edited = edited + bias
        return _norm(edited, weight, norm_bias), edited

    compiled: AddNorm = torch.compile(biased_norm, dynamic=False, fullgraph=True)
    return compiled


def _liger() -> AddNorm:
    function = importlib.import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction
    return lambda change, x, weight, _: function.apply(change, x, weight, EPS)


def _quack() -> AddNorm:
    rmsnorm = importlib.import_module("quack").rmsnorm
    return lambda change, x, weight, _: rmsnorm(change, weight, residual=x, eps=EPS)


def _flashinfer() -> AddNorm:
    fused_add_rmsnorm = importlib.import_module("flashinfer.norm").fused_add_rmsnorm

    def add_norm(change: Tensor, x: Tensor, weight: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        fused_add_rmsnorm(change, x, weight, EPS)  # x <- x + change, change <- norm(x)
        return change, x

    return add_norm


def _of_library(make: Callable[[], AddNorm]) -> AddNormKernel:
    def unfit(problem: Problem) -> str:
        if problem.norm != "rms":
            return "has no fused add and LayerNorm"
        try:
            make()
        except Exception as error:  # a library that does not suit this torch may raise anything
            return f"{type(error).__name__}: {error}"
        return ""

    return AddNormKernel(make, unfit)


ADD_NORMS = {
    "compiled": AddNormKernel(_compiled, lambda problem: ""),
    "liger": _of_library(_liger),
    "quack": _of_library(_quack),
    "flashinfer": _of_library(_flashinfer),
}
"""By the library's name."""
