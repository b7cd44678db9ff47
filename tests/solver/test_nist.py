"""NIST's reference data sets: certified coefficients, digits by log relative error, and nothing wrong in silence."""

from __future__ import annotations

import math

import pytest
import torch
from nist import DATASETS, Dataset, exact

from incline_fast.solver.accumulator import RidgeAccumulator
from incline_fast.solver.ridge import Ridge, RidgeBreakdownError

# Digits that the solver must have by QR and by Cholesky; each is about one less than was measured, but for Wampler5,
# where rounding the standardised rows to fp64 leaves 6.1 digits to an exact solver, and numpy.linalg.lstsq has 5.7.
DIGITS = {
    "Longley": (13, 11),
    "Norris": (12, 12),
    "Pontius": (11, 11),
    "NoInt1": (14, 14),
    "NoInt2": (14, 14),
    "Filip": (7, None),
    "Wampler1": (8, 6),
    "Wampler2": (11, 9),
    "Wampler3": (8, 6),
    "Wampler4": (7, 6),
    "Wampler5": (5.7, 5.7),
}


def tensors(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    X = torch.tensor([[float(value) for value in row] for row in data.rows], dtype=torch.float64)
    return X, torch.tensor([[float(value)] for value in data.y], dtype=torch.float64)


def digits(fitted: Ridge, data: Dataset) -> float:
    """Smallest log relative error over the coefficients, at most 15: the certified values have no more."""
    found = ([float(fitted.intercept_[0])] if data.intercept else []) + fitted.coef_[0].tolist()
    errors = [abs(a / b - 1) for a, b in zip(found, data.certified, strict=True)]
    return min(-math.log10(max(error, 1e-15)) for error in errors)


@pytest.mark.parametrize("name", DATASETS)
def test_an_exact_solve_reproduces_the_certified_values(name):
    """Which says that neither data nor values were mistyped."""
    data = DATASETS[name]
    for found, certified in zip(exact(data), data.certified, strict=True):
        assert abs(float(found) / certified - 1) < 1e-14


@pytest.mark.parametrize("name", DATASETS)
def test_certified_coefficients(name):
    data = DATASETS[name]
    options = {"fit_intercept": data.intercept, "standardize": data.intercept}
    for form, path, required in zip(("auto", "primal"), ("qr", "primal"), DIGITS[name], strict=True):
        if required is not None:
            fitted = Ridge(0.0, **options, form=form).fit(*tensors(data))
            assert digits(fitted, data) >= required
            assert fitted.path_taken_ == path


def test_filip_is_solved_or_reported_but_never_wrong_in_silence():
    """Without scaling, the powers of x up to the tenth have no ten digits in common: it must say so."""
    data = DATASETS["Filip"]
    X, Y = tensors(data)
    raw = Ridge(0.0).fit(X, Y)
    assert digits(raw, data) < 3
    assert raw.notes_[0].startswith("QR: smallest singular value about")
    assert "rank 9 of 10" in raw.notes_[0]
    assert raw.rcond_ < 1e-15
    for standardize in (True, False):
        with pytest.raises(RidgeBreakdownError, match="Cholesky"):
            Ridge(0.0, standardize=standardize, on_breakdown="raise").fit(X, Y)
    by_gram = Ridge(0.0, standardize=True, on_breakdown="eigh").fit(X, Y)
    assert by_gram.path_taken_ == "eigh"
    assert "rank" in by_gram.notes_[0]


@pytest.mark.parametrize("name", DATASETS)
def test_streamed_rows_have_the_same_digits(name):
    """All sets have more rows than features, so that they are solved from moments."""
    data = DATASETS[name]
    X, Y = tensors(data)
    accumulator = RidgeAccumulator(X.shape[1], 1)
    for start in range(0, len(X), 3):
        accumulator.update(X[start : start + 3], Y[start : start + 3])
    ridge = Ridge(0.0, fit_intercept=data.intercept, standardize=data.intercept, on_breakdown="raise")
    if name == "Filip":
        with pytest.raises(RidgeBreakdownError, match="Cholesky"):
            accumulator.solve(ridge)
    else:
        assert digits(accumulator.solve(ridge), data) >= DIGITS[name][1] - 1
