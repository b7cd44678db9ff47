"""Small alignments for the tests of the container and of its file."""

from __future__ import annotations

import torch

from incline_fast.alignment.alignment import Alignment, AlignmentMetadata
from incline_fast.maps import AffineMap

D = 6


def random_map(rank: int | None = None, d: int = D, seed: int = 0) -> AffineMap:
    g = torch.Generator().manual_seed(seed)
    if rank is None:
        return AffineMap.dense(torch.randn(d, d, generator=g))
    return AffineMap.low_rank(torch.randn(rank, d, generator=g), torch.randn(d, rank, generator=g))


def example() -> Alignment:
    """Dense and low-rank maps, with and without a bias, and every field of the metadata."""
    metadata = AlignmentMetadata(
        model_id="google/gemma-3-270m",
        config_hash="0123456789abcdef",
        num_layers=12,
        source_language="fr",
        target_language="en",
        template='{sentence}\nLe thème → "x" \u2028',
        pooling="last",
        estimator="affine_ridge",
        n=700,
        recommended_alpha=0.2,
        preset="robust",
        lam={1: 0.3, 2: 0.3, 10: 0.0},
        solver={1: "dual", 2: "primal", 10: "svd"},
        notes={10: ["Cholesky: pivot 3 of 5 is not positive"]},
        fit_error={1: 0.5, 2: 0.25},
    )
    maps = {10: random_map(3), 1: random_map(2, seed=1), 2: random_map()}
    return Alignment.from_maps(maps, bias={1: torch.arange(6.0)}, form="interpolate", metadata=metadata)


def same(a: Alignment, b: Alignment) -> bool:
    def equal(x, y):
        return (x is None and y is None) or torch.equal(x, y)

    return (
        a.form == b.form
        and a.metadata == b.metadata
        and a.layers == b.layers
        and all(
            equal(getattr(a.maps[i], part), getattr(b.maps[i], part))
            for i in a.layers
            for part in ("up", "down", "up_scale", "down_scale")
        )
        and a.bias.keys() == b.bias.keys()
        and all(torch.equal(a.bias[i], b.bias[i]) for i in a.bias)
    )
