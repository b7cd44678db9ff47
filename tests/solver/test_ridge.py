"""Ridge against scikit-learn, brute force and fp64 SVD; judged by coefficients and held-out rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as Oracle
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from incline_fast.solver import preprocess
from incline_fast.solver.ridge import DEFAULT_LAMS, Ridge, RidgeBreakdownError

SHAPES = [(8, 20), (20, 20), (21, 20), (60, 20)]
LAMS = (1e-3, 1e-1, 1.0, 30.0)


def data(n: int, d: int, t: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated fp64 features with means and unequal scales, and targets that depend on them."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(-1, 1, d, dtype=torch.float64) + 2
    mixing = torch.randn(d, t, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return X, X @ mixing + torch.randn(n, t, generator=g, dtype=torch.float64) * 3 - 1


def weights(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float64).remainder(3) + 1


def absolute(lam: float, **options) -> Ridge:
    return Ridge(lam, relative=False, **options)


def error(actual: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual.double().numpy() - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("form", ["auto", "dual", "primal"])
@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_sklearn(n, d, lam, form, intercept, weighted):
    X, Y = data(n, d)
    weight = weights(n) if weighted else None
    fitted = absolute(lam, fit_intercept=intercept, form=form).fit(X, Y, weight)
    oracle = Oracle(lam, fit_intercept=intercept, solver="svd").fit(X.numpy(), Y.numpy(), weight)
    assert error(fitted.coef_, oracle.coef_) < 1e-8
    held_out, _ = data(10, d, seed=5)
    assert error(fitted.predict(held_out), oracle.predict(held_out.numpy())) < 1e-8
    if intercept:
        np.testing.assert_allclose(fitted.intercept_.numpy(), oracle.intercept_, rtol=1e-7, atol=1e-9)
    else:
        assert not fitted.intercept_.any()
    assert fitted.path_taken_ == ({"auto": "dual" if n < d else "primal"}.get(form, form))
    assert (fitted.factors_[1] is not None) == (fitted.path_taken_ == "dual")


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_weights_are_repeated_rows(n, d, standardize):
    X, Y = data(n, d)
    weight = weights(n) - 1
    repeated = weight.long()
    weighted = Ridge(0.1, standardize=standardize).fit(X, Y, weight)
    rows = Ridge(0.1, standardize=standardize).fit(X.repeat_interleave(repeated, 0), Y.repeat_interleave(repeated, 0))
    assert error(weighted.coef_, rows.coef_.numpy()) < 1e-8
    torch.testing.assert_close(weighted.intercept_, rows.intercept_)


def brute_force_loo(X, Y, lam, weight, intercept):
    """Mean squared error of n fits, each without one row."""
    total = 0.0
    for i in range(len(X)):
        keep = np.arange(len(X)) != i
        oracle = Oracle(lam, fit_intercept=intercept, solver="svd").fit(X[keep], Y[keep], weight[keep])
        total += weight[i] * np.square(oracle.predict(X[i : i + 1]) - Y[i]).sum()
    return total / weight.sum() / Y.shape[1]


@pytest.mark.parametrize("t", [2, 30])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("n", "d"), [(9, 14), (14, 14), (25, 14)])
def test_loo_is_brute_force(n, d, intercept, weighted, t):
    """Both ways of the targets: one by one, and through Y Y^T where there are more of them than rows."""
    X, Y = data(n, d, t)
    weight = weights(n) if weighted else torch.ones(n, dtype=torch.float64)
    fitted = Ridge(LAMS, select="loo", fit_intercept=intercept, relative=False).fit(X, Y, weight if weighted else None)
    expected = [brute_force_loo(X.numpy(), Y.numpy(), lam, weight.numpy(), intercept) for lam in LAMS]
    np.testing.assert_allclose(fitted.scores_.numpy(), expected, rtol=1e-7)
    assert fitted.lam_ == LAMS[int(np.argmin(expected))]


@pytest.mark.parametrize(("n", "d"), [(9, 14), (40, 14)])
def test_selection_is_ridge_cv(n, d):
    X, Y = data(n, d)
    grid = np.logspace(-3, 3, 13)
    oracle = RidgeCV(grid, fit_intercept=True).fit(X.numpy(), Y.numpy())
    fitted = Ridge(list(grid), relative=False).fit(X, Y)
    assert fitted.lam_ == oracle.alpha_
    assert error(fitted.coef_, oracle.coef_) < 1e-8
    assert -float(fitted.scores_.min()) == pytest.approx(oracle.best_score_, rel=1e-8)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("n", "d"), [(9, 14), (14, 14), (25, 14)])
def test_gcv_is_its_formula(n, d, intercept):
    X, Y = data(n, d)
    fitted = Ridge(LAMS, select="gcv", fit_intercept=intercept, relative=False).fit(X, Y)
    ones = np.ones((n, n)) / n if intercept else np.zeros((n, n))
    centred = X.numpy() - ones @ X.numpy()
    for lam, score in zip(LAMS, fitted.scores_, strict=True):
        hat = centred @ np.linalg.solve(centred.T @ centred + lam * np.eye(d), centred.T) + ones
        residual = Y.numpy() - hat @ Y.numpy()
        expected = n * np.square(residual).sum() / (n - np.trace(hat)) ** 2 / (n * Y.shape[1])
        assert float(score) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("n", "d"), [(12, 20), (60, 20)])
def test_kfold_is_five_fits(n, d, standardize):
    X, Y = data(n, d)
    grid = (0.1, 1.0)
    fitted = Ridge(grid, select="kfold", standardize=standardize).fit(X, Y)
    unit = Y.std(0, correction=0) if standardize else torch.ones(Y.shape[1], dtype=torch.float64)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    for lam, score in zip(grid, fitted.scores_, strict=True):
        total = 0.0
        for held_out in order.tensor_split(5):
            inside = torch.tensor([i for i in range(n) if i not in held_out])
            alone = Ridge(lam, standardize=standardize).fit(X[inside], Y[inside])
            total += float(((alone.predict(X[held_out]) - Y[held_out]) / unit).square().sum())
        assert float(score) == pytest.approx(total / Y.numel(), rel=1e-8)


def test_standardised_scores_count_every_target_in_its_own_unit():
    """A massive target would otherwise choose lam for all."""
    X, Y = data(30, 10)
    scaled = Ridge(LAMS, standardize=True).fit(X, Y * torch.tensor([1.0, 1e4, 1e-4]))
    torch.testing.assert_close(scaled.scores_, Ridge(LAMS, standardize=True).fit(X, Y).scores_)
    raw = Ridge(LAMS).fit(X, Y * torch.tensor([1.0, 1e4, 1e-4]))
    assert float(raw.scores_.min()) > 1e4


def svd_solution(X, Y, lam):
    U, S, Vh = np.linalg.svd(X, full_matrices=False)
    return (Y.T @ U) * (S / (S**2 + lam)) @ Vh


def naive_fp32(X: torch.Tensor, Y: torch.Tensor, lam: float) -> torch.Tensor:
    """What one writes first: the normal equations in the precision of the data."""
    d = X.shape[1]
    return torch.linalg.solve(X.T @ X + lam * torch.eye(d), X.T @ Y).T


@pytest.mark.parametrize(
    ("outlier", "lam", "tolerance", "naive_is_wrong_by"),
    # With a massive feature trace / d is that feature's; the same lam relative to the others is 1e-8.
    [(False, 1e-6, 1e-5, 0.2), (True, 1e-6, 1e-4, 0.0), (True, 1e-8, 1e-4, 0.2)],
)
def test_few_rows_and_a_small_lam(outlier, lam, tolerance, naive_is_wrong_by):
    """fp32 normal equations look perfect on their own rows, and are far off elsewhere."""
    g = torch.Generator().manual_seed(0)
    n, d = 100, 256
    X, held_out = torch.randn(n, d, generator=g), torch.randn(50, d, generator=g)
    if outlier:
        for rows in (X, held_out):
            rows[:, 7] = 1e3 * (3 + rows[:, 7])
    Y = X @ torch.randn(d, 8, generator=g) / d**0.5 + 0.1 * torch.randn(n, 8, generator=g)
    absolute_lam = lam * float(X.double().square().sum()) / d
    expected = svd_solution(X.double().numpy(), Y.double().numpy(), absolute_lam)
    predictions = held_out.double().numpy() @ expected.T
    fitted = Ridge(lam, fit_intercept=False).fit(X, Y)
    assert fitted.path_taken_ == "dual"
    assert error(fitted.coef_, expected) < tolerance
    assert error(fitted.predict(held_out), predictions) < tolerance
    naive = naive_fp32(X, Y, absolute_lam)
    assert error(X @ naive.T, X.double().numpy() @ expected.T) < 1e-5
    assert error(naive, expected) > naive_is_wrong_by


@pytest.mark.parametrize("standardize", [False, True])
def test_few_rows_and_a_small_lam_in_the_affine_form(standardize):
    """The massive, uncentred feature against scikit-learn's SVD on fp64 data, on held-out rows."""
    g = torch.Generator().manual_seed(1)
    X, held_out = torch.randn(100, 256, generator=g), torch.randn(50, 256, generator=g)
    for rows in (X, held_out):
        rows[:, 7] = 1e3 * (3 + rows[:, 7])
    Y = X @ torch.randn(256, 8, generator=g) / 16
    scaler = StandardScaler(with_std=standardize).fit(X.double().numpy())
    Z = scaler.transform(X.double().numpy())
    oracle = Oracle(1e-6 * np.square(Z).sum() / 256, solver="svd").fit(Z, Y.double().numpy())
    expected = oracle.predict(scaler.transform(held_out.double().numpy()))
    fitted = Ridge(1e-6, standardize=standardize).fit(X, Y)
    assert error(fitted.predict(held_out), expected) < 1e-6


@pytest.mark.parametrize(("n", "d"), [(12, 30), (30, 30), (40, 30)])
@pytest.mark.parametrize("rank", [4, 12])
def test_lam_zero_is_numpys_minimum_norm(n, d, rank):
    g = torch.Generator().manual_seed(1)
    X = torch.randn(n, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, d, generator=g, dtype=torch.float64)
    Y = torch.randn(n, 4, generator=g, dtype=torch.float64)
    expected, _, counted, _ = np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)
    assert counted == rank
    fitted = Ridge(0.0, fit_intercept=False).fit(X, Y)
    assert error(fitted.coef_, expected.T) < 1e-9
    if rank < min(n, d):
        assert (fitted.path_taken_, fitted.rcond_ > 1e-6) == ("svd", True)
        assert f"rank {rank} of {min(n, d)}" in fitted.notes_[0]
        by_gram = Ridge(0.0, fit_intercept=False, on_breakdown="eigh").fit(X, Y)
        assert by_gram.path_taken_ == "eigh"
        assert error(by_gram.coef_, expected.T) < 1e-6
        # A lam far below rounding is 0, and not a divisor of rounding errors.
        tiny = Ridge(1e-25, fit_intercept=False, on_breakdown="eigh").fit(X, Y)
        assert error(tiny.coef_, expected.T) < 1e-6
        with pytest.raises(RidgeBreakdownError, match="Cholesky"):
            Ridge(0.0, fit_intercept=False, on_breakdown="raise").fit(X, Y)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 20),
    d=st.integers(1, 20),
    t=st.integers(1, 25),
    lam=st.floats(-6, 2),
    form=st.sampled_from(["auto", "dual", "primal"]),
    breakdown=st.sampled_from(["fp64", "eigh"]),
    seed=st.integers(0, 10**6),
)
def test_every_path_gives_the_same(n, d, t, lam, form, breakdown, seed):
    X, Y = data(n, d, t, seed)
    fitted = Ridge(10**lam, fit_intercept=False, form=form, on_breakdown=breakdown).fit(X, Y)
    expected = svd_solution(X.numpy(), Y.numpy(), 10**lam * float(X.square().sum()) / d)
    assert error(fitted.coef_, expected) < 1e-6


def test_duplicated_rows_are_weight_and_their_loo_is_each_others():
    X, Y = data(6, 12)
    twice = Ridge(0.1).fit(X.repeat(2, 1), Y.repeat(2, 1))
    once = Ridge(0.1).fit(X, Y)
    assert error(twice.coef_, once.coef_.numpy()) < 1e-8
    # Whoever is left out has a copy in the fit: the least lam wins, and it says that the grid ends there.
    chosen = Ridge(LAMS).fit(X.repeat(2, 1), Y.repeat(2, 1))
    assert chosen.lam_ == LAMS[0]
    assert chosen.notes_[-1] == "lam 0.001 is at the end of its grid"


def test_a_score_that_does_not_exist_is_never_chosen():
    """Without lam, six rows of rank 2 leave the others undetermined."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(6, 2, generator=g, dtype=torch.float64) @ torch.randn(2, 9, generator=g, dtype=torch.float64)
    Y = torch.randn(6, 4, generator=g, dtype=torch.float64)
    fitted = Ridge((0.0, 0.5), fit_intercept=False).fit(X, Y)
    assert (fitted.lam_, float(fitted.scores_[0])) == (0.5, float("inf"))
    with pytest.raises(ValueError, match=r"no lam of 0\.\.0 has a finite loo score"):
        Ridge((0.0, 0.0), fit_intercept=False).fit(X, Y)


@pytest.mark.parametrize("n", [1, 5])
def test_features_that_do_not_vary_predict_the_mean(n):
    X, Y = data(n, 4)
    fitted = Ridge(0.3, standardize=True).fit(X[:1].expand(n, 4) / 3, Y)
    assert (fitted.path_taken_, fitted.rcond_) == ("mean", 1.0)
    assert not fitted.coef_.any()
    torch.testing.assert_close(fitted.predict(X), Y.mean(0).expand(n, 3))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_constant_features_get_no_weight(standardize, weighted):
    """Also where a weighted mean is not exactly their value."""
    X, Y = data(30, 6)
    X[:, 2] = 1 / 3
    weight = torch.linspace(0.1, 2.3, 30, dtype=torch.float64) if weighted else None
    fitted = Ridge(standardize=standardize).fit(X, Y, weight)
    assert not fitted.coef_[:, 2].any()
    others = [0, 1, 3, 4, 5]
    # The mean eigenvalue is over one feature less.
    alone = Ridge(fitted.lam_ * 5 / 6, standardize=standardize).fit(X[:, others], Y, weight)
    assert error(fitted.coef_[:, others], alone.coef_.numpy()) < 1e-8


def test_one_row():
    X, Y = data(1, 5)
    fitted = Ridge(0.0, fit_intercept=False).fit(X, Y)
    torch.testing.assert_close(fitted.predict(X), Y)
    with pytest.raises(ValueError, match="there is 1 row of positive weight"):
        Ridge(LAMS, fit_intercept=False).fit(X, Y)


def test_dense_coefficients_come_late_in_the_dtype_of_the_data_and_are_forgotten_by_the_next_fit():
    X, Y = data(8, 20)
    fitted = Ridge(0.1).fit(X.float(), Y.float())
    assert "coef_" not in vars(fitted)
    assert (fitted.coef_.dtype, fitted.coef_.shape, fitted.factors_[0].dtype) == (torch.float32, (3, 20), torch.float64)
    assert fitted.coef_ is fitted.coef_
    first = fitted.coef_
    assert not torch.equal(fitted.fit(X * 2, Y).coef_, first.double())
    assert fitted.predict(X.float()).dtype == torch.float32


def test_mixed_and_low_precision_is_fitted_in_fp64():
    X, Y = data(30, 6)
    low, single = X.half(), Y.float()
    fitted, exact = Ridge(0.1).fit(low, single), Ridge(0.1).fit(low.double(), single.double())
    assert torch.equal(fitted.factors_[0], exact.factors_[0])


def test_default_grid():
    assert (len(DEFAULT_LAMS), DEFAULT_LAMS[0]) == (20, 1e-4)
    assert DEFAULT_LAMS[-1] == pytest.approx(100)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lam": -1.0}, "lam is -1.0"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"lam": (0.1, float("inf"))}, "lam is inf"),
        ({"lam": ()}, "lam has 0 values"),
        ({"lam": (1.0, 2.0), "select": None}, "lam has 2 values and select is None"),
        ({"select": "aic"}, "select is 'aic'; allowed: 'loo', 'gcv', 'kfold', None"),
        ({"form": "both"}, "form is 'both'; allowed: 'auto', 'dual', 'primal'"),
        ({"on_breakdown": "jitter"}, "on_breakdown is 'jitter'; allowed: 'raise', 'fp64', 'eigh'"),
        ({"standardize": True, "fit_intercept": False}, "standardize is True without fit_intercept"),
    ],
)
def test_bad_options_are_named(options, reason):
    with pytest.raises(ValueError, match=reason):
        Ridge(**options)


def test_bad_rows_are_named():
    X, Y = data(6, 4)
    ridge = Ridge(0.1)
    bad = X.clone()
    bad[4, 1] = float("nan")
    cases = [
        ((X[:0], Y[:0]), ValueError, r"X has shape \(0, 4\)"),
        ((X, Y[0]), ValueError, r"Y has shape \(3,\); expected \[n, t\]"),
        ((X, Y[:5]), ValueError, "must agree"),
        ((X.long(), Y), TypeError, "X is torch.int64"),
        ((X, Y.tolist()), TypeError, "Y is list"),
        ((bad, Y), ValueError, "X has 1 rows with NaN or infinite values, the first is row 4"),
        ((X, Y, torch.ones(5)), ValueError, r"sample_weight has shape \(5,\); expected \[6\]"),
        ((X, Y, torch.ones(6).long()), TypeError, "sample_weight is torch.int64"),
        ((X, Y, -torch.ones(6)), ValueError, "sample_weight must be finite and >= 0"),
        ((X, Y, torch.zeros(6)), ValueError, "at least one positive weight"),
    ]
    for arguments, kind, reason in cases:
        with pytest.raises(kind, match=reason):
            ridge.fit(*arguments)
    with pytest.raises(ValueError, match="X has 3 features; the fit had 4"):
        ridge.fit(X, Y).predict(X[:, :3])


def test_large_fp32_data_become_the_same_fp64(monkeypatch):
    """On other pages, which must not change a value."""
    monkeypatch.setattr(preprocess, "_NEW_PAGES", 2 << 20)
    for X in (torch.randn(700, 512).bfloat16(), torch.randn(512, 700).T, torch.randn(3, 4)):
        found = preprocess.doubled(X)
        assert found.dtype == torch.float64
        assert torch.equal(found, X.double())
    X = torch.randn(3, 4).double()
    assert preprocess.doubled(X) is X
