"""Data of any size that fp64 can hold: the same map in other units, or a refusal; never a silent zero."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from incline_fast import Ridge, RidgeAccumulator, fit_states
from incline_fast.fitting.estimators import ESTIMATORS
from incline_fast.fitting.fit import relative_error

torch.manual_seed(0)
X, Y = torch.randn(40, 6).double(), torch.randn(40, 3).double()
WIDE_X, WIDE_Y = torch.randn(12, 30).double() + 3, torch.randn(12, 4).double()
SCALES = (1e150, 1e155, 1e300, 1e-160, 1e-170, 1e-300, 2.0**500, 2.0**-500)


def close(found, wanted, tolerance=1e-9):
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("options", [
    {"lam": 1.0, "select": None},
    {"lam": 0.0, "select": None},
    {"lam": 1.0, "select": None, "standardize": True},
    {"lam": 1.0, "select": None, "fit_intercept": False},
    {"lam": 1.0, "select": None, "form": "dual"},
    {"select": "loo"},
    {"select": "gcv"},
    {"select": "kfold", "standardize": True},
    {"select": "loo", "on_breakdown": "eigh"},
])  # fmt: skip
@pytest.mark.parametrize("data", [(X, Y), (WIDE_X, WIDE_Y)], ids=["tall", "wide"])
def test_features_and_targets_of_any_size_give_the_same_map(scale, options, data):
    x, y = data
    wanted = Ridge(**options).fit(x, y)
    for of_x, of_y in ((scale, 1.0), (1.0, scale), (scale, scale)):
        fitted = Ridge(**options).fit(x * of_x, y * of_y)
        up, down = fitted.factors_
        W = up * (of_x / of_y) if down is None else (up / of_y) @ (down * of_x)
        assert close(W, wanted.coef_)
        assert fitted.lam_ == wanted.lam_
        assert close(fitted.intercept_ / of_y, wanted.intercept_, 1e-8) or not options.get("fit_intercept", True)
        assert fitted.path_taken_ == wanted.path_taken_
        assert close(fitted.predict(x * of_x) / of_y, wanted.predict(x), 1e-8)


@pytest.mark.parametrize("sizes", [(1e170, 1.0), (1e-170, 1e-20), (1e145, 1e-145), (1e-160, 1e145)])
def test_features_and_targets_of_different_sizes_are_standardised(sizes):
    of_x = torch.tensor([sizes[0], sizes[1], 1, 1, sizes[0], 1e5], dtype=torch.float64)
    of_y = torch.tensor([1.0, sizes[1], sizes[0]], dtype=torch.float64)
    wanted = Ridge(0.5, select=None, standardize=True).fit(X, Y)
    fitted = Ridge(0.5, select=None, standardize=True).fit(X * of_x, Y * of_y)
    assert close(fitted.predict(X * of_x) / of_y, wanted.predict(X))
    assert fitted.notes_ == wanted.notes_


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-305, 1e200])
@pytest.mark.parametrize("relative", [True, False])
def test_weights_of_any_size(scale, relative):
    weight = torch.rand(40).double() + 0.5
    lam = 0.5 if relative else 0.0
    wanted = Ridge(lam, select=None, relative=relative).fit(X, Y, weight)
    assert close(Ridge(lam, select=None, relative=relative).fit(X, Y, weight * scale).coef_, wanted.coef_)


@pytest.mark.parametrize("scale", [1e130, 1e155, 1e-130])
def test_an_absolute_lam_is_in_the_units_of_the_data(scale):
    wanted = Ridge(0.5, select=None).fit(X, Y)
    absolute = 0.5 * float((X - X.mean(0)).square().sum()) / 6
    lam = absolute * scale * scale
    if lam in (0.0, float("inf")):
        fitted = Ridge(7.0, select=None, relative=False).fit(X * scale, Y)  # nothing beside such features
        wanted = Ridge(0.0, select=None).fit(X, Y)
    else:
        fitted = Ridge(lam, select=None, relative=False).fit(X * scale, Y)
    assert close(fitted.coef_ * scale, wanted.coef_)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"lam is 1 in units of inf"):
        Ridge(1.0, select=None, relative=False).fit(X * 1e-170, Y)
    with pytest.raises(ValueError, match=r"lam is .* does not fit fp64"):
        Ridge(1e308, select=None).fit(X * 1e10, Y)
    with pytest.raises(ValueError, match="the map between them does not fit fp64"):
        Ridge(1.0, select=None).fit(X * 1e-200, Y * 1e200)
    with pytest.raises(ValueError, match="the map between them does not fit fp64"):
        Ridge(1.0, select=None).fit(X * 1e250, Y * 1e-200)


@pytest.mark.parametrize("scale", [1e155, 1e-170])
def test_streams_refuse_what_their_moments_cannot_hold(scale):
    mixed = torch.cat([X[:, :5], X[:, 5:] * scale], 1)
    for x, y, reason in ((mixed, Y, "X has the magnitude .* in column 5"), (X, Y * scale, "Y has the magnitude")):
        accumulator = RidgeAccumulator(6, 3)
        with pytest.raises(ValueError, match=reason):
            accumulator.update(x, y)
        assert accumulator.n == 0
    accumulator.update(torch.zeros_like(X), Y)  # a constant is no such column
    assert accumulator.n == 40


@pytest.mark.parametrize(("name", "scale"), product(ESTIMATORS, (1e155, 1e-170)))
def test_estimators_give_the_same_map_for_states_of_any_size(name, scale):
    x, y = torch.randn(30, 5).double() + 1, torch.randn(30, 5).double()
    estimator = ESTIMATORS[name]
    wanted = estimator(x, y)
    if wanted.bias is not None:
        # The bias has the size of the states, which fp32 does not hold.
        with pytest.raises(ValueError, match="float32"):
            estimator(x * scale, y * scale)
        return
    found = estimator(x * scale, y * scale)
    assert close(found.map.as_dense(), wanted.map.as_dense(), 1e-5)
    assert found.lam == wanted.lam


@pytest.mark.parametrize("scale", [1e155, 1e-170])
def test_a_map_that_float32_would_make_zero_is_refused(scale):
    x, y = torch.randn(30, 5).double(), torch.randn(30, 5).double()
    with pytest.raises(ValueError, match="float32"):
        ESTIMATORS["ridge"](x * scale, y, 0.5)
    with pytest.raises(ValueError, match="site 1: the fitted map has"):
        fit_states({1: x * scale}, {1: y}, estimator="min_norm", progress=False)


@pytest.mark.parametrize("scale", [1e155, 1e-170, 1e300])
def test_held_out_errors_do_not_depend_on_the_size(scale):
    predicted, target = Y + 0.1, Y
    wanted = relative_error(predicted, target, Y)
    assert relative_error(predicted * scale, target * scale, Y * scale) == pytest.approx(wanted, rel=1e-9)
    assert relative_error(predicted, torch.zeros_like(Y), torch.zeros_like(Y)) is None


def test_data_of_usual_size_are_taken_as_they_are():
    """Units are powers of two and apart from extremes 1, so that no bit of a result depends on them."""
    for scale in (1e100, 1e-100, 3e143):
        x = X * scale
        again = Ridge(0.5, select=None).fit(x, Y).coef_ * 2.0**10
        assert torch.equal(Ridge(0.5, select=None).fit(x / 2**10, Y).coef_, again)
