"""Estimators: from paired states X (source) and Y (target), both ``[n, d]``, to a map ``h -> W h + b``.

All work in fp64 and store fp32. Rows are sentences, so W acts as ``X @ W.T``. The ridge parameter is relative,

    lam_abs = lam * trace(G) / d,      G = X^T X   (of the centred, scaled X where the estimator centres and scales)

that is, in units of G's mean eigenvalue: one value of ``lam`` means the same shrinkage whatever n, d and the scale of
the states. ``lam="loo"`` chooses it from a grid of 20 by exact leave-one-out (:class:`incline_fast.Ridge`). With n < d
the dual form is solved and its two factors are kept: ``down [n, d]``, ``up [d, n]``.

The recipe of INCLINE (Wang et al., ACL 2025, arXiv 2410.12462, section 3.1) is ``min_norm``; ``mean_difference`` is the
vector of contrastive activation addition (Rimsky et al., ACL 2024, arXiv 2312.06681).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from incline_fast.alignment.metadata import Form
from incline_fast.arguments import matrix
from incline_fast.maps import AffineMap
from incline_fast.solver.preprocess import check_lam, check_matrix, frame_of, prepare, units_of
from incline_fast.solver.ridge import DEFAULT_LAMS, Ridge
from incline_fast.solver.solution import SolvePath

__all__ = ["ESTIMATORS", "Estimator", "Fitted", "Lam", "affine_ridge", "get_estimator", "shuffled"]

Lam = float | Literal["loo"]
"""Relative ridge parameter, or how to choose it."""


@dataclass(frozen=True)
class Fitted:
    """A fitted map.

    Attributes:
        map: fp32 AffineMap of one map.
        bias: fp32 ``[d]`` or None.
        lam: relative ridge parameter that was used, given or chosen.
        form_used: ``"dual"``, ``"primal"`` (Cholesky), ``"qr"``, ``"svd"`` (Cholesky and QR were not safe, see
            ``notes``), ``"rotation"`` (Procrustes) or ``"mean"`` (nothing to solve).
        is_shift: the prediction is ``h + W h + b`` (mean difference), not ``W h + b``.
        notes: a breakdown of the Cholesky factorisation, constant dimensions, a lam at the end of its grid.
    """

    map: AffineMap
    bias: Tensor | None
    lam: float
    form_used: SolvePath | Literal["rotation", "mean"]
    is_shift: bool = False
    notes: tuple[str, ...] = ()

    def predict(self, X: Tensor) -> Tensor:
        """Predicted target states ``[n, d]`` in fp32 for source states ``[n, d]``."""
        X = X.to(self.map.dtype)
        predicted = self.map.apply(X)
        if self.bias is not None:
            predicted = predicted + self.bias
        return predicted + X if self.is_shift else predicted


@dataclass(frozen=True)
class Estimator:
    """A named way to fit a map. Call it: ``estimator(X, Y, lam)``.

    Attributes:
        name: key of the registry; recorded in the alignment.
        solve: called with fp64 ``X [n, d]``, ``Y [n, d]`` and a lam, all checked; returns a :class:`Fitted`.
        default_lam: relative lam where none is given.
        uses_lam: whether a lam other than 0 means anything.
        own_form: the only form in which the result makes sense, None if both do.
        min_pairs: number of rows below which there is nothing to fit.
    """

    name: str
    solve: Callable[[Tensor, Tensor, Lam], Fitted]
    default_lam: Lam = 0.0
    uses_lam: bool = False
    own_form: Form | None = None
    min_pairs: int = 1

    def __call__(self, X: Tensor, Y: Tensor, lam: Lam | None = None) -> Fitted:
        """Fit.

        Args:
            X: ``[n, d]`` source states, any float dtype.
            Y: ``[n, d]`` target states; row i belongs to row i of X.
            lam: relative ridge parameter >= 0, or ``"loo"`` to choose it; None for the estimator's default.

        Raises:
            TypeError: X or Y is not a floating-point tensor.
            ValueError: shapes or devices do not agree, there are no rows, a row is not finite, lam is negative, not
                finite or not used by this estimator, or the result does not fit fp32.
        """
        lam = self.checked_lam(lam)
        X, Y = matrix("X", X), matrix("Y", Y)
        _check_states(X, Y)
        if len(X) < self.min_pairs:
            raise ValueError(f"there is {len(X)} pair; {self.name} needs at least {self.min_pairs}")
        return self.solve(X.double(), Y.double(), lam)

    def checked_lam(self, lam: Lam | None) -> Lam:
        """The ridge parameter that a call would use.

        Raises:
            ValueError: it is negative, not finite, neither a number nor ``"loo"``, or not used by this estimator.
        """
        lam = self.default_lam if lam is None else lam
        if isinstance(lam, str) and lam != "loo":
            raise ValueError(f"lam is {lam!r}; expected a number >= 0 or 'loo'")
        checked: Lam = "loo" if isinstance(lam, str) else check_lam(lam)
        if checked != 0 and not self.uses_lam:
            raise ValueError(f"lam is {lam}, but {self.name} has no ridge parameter; leave it out or give 0")
        return checked


def min_norm(X: Tensor, Y: Tensor, lam: Lam = 0.0) -> Fitted:
    """``W^T = pinv(X) Y``: least squares of minimum norm, equal to ``numpy.linalg.lstsq(X, Y, rcond=None)`` in fp64."""
    return ridge(X, Y, lam)


def ridge(X: Tensor, Y: Tensor, lam: Lam) -> Fitted:
    """``W^T = (X^T X + lam_abs I)^-1 X^T Y``, no bias, ``lam_abs = lam * trace(X^T X) / d``."""
    fitted = Ridge(_grid(lam), fit_intercept=False).fit(X, Y)
    return Fitted(_store(*fitted.factors_), None, fitted.lam_, fitted.path_taken_, notes=fitted.notes_)


def affine_ridge(X: Tensor, Y: Tensor, lam: Lam, *, standardize: bool = True) -> Fitted:
    """Ridge with a bias on centred states; the bias is not penalised.

        Z = (X - mean(X)) / s,   A = argmin ||Z A^T - (Y - mean(Y))||^2 + lam_abs ||A||^2
        W = A diag(1 / s),       b = mean(Y) - W mean(X),      lam_abs = lam trace(Z^T Z) / d

    Args:
        X: fp64 ``[n, d]``.
        Y: fp64 ``[n, d]``.
        lam: relative; with ``standardize`` and no constant dimension ``lam_abs = lam n``. ``"loo"`` chooses it.
        standardize: s is the standard deviation of each dimension (over n, not n - 1), but at least 2^-12 of the size
            of its mean. Otherwise s = 1. A constant dimension gets the weight 0 either way.

    The bias is computed from the rounded map, so that the rounding of ``W`` is multiplied by ``h - mean(X)`` and not by
    h: in a dimension where ``|mean| >> std`` that keeps fp32 application exact.
    """
    fitted = Ridge(_grid(lam), standardize=standardize).fit(X, Y)
    stored = _store(*fitted.factors_)
    bias = _bias(stored, fitted.frame_.mean_x, fitted.frame_.mean_y)
    return Fitted(stored, bias, fitted.lam_, fitted.path_taken_, notes=fitted.notes_)


def procrustes(X: Tensor, Y: Tensor, lam: Lam = 0.0) -> Fitted:
    """The orthogonal W with the smallest ``||(X - mean(X)) W^T - (Y - mean(Y))||``, ``b = mean(Y) - W mean(X)``.

    With ``(X - mean)^T (Y - mean) = U S V^T`` it is ``W = V U^T`` (Schönemann 1966). Where the data span k < d
    dimensions they leave W open on the rest; there it is the rotation nearest to the identity, so that what the data do
    not determine is moved as little as possible.
    """
    units = units_of(X, Y, None, by_column=False)
    x, y = (X, Y) if units is None else (X / units.x, Y / units.y)  # a rotation does not depend on the scale
    frame = frame_of(x, y, None, intercept=True, standardize=False)
    rows = prepare(x, y, None, frame, intercept=True)
    frame = frame if units is None else units.in_units_of_data(frame)
    U, S, Vh = torch.linalg.svd(rows.X.T @ rows.Y)
    known = S[0] * len(S) * torch.finfo(S.dtype).eps < S
    W = Vh[known].T @ U[:, known].T
    notes: tuple[str, ...] = ()
    if not bool(known.all()):
        free_x, free_y = U[:, ~known], Vh[~known]
        left, _, right = torch.linalg.svd(free_y @ free_x)
        W = W + free_y.T @ left @ right @ free_x.T
        notes = (f"the data determine {int(known.sum())} of {len(S)} dimensions of the rotation",)
    stored = _store(W, None)
    return Fitted(stored, _bias(stored, frame.mean_x, frame.mean_y), 0.0, "rotation", notes=notes)


def mean_difference(X: Tensor, Y: Tensor, lam: Lam = 0.0) -> Fitted:
    """``W = 0``, ``b = mean(Y) - mean(X)``: the vector of contrastive activation addition, for form ``"add"``."""
    return Fitted(_zero_map(X), _to_fp32(Y.mean(0) - X.mean(0)), 0.0, "mean", is_shift=True)


def constant_mean(X: Tensor, Y: Tensor, lam: Lam = 0.0) -> Fitted:
    """``W = 0``, ``b = mean(Y)``: a control, the same for every sentence, for form ``"interpolate"``."""
    return Fitted(_zero_map(X), _to_fp32(Y.mean(0)), 0.0, "mean")


ESTIMATORS: dict[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("min_norm", min_norm),
        Estimator("ridge", ridge, default_lam=0.3, uses_lam=True),
        Estimator("affine_ridge", affine_ridge, default_lam=0.3, uses_lam=True),
        Estimator("procrustes", procrustes),
        Estimator("mean_difference", mean_difference, own_form="add"),
        Estimator("constant_mean", constant_mean, own_form="interpolate"),
    )
}


def get_estimator(estimator: str | Estimator) -> Estimator:
    """The estimator of a name, or the one that is given.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; allowed: {', '.join(ESTIMATORS)} or an Estimator")
    return ESTIMATORS[estimator]


def shuffled(estimator: str | Estimator, seed: int = 0) -> Estimator:
    """The control that learns from wrong pairs: the same estimator after a seeded permutation of the rows of Y.

    The permutation depends on the seed and n alone, so that every layer sees the same wrong pairs.
    """
    inner = get_estimator(estimator)

    def solve_shuffled(X: Tensor, Y: Tensor, lam: Lam) -> Fitted:
        order = torch.randperm(len(Y), generator=torch.Generator().manual_seed(seed), device="cpu")
        return inner.solve(X, Y[order.to(Y.device)], lam)

    return replace(inner, name=f"shuffled({inner.name}, seed={seed})", solve=solve_shuffled, min_pairs=2)


def _check_states(X: Tensor, Y: Tensor) -> None:
    check_matrix("X", X)
    check_matrix("Y", Y)
    if X.shape != Y.shape or X.device != Y.device:
        raise ValueError(f"X is {tuple(X.shape)} on {X.device}, Y is {tuple(Y.shape)} on {Y.device}; they must agree")


def _grid(lam: Lam) -> float | tuple[float, ...]:
    return DEFAULT_LAMS if lam == "loo" else lam


def _bias(stored: AffineMap, mean_x: Tensor, mean_y: Tensor) -> Tensor:
    return _to_fp32(mean_y - stored.to(torch.float64).apply(mean_x))


def _zero_map(X: Tensor) -> AffineMap:
    d = X.shape[1]
    return AffineMap.low_rank(
        torch.zeros(1, d, dtype=torch.float32, device=X.device), torch.zeros(d, 1, dtype=torch.float32, device=X.device)
    )


def _store(up: Tensor, down: Tensor | None) -> AffineMap:
    up = _to_fp32(up).contiguous()
    return AffineMap.dense(up) if down is None else AffineMap.low_rank(_to_fp32(down).contiguous(), up)


def _to_fp32(value: Tensor) -> Tensor:
    single = value.float()
    if not bool(single.isfinite().all()):
        raise ValueError("the fitted map has values beyond the range of float32; scale the states or raise lam")
    if bool(value.any()) and not bool(single.any()):
        raise ValueError(f"the fitted map has no value above {float(value.abs().max()):.3g}, which float32 makes zero")
    return single
