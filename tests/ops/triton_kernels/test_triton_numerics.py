"""The Triton ops, as the PTX that Triton compiles, against the fp64 definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_numerics import LOW, MAPS, check, spread_options
from triton_cases import make_triton

pytestmark = pytest.mark.gpu_emulated
BF16 = torch.bfloat16


@pytest.mark.parametrize(("hidden", "rank"), [(1, None), (16, None), (111, None), (111, 1), (111, 37), (300, 64)])
def test_sizes(hidden: int, rank: int | None) -> None:
    """From no row to more than the narrowest tile holds; the remaining options meet while the cases walk."""
    for number, (rows, norm) in enumerate(itertools.product((0, 1, 9), ("rms", "layer"))):
        index = hidden * 7 + (rank or 0) + number
        dtype = LOW[index // 2 % 3]
        check(make_triton(norm, hidden, (rows,), rank=rank, dtype=dtype, seed=index, **spread_options(index, rows)), "")


@pytest.mark.parametrize("map_dtype", MAPS)
@pytest.mark.parametrize("dtype", LOW)
def test_dtypes(dtype: torch.dtype, map_dtype: torch.dtype) -> None:
    """Every pair of activations and maps, dense and low rank, with and without a residual of either kind."""
    for number, (rank, residual) in enumerate(itertools.product((None, 20), (None, dtype, torch.float32))):
        norm = ("rms", "layer")[number % 2]
        kinds = {"dtype": dtype, "map_dtype": map_dtype, "residual_dtype": residual, "vector_dtype": LOW[number % 3]}
        row_map = torch.tensor([1, 0], dtype=torch.int32)
        options = {"rank": rank, "num_maps": 2, "seed": number, "alpha": 0.75, "row_map": row_map}
        check(make_triton(norm, 150, (2,), **options, **kinds), "")


@pytest.mark.parametrize(("norm", "hidden"), [("rms", 769), ("layer", 5125)])
def test_odd_widths(norm: str, hidden: int) -> None:
    """769 has a ragged tail everywhere; 5125 is longer than what a program keeps in registers."""
    check(make_triton(norm, hidden, (2,), rank=3, dtype=BF16, residual_dtype=torch.float32, alpha=-0.5), "")


@pytest.mark.parametrize("rank", [None, 40])
def test_more_tokens_than_a_tile_holds_with_several_maps(rank: int | None) -> None:
    row_map = torch.arange(70, dtype=torch.int32) % 4 - 1
    check(make_triton("rms", 48, (70,), rank=rank, num_maps=3, dtype=BF16, row_map=row_map, alpha=0.5), "")


@pytest.mark.parametrize("map_dtype", MAPS)
@pytest.mark.parametrize("rank", [None, 30])
def test_prefill(rank: int | None, map_dtype: torch.dtype) -> None:
    """Above 64 tokens through one map: torch's product and the epilogue; some rows are only normalised."""
    row_map = -(torch.arange(80, dtype=torch.int32) % 2)
    for dtype, residual in [(torch.float32, None), (torch.float16, torch.float16), (BF16, torch.float32)]:
        kinds = {"dtype": dtype, "map_dtype": map_dtype, "residual_dtype": residual}
        check(make_triton("layer", 111, (80,), rank=rank, row_map=row_map, alpha=0.5, beta=0.5, **kinds), "")


def test_rows_without_a_map_keep_their_bits() -> None:
    row_map = torch.tensor([-1, 0, -1, 2, -7], dtype=torch.int32)
    case = make_triton("rms", 111, (5,), num_maps=3, dtype=BF16, row_map=row_map, alpha=2.0, beta=0.5)
    edited = case()[1]
    assert torch.equal(edited[row_map < 0], case.x[row_map < 0])
    assert not torch.isclose(edited[row_map >= 0], case.x[row_map >= 0]).all(-1).any()


def test_norm_reads_the_rounded_residual() -> None:
    case = make_triton("rms", 111, (3,), dtype=BF16, residual_dtype=BF16, vector_dtype=torch.float32)
    y, edited = case()
    again = case.but(x=edited, residual=None, row_map=torch.full((3,), -1, dtype=torch.int32))()
    assert torch.equal(again[1], edited)
    assert torch.equal(again[0], y)


@pytest.mark.parametrize("hidden", [600, 4500])
def test_large_mean_does_not_cancel(hidden: int) -> None:
    """Mean 1e4 and deviation 1 in fp32, also where a row comes in pieces; two passes lose one last bit of r'."""
    case = make_triton("layer", hidden, (2,), rank=1, alpha=0.0)
    case = case.but(x=case.x + 1e4)
    last_bit = 2.0**-10
    assert (case()[0] - case.expected()[0]).abs().max() < last_bit * case.weight.abs().max()


@pytest.mark.parametrize("rank", [None, 5])
def test_a_map_that_does_not_exist_makes_its_row_nan_and_no_other(rank: int | None) -> None:
    for rows, num_maps in ((3, 2), (70, 1), (70, 2)):  # decode, after torch's product, decode in several tiles
        row_map = torch.arange(rows, dtype=torch.int32) % num_maps
        bad = torch.arange(rows) % 17 == 1
        case = make_triton("rms", 64, (rows,), rank=rank, num_maps=num_maps, row_map=row_map.masked_fill(bad, 9))
        for actual, expected in zip(case(), case.but(row_map=row_map.masked_fill(bad, -1))(), strict=True):
            assert actual[bad].isnan().all()
            assert torch.equal(actual[~bad], expected[~bad])
