"""Streamed, merged, reduced and resumed rows give what one fit gives."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from incline_fast.solver.accumulator import RidgeAccumulator
from incline_fast.solver.ridge import Ridge

D, T = 12, 5


def data(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 rows with a massive, uncentred feature: sums of squares would lose half the digits."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, D, generator=g) + 1
    X[:, 3] = 4e4 + 10 * X[:, 3]
    return X, X[:, :T] * 0.5 + torch.randn(n, T, generator=g)


def filled(X: torch.Tensor, Y: torch.Tensor, chunk: int) -> RidgeAccumulator:
    return extended(RidgeAccumulator(D, T), X, Y, chunk)


def extended(accumulator: RidgeAccumulator, X: torch.Tensor, Y: torch.Tensor, chunk: int) -> RidgeAccumulator:
    for start in range(0, len(X), chunk):
        accumulator.update(X[start : start + chunk], Y[start : start + chunk])
    return accumulator


def assert_equal_fits(a: Ridge, b: Ridge, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(a.coef_.double(), b.coef_.double(), rtol=rtol, atol=rtol)
    torch.testing.assert_close(a.intercept_, b.intercept_, rtol=1e-8, atol=1e-8)
    assert a.lam_ == b.lam_


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize(
    "options", [{}, {"standardize": True}, {"fit_intercept": False}, {"lam": (1e-3, 1.0, 10.0), "select": "gcv"}]
)
def test_streaming_is_one_fit(chunk, options):
    X, Y = data(100)
    options = {"lam": 0.3, **options}
    streamed = filled(X, Y, chunk).solve(Ridge(**options))
    assert streamed.path_taken_ == "primal"
    # Relative to the weights of the other features, that of the massive one is small.
    assert_equal_fits(streamed, Ridge(**options).fit(X.double(), Y.double()), 1e-9)


@pytest.mark.parametrize("n", [1, 7, 12])
def test_up_to_d_rows_stay_rows(n):
    """So that they are solved in the dual form and leave-one-out is possible."""
    X, Y = data(n)
    accumulator = filled(X, Y, 2)
    assert accumulator.n == n
    assert_equal_fits(accumulator.solve(Ridge(0.1)), Ridge(0.1).fit(X, Y), 0)
    if n > 1:
        assert_equal_fits(accumulator.solve(Ridge()), Ridge().fit(X, Y), 0)


def test_order_and_grouping_do_not_matter():
    X, Y = data(200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    a, b = filled(X, Y, 30)._moments, filled(X[order], Y[order], 7)
    b._flush()
    for name in ("xx", "xy", "yy", "mean_x", "mean_y"):
        one, other = getattr(a, name), getattr(b._moments, name)
        assert float((one - other).abs().max()) <= 1e-12 * float(one.abs().max()), name


def test_moments_are_exact():
    """Centred products against fp64 of the centred rows, feature by feature, the massive one included."""
    X, Y = data(100)
    moments = filled(X, Y, 9)
    moments._flush()
    x, y = (rows.double() - rows.double().mean(0) for rows in (X, Y))
    scale = x.square().sum(0).sqrt()
    assert ((moments._moments.xx - x.T @ x) / torch.outer(scale, scale)).abs().max() < 1e-12
    assert torch.equal(moments._moments.xx, moments._moments.xx.T)
    torch.testing.assert_close(moments._moments.xy / scale[:, None], x.T @ y / scale[:, None], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(moments._moments.yy, y.square().sum(0), rtol=1e-12, atol=0)


def test_a_large_chunk_is_cut_to_pieces(monkeypatch):
    X, Y = data(100)
    whole = filled(X, Y, 100)
    monkeypatch.setattr("incline_fast.solver.moments._ROWS", 17)
    assert_equal_fits(filled(X, Y, 100).solve(Ridge(0.1)), whole.solve(Ridge(0.1)))


@pytest.mark.parametrize(("n", "m"), [(5, 4), (5, 40), (40, 5), (40, 60), (0, 3), (40, 0)])
def test_merged_is_single(n, m):
    X, Y = data(n + m)
    a, b = filled(X[:n], Y[:n], 6), filled(X[n:], Y[n:], 11)
    before = b.state_dict()
    a.merge(b)
    assert a.n == n + m
    assert_equal_fits(a.solve(Ridge(0.3)), Ridge(0.3).fit(X.double(), Y.double()), 1e-8 if n + m > D else 1e-6)
    assert all(torch.equal(before[name], value) for name, value in b.state_dict().items())
    with pytest.raises(ValueError, match="other has d, t = 3, 5; expected 12, 5"):
        a.merge(RidgeAccumulator(3, 5))


@pytest.mark.parametrize("stop", [0, 3, 12, 13, 50])
def test_an_interrupted_accumulation_resumes_with_nothing_lost(stop, tmp_path):
    X, Y = data(60)
    whole = filled(X, Y, 1)
    first = filled(X[:stop], Y[:stop], 1)
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second = RidgeAccumulator(D, T)
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    extended(second, X[stop:], Y[stop:], 1)
    assert second.n == 60
    assert torch.equal(second.solve(Ridge(0.1)).coef_, whole.solve(Ridge(0.1)).coef_)


def test_a_state_is_independent_of_what_comes_after():
    X, Y = data(30)
    accumulator = filled(X, Y, 30)
    state = accumulator.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    accumulator.update(X, Y)
    assert all(torch.equal(kept[name], value) for name, value in state.items())


def test_rows_are_copied():
    X, Y = data(5)
    accumulator = filled(X, Y, 5)
    expected = accumulator.solve(Ridge(0.1)).coef_
    X.zero_()
    assert torch.equal(accumulator.solve(Ridge(0.1)).coef_, expected)


def test_solving_does_not_end_the_stream():
    X, Y = data(40)
    accumulator = filled(X[:20], Y[:20], 3)
    accumulator.solve(Ridge(0.1))
    extended(accumulator, X[20:], Y[20:], 3)
    assert_equal_fits(accumulator.solve(Ridge(0.1)), filled(X, Y, 3).solve(Ridge(0.1)))


def test_features_that_do_not_vary():
    X, Y = data(30)
    streamed = filled(X[:1].expand(30, D), Y, 4).solve(Ridge(0.1))
    assert streamed.path_taken_ == "mean"
    torch.testing.assert_close(streamed.intercept_, Y.double().mean(0))


def test_what_is_refused_and_adds_nothing():
    X, Y = data(30)
    accumulator = filled(X[:20], Y[:20], 4)
    bad = X.clone()
    bad[25, 0] = float("inf")
    cases = [
        ((bad, Y), ValueError, "X has 1 rows with NaN or infinite values, the first is row 25"),
        ((X, Y[:3]), ValueError, "must agree"),
        ((X[:, :3], Y), ValueError, r"expected \[m, 12\] and \[m, 5\]"),
        ((X.int(), Y), TypeError, "X is torch.int32"),
        ((X[:0], Y[:0]), ValueError, r"X has shape \(0, 12\)"),
    ]
    for rows, kind, reason in cases:
        with pytest.raises(kind, match=reason):
            accumulator.update(*rows)
    assert accumulator.n == 20
    with pytest.raises(ValueError, match="no rows have been added"):
        RidgeAccumulator(D, T).solve(Ridge(0.1))
    with pytest.raises(ValueError, match="only 'gcv' can choose lam"):
        accumulator.solve(Ridge())
    with pytest.raises(ValueError, match="form is 'dual'"):
        accumulator.solve(Ridge(0.1, form="dual"))
    with pytest.raises(ValueError, match="d is 0"):
        RidgeAccumulator(0, 1)
    state = accumulator.state_dict()
    state["moments.xy"] = state["moments.xy"][:3]
    with pytest.raises(ValueError, match=r"'moments.xy': \(3, 5\)"):
        RidgeAccumulator(D, T).load_state_dict(state)


def reduce_in_one_of_two(rank: int, n: tuple[int, int], folder: str) -> None:
    """A process of the test below: its own rows, then everybody's."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    X, Y = data(sum(n))
    own = slice(0, n[0]) if rank == 0 else slice(n[0], sum(n))
    accumulator = filled(X[own], Y[own], 7)
    accumulator.all_reduce()
    save_file(accumulator.state_dict(), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.parametrize("n", [(5, 4), (0, 3), (5, 9), (3, 40), (40, 60)])
def test_all_reduced_over_two_processes_is_single(n, tmp_path):
    mp.start_processes(reduce_in_one_of_two, (n, str(tmp_path)), nprocs=2, start_method="fork")
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    X, Y = data(sum(n))
    single = RidgeAccumulator(D, T)
    single.update(X, Y)
    reduced = RidgeAccumulator(D, T)
    reduced.load_state_dict(states[0])
    assert (reduced.n, reduced._moments.n) == (sum(n), single._moments.n)
    for name, expected in single.state_dict().items():
        difference = (states[0][name].double() - expected.double()).abs()
        assert not len(difference.flatten()) or float(difference.max()) <= 1e-12 * float(expected.abs().max()), name
    ridge = Ridge((0.01, 1.0), select="gcv")
    assert reduced.solve(ridge).lam_ == single.solve(Ridge((0.01, 1.0), select="gcv")).lam_
