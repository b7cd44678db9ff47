"""What a module computes if it is a norm: found from its attributes, proven on inputs of many magnitudes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from incline_fast.models.sites import NormKind

__all__ = ["NormFormula", "norm_formula"]

_EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")
# For norms that keep epsilon in their code. On the inputs below each of these gives another result, in fp32.
_USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-12)
# Rows of these magnitudes: epsilon decides the small ones, weight and offset the large ones.
_MAGNITUDES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
_ROUNDINGS = 8
"""How many roundings to the norm's dtype its result may be off: statistics, product with the weight, the cast."""


@dataclass(frozen=True)
class NormFormula:
    """``RMSNorm(h) (weight + weight_offset)``, or ``LayerNorm(h) (weight + weight_offset) + bias``."""

    kind: NormKind
    eps: float
    weight_offset: float


def norm_formula(norm: nn.Module, like: Tensor) -> NormFormula | None:
    """The formula by which ``norm`` normalises states such as ``like [B, T, d]``, None if it matches no formula.

    The module is run on random rows of magnitudes from 1e-4 to 10, and the formula has to give its results to within
    rounding. Attributes are ``weight`` and ``bias`` (``[d]`` or absent) and epsilon under one of its usual names.
    """
    size = like.shape[-1]
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    for vector in (weight, bias):
        usable = isinstance(vector, Tensor) and tuple(vector.shape) == (size,) and vector.is_floating_point()
        if not (vector is None or (usable and not vector.is_meta)):
            return None
    rows = _rows(like)
    try:
        with torch.no_grad():
            actual = norm(rows)
    except Exception:
        return None  # not a norm: it needs other arguments than hidden states
    if not isinstance(actual, Tensor) or actual.shape != rows.shape or actual.dtype != like.dtype:
        return None
    # Norms of models in fp64 may still compute in fp32.
    rounding = max(torch.finfo(t.dtype).eps for t in (actual, weight, torch.empty(0)) if t is not None)
    errors = {
        formula: _error(_computed(formula, rows, weight, bias), actual)
        for formula in _formulas(norm, like.dtype, weight is None)
    }
    best = min(errors, key=lambda formula: errors[formula])
    return best if errors[best] <= _ROUNDINGS * rounding else None


def _rows(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, len(_MAGNITUDES), like.shape[-1], generator=generator)
    # A mean that is not 0 distinguishes LayerNorm from RMSNorm.
    return ((rows + 0.5) * torch.tensor(_MAGNITUDES)[:, None]).to(like.device, like.dtype)


def _formulas(norm: nn.Module, dtype: torch.dtype, no_weight: bool) -> list[NormFormula]:
    """The formulas to compare with the norm: both kinds, its own epsilons or the usual ones, both weight offsets."""
    named = [getattr(norm, name) for name in _EPS_NAMES if isinstance(getattr(norm, name, None), float)]
    if hasattr(norm, "eps") and norm.eps is None:  # torch.nn.RMSNorm's default
        named.append(torch.finfo(dtype).eps)
    offsets = (0.0,) if no_weight else (0.0, 1.0)
    kinds: tuple[NormKind, NormKind] = ("rms", "layer")
    epsilons = dict.fromkeys(named or _USUAL_EPS)
    return [NormFormula(kind, eps, offset) for kind in kinds for eps in epsilons for offset in offsets]


def _computed(formula: NormFormula, rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """fp64, shaped like ``rows [..., d]``; infinite where the formula has no place for the bias."""
    x = rows.double()
    if formula.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + formula.eps)
    y = y * (1.0 if weight is None else weight.double() + formula.weight_offset)
    if bias is None:
        return y
    # The fused RMSNorm has no bias, so that an RMSNorm with one matches no formula.
    return y + bias.double() if formula.kind == "layer" else torch.full_like(y, torch.inf)


def _error(expected: Tensor, actual: Tensor) -> float:
    """Largest error of a row, over the row's largest magnitude."""
    difference = (actual.double() - expected.detach()).abs().amax(-1)
    worst = (difference / expected.detach().abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny)).max()
    return float(worst) if bool(worst.isfinite()) else float("inf")
