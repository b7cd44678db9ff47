"""The Cholesky model's arithmetic, by hand; what it prints says that it is a prediction."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cholesky_model as model
from benchmarks.decode_model import Gpu

ROUND = Gpu("round", bandwidth=1.0, tensor=100, vector=10, multiprocessors=100, clock_ghz=1.0, source="made up")
LAUNCH = 1.1 + 0.7


def test_a_step_a_pivot() -> None:
    step = 30 + 40 + 30 + 90 + 90 + 4 + 4 + 2 * 250
    assert model.block_us_by_pivots(ROUND, 10, torch.float32) == pytest.approx(LAUNCH + 10 * step / 1e3)
    double = 30 + 40 + 30 + 180 + 180 + 8 + 8 + 2 * (250 + 72)
    assert model.block_us_by_pivots(ROUND, 10, torch.float64) == pytest.approx(LAUNCH + 10 * double / 1e3)


def test_tiles() -> None:
    """Two tiles: their pivots, two substitutions, two next tiles, six barriers; the products take less than a tile."""
    clocks = 600 + 2 * (1636 + 451 + 60 + 16 * 4 + 3 * 40)
    for size in (17, 32):
        assert model.block_us(ROUND, size, torch.float32) == pytest.approx(LAUNCH + clocks / 1e3)


def test_products_in_the_shadow() -> None:
    """Of eight tiles: 35 lower ones beside the first column's, less the next diagonal one; 7 + 8 rows are read."""
    assert model.shadow_clocks(0, 8, torch.float32) == max(2 * (16 * 34 + 4 * 15 + 150), 8 * 4 * 4 * 15)
    assert model.shadow_clocks(6, 8, torch.float64) == max(2 * (2 * 16 * 7 + 8 * 9 + 150), 8 * 4 * 8 * 9)


def test_the_table_says_predicted() -> None:
    lines = model.table().splitlines()
    assert "predicted, H100" in lines[0]
    assert len(lines) == 2 + 6
