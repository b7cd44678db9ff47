"""The projection in the manner of Lens moves a state within the span of the languages' means and nowhere else."""

from __future__ import annotations

import torch

from benchmarks.paper.figure_lines import map_lines, subspace
from incline_fast.fitting.estimators import ESTIMATORS


def states(seed: int, shift: float) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(30, 8, generator=generator) + shift * torch.eye(8)[seed] for site in (2, 3)}


def test_subspace() -> None:
    source, target, other = states(0, 5.0), states(1, 5.0), states(2, 5.0)
    found = subspace(source, target, [other])
    means = torch.stack([side[3].mean(0) for side in (source, target, other)])
    basis = torch.linalg.qr((means[1:] - means[:1]).T).Q
    h = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))
    moved = h + found.maps[3].apply(h) + found.bias[3]
    within, outside = moved @ basis, moved - moved @ basis @ basis.T
    torch.testing.assert_close(within, (means[1] @ basis).expand(4, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outside, h - h @ basis @ basis.T, rtol=1e-4, atol=1e-4)
    assert found.form == "add"


def test_every_line_stands_at_fixed_strengths() -> None:
    found = map_lines(states(0, 1.0), states(1, 1.0), [states(2, 1.0)])
    assert [line for figure, line in found if figure == "pairs"] == ["25", "30"]
    assert {line for figure, line in found if figure == "estimator"} == set(ESTIMATORS)
    assert found["alpha", "min_norm, added"].edit.form == "add"
    assert min(found["alpha", "affine_ridge"].alphas) == -1.0
    assert {line.where for line in found.values()} == {"2-3"}
