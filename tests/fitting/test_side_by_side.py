"""Sites that are solved at the same time: the same maps, errors that name their site, settings left as they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from incline_fast.fitting.fit import fit_states
from incline_fast.fitting.memory_plan import plan_fit
from incline_fast.fitting.side_by_side import side_by_side


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def states(sites: int, n: int, d: int) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + d)
    return {site: torch.randn(n, d, generator=generator) for site in range(1, sites + 1)}


@pytest.mark.parametrize(("estimator", "lam"), [("min_norm", None), ("affine_ridge", 1.0), ("affine_ridge", "loo")])
@pytest.mark.parametrize(("n", "d"), [(40, 96), (70, 96), (150, 96)])
def test_the_maps_are_those_of_one_at_a_time(n: int, d: int, estimator: str, lam: object) -> None:
    X, Y = states(5, n, d), states(5, n + 1, d)
    Y = {site: rows[1:] for site, rows in Y.items()}
    together = fit_states(X, Y, estimator=estimator, lam=lam, progress=False)
    torch.set_num_threads(1)
    alone = fit_states(X, Y, estimator=estimator, lam=lam, progress=False)
    assert list(together.maps) == list(alone.maps) == [1, 2, 3, 4, 5]
    for site in X:
        found, expected = (one.maps[site].apply(X[site]) for one in (together, alone))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert together.metadata.lam == pytest.approx(alone.metadata.lam)


def test_two_sites_run_at_the_same_time_with_one_thread_each() -> None:
    met = threading.Barrier(2, timeout=60)  # broken, and so an error, unless both wait at it

    def work(site: int) -> int:
        met.wait()
        return torch.get_num_threads()

    assert dict(side_by_side(work, [3, 4, 5, 6], 2)) == dict.fromkeys([3, 4, 5, 6], 1)
    assert torch.get_num_threads() == 2


def threads_of_a_new_thread() -> int:
    """Torch gives a Python thread the number that was set last, in whatever thread that was."""
    found: list[int] = []
    new = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    new.start()
    new.join()
    return found[0]


@pytest.mark.parametrize("fails", [False, True])
def test_threads_that_begin_later_have_the_callers_number(fails: bool) -> None:
    def work(site: int) -> int:
        if fails:
            raise KeyError(site)
        return site

    if fails:
        with pytest.raises(KeyError):
            list(side_by_side(work, range(4), 2))
    else:
        assert sorted(dict(side_by_side(work, range(4), 2))) == [0, 1, 2, 3]
    assert threads_of_a_new_thread() == 2


def test_one_at_a_time_has_all_threads() -> None:
    assert list(side_by_side(lambda site: (site, torch.get_num_threads()), [7, 3], 1)) == [(7, (7, 2)), (3, (3, 2))]


def test_modes_are_the_callers() -> None:
    def modes(site: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    assert set(dict(side_by_side(modes, range(4), 2)).values()) == {(True, False)}
    with torch.no_grad():
        assert set(dict(side_by_side(modes, range(4), 2)).values()) == {(False, False)}
    with torch.inference_mode():
        assert set(dict(side_by_side(modes, range(4), 2)).values()) == {(False, True)}


def test_an_error_names_its_site_and_ends_the_rest() -> None:
    X, Y = states(6, 30, 8), states(6, 30, 8)
    X[4][3, 2] = torch.nan
    with pytest.raises(ValueError, match="site 4: "):
        fit_states(X, Y, progress=False)
    assert torch.get_num_threads() == 2
    begun = []

    def work(site: int) -> None:
        begun.append(site)
        time.sleep(0.01)  # so that the caller gets to run before all have begun
        raise KeyError(site)

    with pytest.raises(KeyError):
        list(side_by_side(work, range(500), 2))
    assert len(begun) < 500


def test_how_many_at_once() -> None:
    assert plan_fit(500, 640, range(18), threads=2).at_once == 2
    assert plan_fit(500, 640, range(18), threads=64).at_once == 18
    assert plan_fit(500, 640, range(18)).at_once == 1
    assert plan_fit(500, 640, range(18), threads=8, memory_budget="4GiB").at_once == 1
    large = plan_fit(5000, 4096, range(18), threads=64)  # one of its solves takes more than they may together
    assert large.at_once == 1
    several = plan_fit(1000, 2048, range(18), threads=64)
    assert 1 < several.at_once < 18
    assert several.at_once * several.solve_bytes <= 2**30
    assert several.peak_bytes - several.solve_bytes * several.at_once == 18 * (several.state_bytes + several.map_bytes)
    assert f"at once: {several.at_once}" in str(several)
