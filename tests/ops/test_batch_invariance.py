"""A row's bits depend on nothing but the row: not on its neighbours, their number, their maps, or the threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import make

from incline_fast.maps import AffineMap
from incline_fast.ops._extension import EXTENSION

pytestmark = pytest.mark.skipif(EXTENSION is None, reason="a property of the compiled op; plain PyTorch has its own")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@st.composite
def batches(draw: st.DrawFn):
    """A batch, the rows of it that are also computed alone, and two thread counts."""
    rows = draw(st.one_of(st.integers(1, 40), st.just(129)))
    hidden = draw(st.sampled_from([1, 7, 8, 15, 16, 17, 33, 111, 600, 768, 769, 1100]))
    rank = draw(st.sampled_from([None, 1, 7, 64]))
    dtype = draw(st.sampled_from(DTYPES))
    case = make(
        draw(st.sampled_from(["rms", "layer"])),
        hidden,
        (rows,),
        rank=rank and min(rank, hidden),
        num_maps=3,
        dtype=dtype,
        map_dtype=dtype if dtype is torch.float64 else draw(st.sampled_from([dtype, torch.bfloat16, torch.int8])),
        residual_dtype=draw(st.sampled_from([None, dtype])),
        seed=draw(st.integers(0, 5)),
        alpha=torch.linspace(-1, 1, rows),
        row_map=torch.tensor(draw(st.lists(st.integers(-1, 2), min_size=rows, max_size=rows)), dtype=torch.int32),
    )
    subset = draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows, unique=True))
    return case, torch.tensor(subset), draw(st.integers(1, 4)), draw(st.integers(1, 4))


@settings(max_examples=200, deadline=None)
@given(batches())
def test_row_alone_in_a_batch_and_on_other_threads(batch) -> None:
    case, subset, threads, other_threads = batch
    torch.set_num_threads(threads)
    together = case("cpu")
    rows = {name: case.options[name][subset] for name in ("alpha", "row_map")}
    if case.options.get("residual") is not None:
        rows["residual"] = case.options["residual"][subset]
    torch.set_num_threads(other_threads)
    apart = case.but(x=case.x[subset], **rows)("cpu")
    for whole, part in zip(together, apart, strict=True):
        assert torch.equal(whole[subset], part)


@pytest.mark.parametrize("map_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize(("hidden", "rank"), [(3584, None), (4096, 7), (5125, 64)])
def test_wide_rows_alone_and_in_batches(hidden: int, rank: int | None, map_dtype: torch.dtype) -> None:
    """Every size of tile that a batch is cut into: a row of 129 is that row of 33, of 7, of 3, of 2, and alone."""
    case = make("rms", hidden, (129,), rank=rank, dtype=torch.float16, map_dtype=map_dtype, alpha=0.5)
    together = case("cpu")
    for rows in (33, 7, 3, 2, 1):
        for whole, part in zip(together, case.but(x=case.x[-rows:])("cpu"), strict=True):
            assert torch.equal(whole[-rows:], part)


@pytest.mark.parametrize("rank", [None, 64])
@pytest.mark.parametrize("rows", [1, 4, 64, 700])
def test_work_is_really_split_and_changes_nothing(rows: int, rank: int | None) -> None:
    """Large enough for several threads in every phase, and for several blocks of rows."""
    case = make("layer", 1040, (rows,), rank=rank, dtype=torch.bfloat16)
    torch.set_num_threads(1)
    serial = case("cpu")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for actual, wanted in zip(case("cpu"), serial, strict=True):
            assert torch.equal(actual, wanted)
    for actual, wanted in zip(case.but(x=case.x[-1:])("cpu"), serial, strict=True):
        assert torch.equal(actual, wanted[-1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_subnormal_numbers_alone_and_in_batches(dtype: torch.dtype) -> None:
    """A matrix unit takes them as zero; whatever multiplies few rows in its stead has to do so too."""
    case = make("rms", 600, (17,), dtype=dtype, map_dtype=torch.bfloat16, bias=False, beta=0.0)
    map = AffineMap.dense(case.map.up * 2.0**-60)  # products on both sides of the smallest normal number
    case = case.but(x=case.x * 2.0**-62, map=map, alpha=2.0**100)
    together = case("cpu")
    assert together[1].abs().max() > 0
    for rows in (5, 4, 3, 2, 1):
        for whole, part in zip(together, case.but(x=case.x[-rows:])("cpu"), strict=True):
            assert torch.equal(whole[-rows:], part)


def test_many_rows_in_several_parts_change_nothing() -> None:
    """More activations than one part of the matrix unit's work holds, in bf16 and as pieces of fp32."""
    for dtype in (torch.bfloat16, torch.float32):
        case = make("rms", 2048, (512,), dtype=dtype, map_dtype=torch.bfloat16, alpha=0.5)
        y, edited = case("cpu")
        for row in (0, 255, 256, 511):
            alone = case.but(x=case.x[row : row + 1])("cpu")
            assert torch.equal(alone[0][0], y[row])
            assert torch.equal(alone[1][0], edited[row])
