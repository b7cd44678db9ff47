"""Any stride, any leading dimensions, any alignment: the result is that of the contiguous tensors, to the last bit.

The reference's products are torch's, whose rounding depends on alignment on some processors: it is held to a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_cases import BACKENDS, Case, make
from torch import Tensor

from incline_fast import ops
from incline_fast.maps import AffineMap
from incline_fast.ops._extension import EXTENSION
from incline_fast.packing import pack

compiled = pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation")


def gaps(x: Tensor) -> Tensor:
    """Rows that are further apart than they are long."""
    wide = torch.empty(*x.shape[:-1], x.shape[-1] + 13, dtype=x.dtype)
    return wide[..., : x.shape[-1]].copy_(x)


def unaligned(x: Tensor) -> Tensor:
    """Storage that begins one element past an aligned address."""
    flat = torch.empty(x.numel() + 1, dtype=x.dtype)
    return flat[1:].view(x.shape).copy_(x)


def columns_apart(x: Tensor) -> Tensor:
    """Elements of a row that are not neighbours."""
    return torch.empty(*x.shape, 3, dtype=x.dtype)[..., 1].copy_(x)


def transposed(x: Tensor) -> Tensor:
    """Leading dimensions in another order than memory; no flat row stride exists."""
    if x.dim() < 3:
        return columns_apart(x)
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def assert_same(actual: Tensor, wanted: Tensor, backend: str) -> None:
    """Equal bits, where the backend promises them."""
    tolerance = {} if backend == "reference" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(actual, wanted, **tolerance)


LAYOUTS = [gaps, unaligned, columns_apart, transposed]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 1, 3)])
def test_layout_of_the_residual(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Callable[[Tensor], Tensor], backend: str
) -> None:
    for norm, residual in (("rms", None), ("layer", None), ("rms", dtype), ("layer", torch.float64)):
        kinds = {"dtype": dtype, "residual_dtype": residual}
        if torch.float64 in kinds.values():
            kinds["map_dtype"] = torch.float64
        case = make(norm, 37, shape, rank=5, alpha=0.5, **kinds)
        other = case.but(x=layout(case.x))
        if residual is not None:
            other = other.but(residual=layout(case.options["residual"]))
        for run in (Case.__call__, Case.in_place):
            for actual, wanted in zip(run(other, backend), case(backend), strict=True):
                assert_same(actual, wanted, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [gaps, unaligned, columns_apart])
def test_layout_of_vectors(layout: Callable[[Tensor], Tensor], backend: str) -> None:
    rows = 6
    case = make(
        "layer",
        37,
        (rows,),
        num_maps=2,
        alpha=torch.rand(rows),
        beta=torch.rand(rows),
        row_map=torch.tensor([0, 1, -1, 1, 0, 1], dtype=torch.int32),
    )
    vectors = {name: layout(case.options[name]) for name in ("bias", "alpha", "beta", "row_map")}
    other = case.but(weight=layout(case.weight), norm_bias=layout(case.norm_bias), **vectors)
    for actual, wanted in zip(other(backend), case(backend), strict=True):
        assert_same(actual, wanted, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_row_without_leading_dimensions(backend: str) -> None:
    case = make("rms", 37, ())
    y, edited = case(backend)
    assert y.shape == edited.shape == (37,)
    for actual, wanted in zip((y, edited), case.but(x=case.x.unsqueeze(0))(backend), strict=True):
        assert torch.equal(actual, wanted[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_no_rows(shape: tuple[int, ...], backend: str) -> None:
    for norm in ("rms", "layer"):
        y, edited = make(norm, 37, shape, residual_dtype=torch.float32)(backend)
        assert y.shape == edited.shape == (*shape, 37)


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_is_not_written_by_the_functional_form(backend: str) -> None:
    case = make("rms", 37, (3,), residual_dtype=torch.float32)
    before = case.x.clone(), case.options["residual"].clone()
    case(backend)
    assert torch.equal(case.x, before[0])
    assert torch.equal(case.options["residual"], before[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_writes_only_its_rows(backend: str) -> None:
    case = make("rms", 5, (3,))
    wide = torch.full((3, 9), 7.0)
    view = wide[:, 2:7].copy_(case.x)
    ops.affine_rms_norm_(view, case.weight, case.map, **case.options, backend=backend)
    assert not torch.equal(view, case.x)
    assert (wide[:, :2] == 7).all()
    assert (wide[:, 7:] == 7).all()


@compiled
@pytest.mark.parametrize("map_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("hidden", [1, 15, 16, 111, 1100])
@pytest.mark.parametrize("rank", [None, 7])
def test_linear_layout_gives_the_packed_bits(rank: int | None, hidden: int, map_dtype: torch.dtype) -> None:
    """[G, N, K] maps, contiguous or strided, are brought into panels on the fly."""
    rank = rank and min(rank, hidden)
    case = make("rms", hidden, (9,), rank=rank, map_dtype=map_dtype)
    run = torch.ops.incline_fast.affine_rms_norm.default
    map = case.map
    scales = (map.down_scale, map.up_scale)

    def call(down: Tensor | None, up: Tensor) -> tuple[Tensor, Tensor]:
        bias = case.options["bias"]
        return run(case.x, None, case.weight, down, up, *scales, bias, None, None, None, 0.5, 1.0, 1e-6, 0.0)

    wanted = call(*map.packed())
    down = map.down
    for form in (
        call(down, map.up),
        call(None if down is None else down.mT.contiguous().mT, map.up.mT.contiguous().mT),
        call(None if down is None else pack(down), map.up),
    ):
        for actual, reference in zip(form, wanted, strict=True):
            assert torch.equal(actual, reference)


@compiled
def test_stack_equals_its_maps_one_by_one() -> None:
    row_map = torch.tensor([2, 0, -1, 1, 0, 2, 2], dtype=torch.int32)
    case = make("layer", 111, (7,), rank=7, num_maps=3, row_map=row_map, alpha=0.5)
    y, edited = case("cpu")
    for g in range(3):
        single = AffineMap.low_rank(case.map.down[g], case.map.up[g])
        rows = row_map == g
        part = case.but(x=case.x[rows], map=single, bias=case.options["bias"][g], row_map=None)("cpu")
        assert torch.equal(part[0], y[rows])
        assert torch.equal(part[1], edited[rows])
