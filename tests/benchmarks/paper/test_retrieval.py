"""Retrieval: what each baseline takes off is what hides the translation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.paper.retrieval import METHODS, found


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
