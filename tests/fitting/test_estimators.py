"""Estimators against numpy, scipy and scikit-learn, judged by W or by held-out predictions, never on training rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from incline_fast.fitting.estimators import ESTIMATORS, Estimator, affine_ridge, get_estimator, shuffled
from incline_fast.solver.ridge import DEFAULT_LAMS

SHAPES = [(5, 12), (11, 12), (12, 12), (13, 12), (60, 12)]


def data(n: int, d: int, seed: int = 0, shift: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated fp64 states with a mean and dimensions of unequal scale."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, d, dtype=torch.float64)
    X = torch.randn(n, d, generator=g, dtype=torch.float64) * scales + shift
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / d**0.5
    return X, X @ mixing + 0.1 * torch.randn(n, d, generator=g, dtype=torch.float64) - shift


def massive(n: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States in fp32 like those of Gemma 3: dimension 3 is about 4e4 and holds far more than 90% of the energy."""
    X, Y = data(n, d, seed, shift=0.5)
    g = torch.Generator().manual_seed(seed + 1000)
    X[:, 3] = 4e4 + 1.5e3 * torch.randn(n, generator=g, dtype=torch.float64)
    Y[:, 3] = X[:, 3] * 0.9 + 500 * torch.randn(n, generator=g, dtype=torch.float64)
    return X.float(), Y.float()


def weight(fitted) -> np.ndarray:
    return fitted.map.to(torch.float64).as_dense()[0].numpy()


def close(actual, expected, rtol=1e-6):
    """fp32 storage: relative to the largest element."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert np.abs(actual - expected).max() <= rtol * np.abs(expected).max()


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_min_norm_is_lstsq(n, d):
    X, Y = data(n, d)
    fitted = ESTIMATORS["min_norm"](X, Y)
    close(weight(fitted), np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)[0].T)
    assert fitted.bias is None
    assert fitted.map.is_low_rank == (n < d)


@pytest.mark.parametrize(("n", "d", "rank"), [(8, 12, 3), (12, 12, 5), (30, 12, 7), (8, 12, 8)])
def test_min_norm_is_lstsq_for_deficient_ranks(n, d, rank):
    g = torch.Generator().manual_seed(1)
    X = torch.randn(n, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, d, generator=g, dtype=torch.float64)
    Y = torch.randn(n, d, generator=g, dtype=torch.float64)
    fitted = ESTIMATORS["min_norm"](X, Y)
    expected, _, counted, _ = np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)
    close(weight(fitted), expected.T)
    assert counted == rank
    if rank < min(n, d):
        assert fitted.form_used == "svd"
        assert f"rank {rank} of {min(n, d)}" in fitted.notes[0]
    else:
        assert fitted.form_used == "qr"
        assert fitted.notes == ()


@pytest.mark.parametrize(
    # W grows as 1 / gap and lstsq itself is only exact to eps / gap; below the cut-off the direction is dropped.
    ("gap", "rtol"),
    [(1e-3, 1e-6), (1e-6, 1e-6), (1e-9, 1e-6), (1e-12, 1e-3), (1e-18, 1e-6)],
)
def test_min_norm_counts_singular_values_like_lstsq(gap, rtol):
    """The smallest singular value moves through lstsq's cut-off; a Gram matrix would lose it at its square root."""
    g = torch.Generator().manual_seed(2)
    U, _ = torch.linalg.qr(torch.randn(9, 9, generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(14, 9, generator=g, dtype=torch.float64))
    S = torch.ones(9, dtype=torch.float64)
    S[-1] = gap
    X, Y = U * S @ V.T, torch.randn(9, 14, generator=g, dtype=torch.float64)
    fitted = ESTIMATORS["min_norm"](X, Y)
    expected, _, rank, _ = np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)
    assert rank == (8 if gap == 1e-18 else 9)
    close(weight(fitted), expected.T, rtol)


@pytest.mark.parametrize("lam", [1e-4, 0.3, 10.0])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_ridge_is_sklearn(n, d, lam):
    X, Y = data(n, d)
    fitted = ESTIMATORS["ridge"](X, Y, lam)
    absolute = lam * float(torch.trace(X.T @ X)) / d
    close(weight(fitted), Ridge(absolute, fit_intercept=False, solver="svd").fit(X.numpy(), Y.numpy()).coef_)
    assert fitted.form_used == ("dual" if n < d else "primal")


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("lam", [1e-3, 0.3])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_affine_ridge_is_sklearn_with_intercept_on_held_out_rows(n, d, lam, standardize):
    X, Y = data(n, d)
    scaler = StandardScaler(with_std=standardize).fit(X.numpy())
    Z = scaler.transform(X.numpy())
    oracle = Ridge(lam * np.square(Z).sum() / d, solver="svd").fit(Z, Y.numpy())
    fitted = affine_ridge(X, Y, lam, standardize=standardize)
    held_out, _ = data(20, d, seed=7)
    expected = oracle.predict(scaler.transform(held_out.numpy()))
    close(fitted.predict(held_out.float()), expected, rtol=2e-6)
    assert fitted.form_used == ("dual" if n < d else "primal")
    assert fitted.lam == lam


def test_relative_lam_of_standardised_states_is_lam_times_n():
    X, Y = data(30, 6)
    scaler = StandardScaler().fit(X.numpy())
    oracle = Ridge(0.3 * 30).fit(scaler.transform(X.numpy()), Y.numpy())
    close(weight(ESTIMATORS["affine_ridge"](X, Y)), oracle.coef_ / scaler.scale_)


def test_affine_ridge_without_lam_is_linear_regression():
    X, Y = data(40, 6)
    fitted = ESTIMATORS["affine_ridge"](X, Y, 0.0)
    oracle = LinearRegression().fit(X.numpy(), Y.numpy())
    close(weight(fitted), oracle.coef_)
    close(fitted.bias, oracle.intercept_)


@pytest.mark.parametrize("name", ["ridge", "affine_ridge"])
def test_dual_equals_primal(name):
    """Repeating every row three times does not change the problem (lam is relative) but turns n < d into n > d."""
    X, Y = data(7, 12)
    dual = ESTIMATORS[name](X, Y, 0.3)
    primal = ESTIMATORS[name](X.repeat(3, 1), Y.repeat(3, 1), 0.3)
    assert (dual.form_used, primal.form_used) == ("dual", "primal")
    close(weight(dual), weight(primal))
    held_out, _ = data(20, 12, seed=5)
    close(dual.predict(held_out.float()), primal.predict(held_out.float()))


def test_scaling_the_states_does_not_change_what_lam_means():
    X, Y = data(7, 12)
    for name in ("ridge", "affine_ridge"):
        close(weight(ESTIMATORS[name](1000 * X, Y, 0.3)) * 1000, weight(ESTIMATORS[name](X, Y, 0.3)))


@pytest.mark.parametrize("name", ["ridge", "affine_ridge"])
def test_leave_one_out_chooses_what_predicts_unseen_rows_best(name):
    X, Y = data(40, 30)
    X, Y = X[:30], Y[:30] + 2 * torch.randn(30, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    chosen = ESTIMATORS[name](X, Y, "loo")
    held_x, held_y = data(500, 30, seed=11)

    def held_out_error(lam) -> float:
        return float((ESTIMATORS[name](X, Y, lam).predict(held_x.float()) - held_y).norm())

    best = min(held_out_error(lam) for lam in DEFAULT_LAMS)
    assert chosen.lam in DEFAULT_LAMS
    assert held_out_error(chosen.lam) < 1.05 * best
    assert held_out_error(DEFAULT_LAMS[0]) > 1.2 * best
    assert np.array_equal(weight(ESTIMATORS[name](X, Y, chosen.lam)), weight(chosen))


def test_tiny_lam_on_deficient_states_reports_that_cholesky_was_not_safe():
    X, Y = data(6, 12)
    X[5], Y[5] = X[4], Y[4]
    fitted = ESTIMATORS["ridge"](X, Y, 1e-14)
    assert fitted.form_used == "qr"
    assert fitted.notes[0].startswith("Cholesky")
    absolute = 1e-14 * float(X.square().sum()) / 12
    close(weight(fitted), Ridge(absolute, fit_intercept=False, solver="svd").fit(X.numpy(), Y.numpy()).coef_)


@pytest.mark.parametrize(("n", "d"), [(12, 8), (60, 8)])
def test_procrustes_is_scipy(n, d):
    X, Y = data(n, d)
    fitted = ESTIMATORS["procrustes"](X, Y)
    R, _ = orthogonal_procrustes((X - X.mean(0)).numpy(), (Y - Y.mean(0)).numpy())
    close(weight(fitted), R.T)
    close(fitted.predict(X.mean(0, keepdim=True).float())[0], Y.mean(0), rtol=1e-5)


def test_procrustes_with_few_pairs_is_orthogonal_and_optimal_and_leaves_the_rest_alone():
    X, Y = data(4, 12)
    fitted = ESTIMATORS["procrustes"](X, Y)
    W = weight(fitted)
    np.testing.assert_allclose(W @ W.T, np.eye(12), atol=1e-6)
    Xc, Yc = (X - X.mean(0)).numpy(), (Y - Y.mean(0)).numpy()
    R, _ = orthogonal_procrustes(Xc, Yc)
    np.testing.assert_allclose(np.linalg.norm(Xc @ W.T - Yc), np.linalg.norm(Xc @ R - Yc), rtol=1e-6)
    assert fitted.notes == ("the data determine 3 of 12 dimensions of the rotation",)
    # Any other completion is a rotation of the free directions; none is nearer to the identity.
    free = np.linalg.svd(Xc.T @ Yc)[0][:, 3:]
    for seed in range(20):
        Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(9, 9)))
        other = W @ (np.eye(12) + free @ (Q - np.eye(9)) @ free.T)
        assert np.linalg.norm(W - np.eye(12)) < np.linalg.norm(other - np.eye(12))


def test_procrustes_of_equal_states_is_the_identity():
    X, _ = data(4, 12)
    np.testing.assert_allclose(weight(ESTIMATORS["procrustes"](X, X)), np.eye(12), atol=1e-6)


def test_mean_estimators():
    X, Y = data(9, 5)
    shift, constant = ESTIMATORS["mean_difference"](X, Y), ESTIMATORS["constant_mean"](X, Y)
    close(shift.bias, Y.mean(0) - X.mean(0))
    close(shift.predict(X.float()), X + Y.mean(0) - X.mean(0))
    close(constant.predict(X.float()), Y.mean(0).expand(9, 5))
    assert not weight(shift).any()
    assert not weight(constant).any()
    assert (shift.map.rank, shift.form_used) == (1, "mean")
    assert ESTIMATORS["mean_difference"].own_form == "add"
    assert ESTIMATORS["constant_mean"].own_form == "interpolate"


def test_shuffled_is_the_estimator_on_wrong_pairs():
    X, Y = data(40, 6)
    control = shuffled("affine_ridge", seed=3)
    assert control.name == "shuffled(affine_ridge, seed=3)"
    first, again, other = control(X, Y), control(X, Y), shuffled("affine_ridge", seed=4)(X, Y)
    assert np.array_equal(weight(first), weight(again))
    assert not np.allclose(weight(first), weight(other))
    held_x, held_y = data(40, 6, seed=8)
    error = (first.predict(held_x.float()) - held_y).norm()
    assert error > 2 * (ESTIMATORS["affine_ridge"](X, Y).predict(held_x.float()) - held_y).norm()
    with pytest.raises(ValueError, match="needs at least 2"):
        control(X[:1], Y[:1])


@pytest.mark.parametrize("n", [20, 64, 200])
@pytest.mark.parametrize("name", ["affine_ridge", "min_norm", "ridge", "procrustes"])
def test_massive_activations_survive_fp32_application(name, n):
    """Map and bias applied in fp32 against the exact fp64 solution applied in fp64, in each dimension's own scale."""
    X, Y = massive(n, 64)
    fitted = ESTIMATORS[name](X, Y)
    held_out, target = massive(50, 64, seed=5)
    exact = exact_prediction(name, X.double(), Y.double(), held_out.double())
    error = (fitted.predict(held_out) - exact).abs().amax(0)
    assert (error / target.std(0)).max() < 5e-5
    if name == "affine_ridge" and n == 200:
        # It is a useful map, too: the massive dimension is predicted far better than by its mean.
        assert (fitted.predict(held_out) - target)[:, 3].norm() < 0.6 * (target[:, 3] - Y[:, 3].mean()).norm()


def exact_prediction(name, X, Y, held_out):
    """The textbook formula in fp64 throughout."""
    mean_x, mean_y = X.mean(0), Y.mean(0)
    d = X.shape[1]
    if name == "min_norm":
        return held_out @ torch.linalg.pinv(X, rtol=torch.finfo(X.dtype).eps * max(X.shape)) @ Y
    if name == "ridge":
        G = X.T @ X
        return held_out @ torch.linalg.solve(G + 0.3 * torch.trace(G) / d * torch.eye(d), X.T @ Y)
    if name == "procrustes":
        W = torch.from_numpy(weight(ESTIMATORS[name](X, Y)))
        return (held_out - mean_x) @ W.T + mean_y
    s = X.std(0, correction=0)
    Z = (X - mean_x) / s
    A = torch.linalg.solve(Z.T @ Z + 0.3 * len(X) * torch.eye(d), Z.T @ (Y - mean_y))
    return (held_out - mean_x) / s @ A + mean_y


def test_a_nearly_constant_dimension_is_not_blown_up():
    """A spread of 1e-9 of the mean is rounding; scaled to one, it would make fp32 application garbage."""
    X, Y = data(40, 6)
    X[:, 2] = 4e4 * (1 + 1e-9 * torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    fitted = ESTIMATORS["affine_ridge"](X, Y)
    assert "vary by less than 2^-12" in fitted.notes[0]
    without = ESTIMATORS["affine_ridge"](X[:, [0, 1, 3, 4, 5, 2]][:, :5], Y[:, [0, 1, 3, 4, 5, 2]][:, :5], 0.3 * 5 / 6)
    # The dimension adds nothing: the other outputs are predicted as if it were not there.
    held_out, _ = data(20, 6, seed=4)
    held_out[:, 2] = 4e4
    others = [0, 1, 3, 4, 5]
    assert (
        fitted.predict(held_out.float())[:, others] - without.predict(held_out[:, others].float())
    ).abs().max() < 0.2


@pytest.mark.parametrize("standardize", [True, False])
def test_constant_dimensions_get_no_weight(standardize):
    X, Y = data(30, 6)
    X[:, 2] = 1 / 3
    fitted = affine_ridge(X, Y, 0.3, standardize=standardize)
    assert not weight(fitted)[:, 2].any()
    assert np.isfinite(weight(fitted)).all()


@pytest.mark.parametrize("n", [1, 7])
def test_states_that_do_not_vary_give_the_mean(n):
    X, Y = data(n, 6)
    fitted = ESTIMATORS["affine_ridge"](X[:1].expand(n, 6) / 3, Y)
    assert fitted.form_used == "mean"
    assert "do not vary" in fitted.notes[-1]
    close(fitted.predict(torch.randn(3, 6)), Y.mean(0).expand(3, 6))


def test_one_pair():
    X, Y = data(1, 6)
    close(ESTIMATORS["min_norm"](X, Y).predict(X.float()), Y)
    rotation = ESTIMATORS["procrustes"](X, Y)
    np.testing.assert_allclose(weight(rotation), np.eye(6), atol=1e-7)
    close(rotation.predict(X.float()), Y, rtol=1e-5)


def test_all_zero_states_give_the_zero_map():
    fitted = ESTIMATORS["min_norm"](torch.zeros(4, 6), torch.ones(4, 6))
    assert not weight(fitted).any()
    assert fitted.form_used == "svd"


def test_duplicates_change_nothing_but_weight():
    X, Y = data(5, 12)
    close(weight(ESTIMATORS["min_norm"](X.repeat(2, 1), Y.repeat(2, 1))), weight(ESTIMATORS["min_norm"](X, Y)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_states_are_fitted_in_fp64(dtype):
    X, Y = (t.to(dtype) for t in data(30, 6))
    fitted = ESTIMATORS["affine_ridge"](X, Y.float())
    exact = ESTIMATORS["affine_ridge"](X.double(), Y.double())
    assert np.array_equal(weight(fitted), weight(exact))
    assert fitted.map.dtype == torch.float32
    assert fitted.bias.dtype == torch.float32


@pytest.mark.parametrize("name", [*ESTIMATORS, "shuffled"])
def test_bad_input_is_named(name):
    estimator = shuffled("ridge") if name == "shuffled" else ESTIMATORS[name]
    X, Y = data(6, 4)
    with pytest.raises(ValueError, match=r"X has shape \(0, 4\)"):
        estimator(X[:0], Y[:0])
    with pytest.raises(ValueError, match=r"Y has shape \(4,\)"):
        estimator(X, Y[0])
    with pytest.raises(ValueError, match="must agree"):
        estimator(X, Y[:5])
    with pytest.raises(ValueError, match="must agree"):
        estimator(X, Y[:, :3])
    with pytest.raises(TypeError, match=r"X is torch\.int64"):
        estimator(X.long(), Y)
    with pytest.raises(TypeError, match="Y is list"):
        estimator(X, Y.tolist())
    for bad in (-0.1, float("nan"), float("inf"), "gcv"):
        with pytest.raises(ValueError, match="lam is"):
            estimator(X, Y, bad)
    X[4, 1] = float("nan")
    with pytest.raises(ValueError, match="X has 1 rows with NaN or infinite values, the first is row 4"):
        estimator(X, Y)
    if not estimator.uses_lam:
        with pytest.raises(ValueError, match="no ridge parameter"):
            estimator(Y, Y, 0.1)
        with pytest.raises(ValueError, match="lam is loo, but"):
            estimator(Y, Y, "loo")


def test_result_beyond_fp32_is_an_error():
    with pytest.raises(ValueError, match="beyond the range of float32"):
        ESTIMATORS["constant_mean"](torch.ones(2, 3), torch.full((2, 3), 1e300, dtype=torch.float64))


def test_estimators_are_looked_up_by_name_or_given():
    assert get_estimator("ridge") is ESTIMATORS["ridge"]
    own = Estimator("own", ESTIMATORS["ridge"].solve)
    assert get_estimator(own) is own
    with pytest.raises(ValueError, match="'lasso'; allowed: min_norm, ridge"):
        get_estimator("lasso")
