"""Retrieval: what each baseline takes off is what hides the translation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.paper.retrieval import METHODS, found, found_by_site, table


def made_up(hidden: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pairs ``y`` and a source side in which they are hidden: by a mean, by scales, or by a rotation."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(300, 12, generator=generator)
    noise = 0.1 * torch.randn(300, 12, generator=generator)
    if hidden == "mean":
        x = y + 30 * torch.randn(12, generator=generator)
    elif hidden == "scale":
        x = y * torch.logspace(-2, 2, 12) + 30
    else:
        x = y @ torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    x = x + noise * x.std(0)
    return (x[:200], y[:200]), (x[200:], y[200:])


@pytest.mark.parametrize(
    ("hidden", "finds", "fails"),
    [
        ("mean", "centred", "plain"),
        ("scale", "scaled", "centred"),
        ("rotation", "ridge map, centred", "scaled"),
        ("rotation", "minimum-norm map, centred", "whitened"),
    ],
)
def test_who_finds_what_is_hidden(hidden: str, finds: str, fails: str) -> None:
    fit, test = made_up(hidden)
    assert float(found(finds, fit, test).float().mean()) > 0.8
    assert float(found(fails, fit, test).float().mean()) < 0.5


def test_wrong_pairs_are_not_found() -> None:
    fit, test = made_up("mean")
    for method in METHODS:
        assert float(found(method, fit, (test[0].roll(1, 0), test[1])).float().mean()) < 0.1


def test_rows_over_sites_and_against_scaling() -> None:
    (a, b), (c, d) = made_up("scale")
    right = found_by_site(({1: a, 4: a}, {1: b, 4: b}), ({1: c, 4: c}, {1: d, 4: d}))
    rows = table(right, [1, 4], {"language": "xx"}, {"pairs": 200})
    assert [row["site"] for row in rows[:: len(METHODS)]] == [1, 4, "mean"]
    mean = {row["method"]: row for row in rows if row["site"] == "mean"}
    assert mean["centred"]["accuracy"] == pytest.approx(float(right["centred"].float().mean()), abs=1e-4)
    assert mean["scaled"]["over_scaled_mean"] == 0
    assert mean["centred"]["over_scaled_high"] < 0
