"""Ridge regression for many targets, in the manner of scikit-learn.

    Z = (X - mean(X)) / s,   A = argmin sum_i w_i ||A z_i - (y_i - mean(Y))||^2 + lam_abs ||A||^2
    W = A diag(1 / s),       b = mean(Y) - W mean(X)

All steps are in fp64: Gram matrices and factors because a fp32 Gram matrix is 20 to 40 percent wrong for states with
one massive dimension, the rest because it costs little beside them. With n < d the two factors of ``W`` are kept; only
their product, which ``coef_`` forms on demand, takes the dtype of the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from incline_fast.arguments import is_listing, matrix
from incline_fast.solver.lam_selection import PreparedRows, gcv_from_moments, gcv_scores, kfold_scores, loo_scores
from incline_fast.solver.least_squares import (
    OnBreakdown,
    RidgeBreakdownError,
    SolveForm,
    gram,
    is_dual,
    solve,
    solve_moments,
    starts_with_qr,
)
from incline_fast.solver.moments import Moments
from incline_fast.solver.preprocess import (
    Frame,
    Units,
    check_lam,
    check_matrix,
    check_pair,
    check_weight,
    doubled,
    frame_of,
    from_spread,
    prepare,
    units_of,
)
from incline_fast.solver.solution import Solution, SolvePath

__all__ = ["DEFAULT_LAMS", "Ridge", "RidgeBreakdownError", "Select"]

Select = Literal["loo", "gcv", "kfold"]

DEFAULT_LAMS = tuple(10 ** (-4 + 6 * step / 19) for step in range(20))
"""Grid of relative lam from 1e-4 to 100, a factor of 2.07 apart."""


class Ridge:
    """Regularised least squares with its parameter given or chosen.

    Args:
        lam: ridge parameter >= 0, or a grid of them from which ``select`` chooses. 0 is the minimum-norm solution.
        fit_intercept: centre X and Y; the intercept is not penalised.
        standardize: divide every feature by its standard deviation (over n), at least 2^-12 of the size of its mean,
            and when lam is chosen count the squared error of each target in units of its variance. Needs the intercept.
        select: how lam is chosen from a grid: ``"loo"``, exact leave-one-out from one eigendecomposition; ``"gcv"``,
            generalised cross-validation; ``"kfold"``, five folds of a fixed permutation. None: lam is one number.
        form: ``"dual"`` solves with the n x n Gram matrix and keeps factors, ``"primal"`` with the d x d one;
            ``"auto"`` takes the smaller.
        on_breakdown: where Cholesky is not safe: ``"raise"`` a RidgeBreakdownError; ``"fp64"``, decompose the data,
            whose condition is not squared, by QR, or by SVD where the rank may not be full; ``"eigh"``, decompose the
            Gram matrix: half the digits. What happened is in ``path_taken_`` and ``notes_``. With lam = 0,
            ``form="auto"`` and ``"fp64"``, QR comes first where it costs no more than Cholesky: for
            ``d / 2 <= n < 2 d``, or up to 64 rows or features.
        relative: lam is in units of the mean eigenvalue, ``lam_abs = lam trace(G) / d`` with G the Gram matrix of the
            centred, scaled, weighted features: one value means the same shrinkage whatever n, d and scale. Otherwise
            lam is lam_abs, as in scikit-learn.

    Attributes:
        lam_: the parameter that was used, in the unit of ``lam``.
        scores_: fp64 ``[L]``, mean squared prediction error for every lam of a grid (GCV: its criterion), inf where it
            is not defined; None without a grid.
        factors_: fp64 ``(up [t, r], down [r, d])`` with ``W = up @ down``, or ``(W, None)``.
        intercept_: fp64 ``[t]``, zeros without an intercept.
        path_taken_: ``"dual"``, ``"primal"`` (Cholesky), ``"qr"``, ``"svd"``, ``"eigh"``, or ``"mean"`` where
            the features do not vary and there is nothing to solve.
        rcond_: estimated reciprocal condition of what was solved, 1 for ``"mean"``.
        notes_: what there is to report: a breakdown, constant features, a lam at the end of the grid.
        frame_: the means and scales of the fitted rows.
    """

    scores_: Tensor | None
    factors_: tuple[Tensor, Tensor | None]
    intercept_: Tensor
    frame_: Frame
    notes_: tuple[str, ...]
    path_taken_: SolvePath | Literal["mean"]

    def __init__(
        self,
        lam: float | Iterable[float] = DEFAULT_LAMS,
        *,
        fit_intercept: bool = True,
        standardize: bool = False,
        select: Select | None = "loo",
        form: SolveForm = "auto",
        on_breakdown: OnBreakdown = "fp64",
        relative: bool = True,
    ) -> None:
        for name, value, allowed in (
            ("select", select, (*get_args(Select), None)),
            ("form", form, get_args(SolveForm)),
            ("on_breakdown", on_breakdown, get_args(OnBreakdown)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
        if standardize and not fit_intercept:
            raise ValueError("standardize is True without fit_intercept; a standard deviation is about the mean")
        self.lams = tuple(check_lam(value) for value in (lam if is_listing(lam) else (lam,)))
        if not self.lams or (select is None and len(self.lams) > 1):
            raise ValueError(f"lam has {len(self.lams)} values and select is {select!r}; one value needs no select")
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.select = select
        self.form: SolveForm = form
        self.on_breakdown: OnBreakdown = on_breakdown
        self.relative = relative

    def fit(self, X: Tensor, Y: Tensor, sample_weight: Tensor | None = None) -> Ridge:
        """Fit.

        Args:
            X: ``[n, d]`` features, any float dtype.
            Y: ``[n, t]`` targets; row i belongs to row i of X.
            sample_weight: ``[n]``, >= 0; a whole number counts as a row repeated so often, 0 leaves it out.

        Returns:
            This object.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: shapes or devices do not agree, a value is not finite, weights are not usable, there are too few
                rows to choose lam, or no lam of the grid has a finite score.
            RidgeBreakdownError: Cholesky broke down and ``on_breakdown`` is ``"raise"``.
        """
        X, Y = matrix("X", X), matrix("Y", Y)
        check_pair(X, Y)
        sample_weight = None if sample_weight is None else matrix("sample_weight", sample_weight)
        check_weight(sample_weight, len(X))
        x, y = doubled(X), doubled(Y)
        weight = None if sample_weight is None else sample_weight.double()
        if weight is not None and not bool(weight.all()):
            kept = weight > 0
            x, y, weight = x[kept], y[kept], weight[kept]
        # The squares of all other dtypes fit fp64.
        doubles = torch.float64 in {side.dtype for side in (X, Y, sample_weight) if side is not None}
        units = units_of(x, y, weight, by_column=self.standardize) if doubles else None
        if units is not None:
            x, y = x / units.x, y / units.y
            weight = None if weight is None else weight / units.weight
        self._lam_unit = 1.0 if units is None or self.standardize else units.lam
        self._fit(x, y, weight, X.dtype)
        if units is not None:
            self._count_in(units)
        return self

    def _fit(self, x: Tensor, y: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Ridge:
        """Fit fp64 rows of usual size, all of positive weight."""
        frame = frame_of(x, y, weight, intercept=self.fit_intercept, standardize=self.standardize)
        rows = prepare(x, y, weight, frame, intercept=self.fit_intercept)
        self._begin(frame, dtype)
        if self.fit_intercept and not bool(rows.X.any()):
            return self._finish_mean()
        if len(self.lams) == 1 and starts_with_qr(rows.X, self.lams[0], self.form, self.on_breakdown):
            return self._finish(solve(rows.X, rows.Y, 0.0))
        # One Gram matrix is used for the scores and, unless another form was asked for, the solve. The Gram matrices of
        # both forms have the same trace.
        kernel = gram(rows.X if is_dual(rows.X, "auto") else rows.X.T)
        unit = self._unit(kernel.trace(), rows.X.shape[1])
        if len(self.lams) > 1:
            self._choose(self._row_scores(x, y, weight, frame, rows, kernel, unit))
        known = kernel if is_dual(rows.X, self.form) == is_dual(rows.X, "auto") else None
        lam = self.lam_ * unit
        return self._finish(solve(rows.X, rows.Y, lam, form=self.form, on_breakdown=self.on_breakdown, kernel=known))

    def _count_in(self, units: Units) -> None:
        """Convert the result of the divided data to that of the data which were given.

        Raises:
            ValueError: it does not fit fp64.
        """
        up, down = self.factors_
        scaled = up.any()
        if down is None:
            up = up / units.x
        else:
            down = down / units.x
        up = up * units.y.unsqueeze(-1)
        self.factors_ = (up, down)
        self.intercept_ = self.intercept_ * units.y
        self.frame_ = units.in_units_of_data(self.frame_)
        parts = [part for part in (up, down, self.intercept_) if part is not None]
        if not all(bool(part.isfinite().all()) for part in parts) or bool(scaled & ~(up.any())):
            raise ValueError(
                f"X has magnitudes up to {float(units.x.max()):.3g}, Y up to {float(units.y.max()):.3g}; "
                "the map between them does not fit fp64, scale them"
            )
        if self.scores_ is not None and not self.standardize:
            self.scores_ = self.scores_ * units.y[0].square()

    def predict(self, X: Tensor) -> Tensor:
        """Predicted targets ``[m, t]`` for ``X [m, d]``, computed in fp64 and returned in the dtype of X."""
        X = matrix("X", X)
        check_matrix("X", X)
        up, down = self.factors_
        features = up.shape[1] if down is None else down.shape[1]
        if X.shape[1] != features:
            raise ValueError(f"X has {X.shape[1]} features; the fit had {features}")
        z = X.double()
        if down is not None:
            z = z @ down.T
        return (z @ up.T + self.intercept_).to(X.dtype)

    @cached_property
    def coef_(self) -> Tensor:
        """W ``[t, d]``, dense, in the dtype of the features that were fitted; multiplied out at the first use."""
        up, down = (None if factor is None else factor.to(self._dtype) for factor in self.factors_)
        assert up is not None
        return up if down is None else up @ down

    def fit_moments(self, moments: Moments) -> Ridge:
        """Fit from second moments instead of rows: primal, lam given or chosen by ``"gcv"``.

        Raises:
            ValueError: ``form`` or ``select`` needs rows.
            RidgeBreakdownError: Cholesky broke down, and ``on_breakdown`` is not ``"eigh"``.
        """
        if self.form == "dual" or (len(self.lams) > 1 and self.select != "gcv"):
            raise ValueError(
                f"form is {self.form!r}, select {self.select!r}; from moments of more rows than features only the "
                "primal form can be solved and only 'gcv' can choose lam"
            )
        self._lam_unit = 1.0
        n, G, M, yy = moments.n, moments.xx, moments.xy, moments.yy
        mean_x, mean_y = moments.mean_x, moments.mean_y
        if not self.fit_intercept:
            G, M, yy = (
                G + n * torch.outer(mean_x, mean_x),
                M + n * torch.outer(mean_x, mean_y),
                yy + n * mean_y.square(),
            )
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        spread_x, spread_y = (G.diagonal() / n).sqrt(), (yy / n).sqrt()
        frame = from_spread(mean_x, spread_x, mean_y, spread_y, n, standardize=self.standardize)
        gain = torch.where(frame.constant, 0.0, 1 / frame.scale)
        G, M = gain.unsqueeze(-1) * G * gain, gain.unsqueeze(-1) * M
        self._begin(frame, torch.float64)
        if self.fit_intercept and not bool(G.any()):
            return self._finish_mean()
        unit = self._unit(G.trace(), len(G))
        if len(self.lams) > 1:
            scored = (G, M / frame.unit_y, (yy / frame.unit_y.square()).sum(), n, self.fit_intercept)
            self._choose(gcv_from_moments(*scored, self._grid(unit)) / (n * len(yy)))
        return self._finish(solve_moments(G, M, self.lam_ * unit, on_breakdown=self.on_breakdown))

    def _unit(self, trace: Tensor, d: int) -> float:
        unit = float(trace) / d if self.relative else self._lam_unit
        if not max(self.lams) * unit < float("inf"):
            raise ValueError(
                f"lam is {max(self.lams):.3g} in units of {unit:.3g}, which does not fit fp64; scale X or lower lam"
            )
        return unit

    def _grid(self, unit: float) -> Tensor:
        return torch.tensor(self.lams, dtype=torch.float64, device=self.frame_.mean_x.device) * unit

    def _row_scores(
        self, X: Tensor, Y: Tensor, weight: Tensor | None, frame: Frame, rows: PreparedRows, kernel: Tensor, unit: float
    ) -> Tensor:
        """Mean squared error per row and target for every lam of the grid: fp64 ``[L]``.

        Args:
            X: fp64 ``[n, d]``, as given.
            Y: fp64 ``[n, t]``, likewise.
            weight: ``[n]`` or None.
            frame: of these rows.
            rows: these rows in their frame.
            kernel: the smaller Gram matrix of ``rows``.
            unit: an absolute lam over one of the grid.
        """
        n, grid = len(rows.X), self._grid(unit)
        if n < 2:
            raise ValueError(f"there is {n} row of positive weight; choosing lam needs at least 2")
        size = Y.shape[1] * (float(n) if weight is None or self.select == "gcv" else float(weight.sum()))
        if self.select == "kfold":

            def fold(inside: Tensor, held_out: Tensor) -> tuple[PreparedRows, PreparedRows, Tensor]:
                w = None if weight is None else weight[inside]
                own = frame_of(X[inside], Y[inside], w, intercept=self.fit_intercept, standardize=self.standardize)
                own = replace(own, unit_y=frame.unit_y)
                sides = []
                for part in (inside, held_out):
                    w = None if weight is None else weight[part]
                    side = prepare(X[part], Y[part], w, own, intercept=self.fit_intercept)
                    sides.append(PreparedRows(side.X, side.Y / own.unit_y, side.q))
                return sides[0], sides[1], self._grid(self._unit(sides[0].X.square().sum(), X.shape[1]))

            return kfold_scores(n, len(self.lams), fold, X.device) / size
        scored = PreparedRows(rows.X, rows.Y / frame.unit_y, rows.q) if self.standardize else rows
        return (loo_scores if self.select == "loo" else gcv_scores)(scored, kernel, grid) / size

    def _choose(self, scores: Tensor) -> None:
        """Take the lam of the lowest of ``scores [L]``."""
        best = int(scores.argmin())
        if not bool(scores[best].isfinite()):
            raise ValueError(
                f"no lam of {self.lams[0]:g}..{self.lams[-1]:g} has a finite {self.select} score; add larger values"
            )
        self.scores_ = scores
        self.lam_ = self.lams[best]
        if best in (0, len(self.lams) - 1):
            self.notes_ += (f"lam {self.lam_:g} is at the end of its grid",)

    def _begin(self, frame: Frame, dtype: torch.dtype) -> None:
        self.__dict__.pop("coef_", None)
        self._dtype = dtype
        self.frame_ = frame
        self.scores_ = None
        self.lam_ = self.lams[0]
        self.notes_ = frame.notes

    def _finish_mean(self) -> Ridge:
        # No direction to regress on (one row, or equal rows): the best affine map is the mean.
        t, d = len(self.frame_.mean_y), len(self.frame_.mean_x)
        self.factors_ = (self.frame_.mean_y.new_zeros(t, 1), self.frame_.mean_x.new_zeros(1, d))
        self.intercept_ = self.frame_.mean_y
        self.path_taken_ = "mean"
        self.rcond_ = 1.0
        self.notes_ += ("the features do not vary; the map is zero and predicts the mean",)
        return self

    def _finish(self, solution: Solution) -> Ridge:
        frame, up, down = self.frame_, solution.up, solution.down
        if self.standardize:
            # In place: new memory for the largest arrays of the fit would take longer than the division.
            (up if down is None else down).div_(frame.scale)
        self.intercept_ = frame.mean_y
        if self.fit_intercept:
            self.intercept_ = frame.mean_y - up @ (frame.mean_x if down is None else down @ frame.mean_x)
        self.factors_ = (up, down)
        self.path_taken_ = solution.path
        self.rcond_ = solution.rcond
        self.notes_ += solution.notes
        return self
