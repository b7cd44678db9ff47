"""The edit without the norm: chosen rows of a residual stream, in place, all other rows to the bit as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import BACKENDS
from tolerances import assert_close
from torch import Tensor

from incline_fast.maps import AffineMap
from incline_fast.ops import reference
from incline_fast.ops._extension import EXTENSION
from incline_fast.ops.affine_residual import affine_residual_

ROW_MAP = [-1, 0, 1, -1, 1, -3, 0, -1]
LONGER = 3  # the row vectors are buffers of the largest batch


def problem(d: int, rank: int | None, dtype: torch.dtype, residual: bool, map_dtype: torch.dtype) -> dict[str, Any]:
    g = torch.Generator().manual_seed(d + (rank or 0))
    n = len(ROW_MAP)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=g)

    if rank is None:
        map = AffineMap.dense(random(2, d, d, scale=d**-0.5))
    else:
        map = AffineMap.low_rank(random(2, rank, d, scale=d**-0.5), random(2, d, rank, scale=rank**-0.5))
    return {
        "x": random(n, d).to(dtype),
        "residual": random(n, d).to(dtype) if residual else None,
        "map": map.to(map_dtype),
        "bias": random(2, d),
        "row_alpha": torch.rand(n + LONGER, generator=g) - 0.5,
        "row_beta": torch.rand(n + LONGER, generator=g),
        "row_map": torch.tensor(ROW_MAP + [1] * LONGER, dtype=torch.int32),
    }


def run(given: dict[str, Any], backend: str) -> tuple[Tensor, Tensor | None]:
    x = given["x"].clone()
    residual = None if given["residual"] is None else given["residual"].clone()
    affine_residual_(**{**given, "x": x, "residual": residual, "backend": backend})
    return x, residual


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d", "rank"), [(1, None), (33, None), (33, 5), (96, 16)])
def test_edited_rows_follow_the_definition_and_others_keep_their_bits(d, rank, dtype, residual, backend):
    given = problem(d, rank, dtype, residual, torch.float32)
    x, written = run(given, backend)
    n = len(ROW_MAP)
    double = {key: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for key, v in given.items()}
    map = double["map"].to(torch.float64)
    per_row = (double["row_alpha"][:n], double["row_beta"][:n], double["row_map"][:n])
    edit = reference.Edit(map.down, map.up, None, None, double["bias"], *per_row)
    expected, _ = reference.affine_residual(double["x"], double["residual"], edit)
    edited = torch.tensor(ROW_MAP) >= 0
    result = x if written is None else written
    assert_close(result[edited], expected[edited], d)
    assert torch.equal(result[~edited], (given["x"] if written is None else given["residual"])[~edited])
    if written is not None:
        assert torch.equal(x[~edited], given["x"][~edited])
        assert not x[edited].any(), "the engine adds x to the residual once more"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_without_edits_touches_nothing(backend):
    given = problem(8, 3, torch.float32, True, torch.float32)
    given["row_map"] = torch.full_like(given["row_map"], -1)
    given["row_map"][len(ROW_MAP) :] = 0  # beyond the rows of x
    given["row_alpha"][:] = float("nan")
    x, residual = run(given, backend)
    assert torch.equal(x, given["x"])
    assert torch.equal(residual, given["residual"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_wider_buffer_and_of_any_strides(backend):
    given = problem(8, None, torch.float32, False, torch.bfloat16)
    contiguous, _ = run(given, backend)
    wide = torch.zeros(len(ROW_MAP), 20)
    wide[:, 5:13] = given["x"]
    affine_residual_(**{**given, "x": wide[:, 5:13], "backend": backend})
    torch.testing.assert_close(wide[:, 5:13], contiguous, rtol=0, atol=1e-6)
    assert not wide[:, :5].any()
    assert not wide[:, 13:].any()
    columns = torch.empty(8, len(ROW_MAP)).T.copy_(given["x"])
    affine_residual_(**{**given, "x": columns, "backend": backend})
    torch.testing.assert_close(columns, contiguous, rtol=0, atol=1e-6)


def test_bits_of_a_row_do_not_depend_on_the_other_edited_rows():
    if EXTENSION is None:
        pytest.skip("a promise of the compiled kernels")
    given = problem(40, 7, torch.float32, True, torch.float32)
    _, together = run(given, "cpu")
    for row, map in enumerate(ROW_MAP):
        if map >= 0:
            alone = torch.full_like(given["row_map"], -1)
            alone[row] = map
            _, written = run({**given, "row_map": alone}, "cpu")
            assert torch.equal(written[row], together[row])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_map": torch.zeros(7, dtype=torch.int32)}, r"row_map has shape \(7,\); expected \(8,\), the number of"),
        ({"row_alpha": torch.zeros(2)}, r"row_alpha has shape \(2,\); expected \(8,\), the number of rows of x, or"),
        ({"row_map": torch.zeros(8)}, r"row_map has dtype float32; allowed: int32"),
        ({"row_map": torch.full((8,), 2, dtype=torch.int32)}, r"row_map holds 2; allowed: below 2"),
        ({"residual": torch.zeros(8, 5)}, r"residual has shape \(8, 5\); expected \(8, 4\), the shape of x"),
        ({"bias": torch.zeros(3, 4)}, r"bias has shape \(3, 4\); expected \(2, 4\), one bias per map"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused_arguments(changes, message, backend):
    given = {**problem(4, None, torch.float32, True, torch.float32), **changes}
    before = given["x"].clone()
    with pytest.raises((ValueError, RuntimeError), match=message):
        affine_residual_(**{**given, "backend": backend})
    assert torch.equal(given["x"], before)


@pytest.mark.parametrize("residual", [False, True])
def test_opcheck_and_a_compiled_graph(residual):
    given = problem(16, 4, torch.float32, residual, torch.float32)
    map = given["map"]
    down, up = map.packed() if EXTENSION is not None else (map.down, map.up)
    vectors = (given["row_alpha"], given["row_beta"], given["row_map"])
    op = torch.ops.incline_fast.affine_residual_

    def arguments() -> tuple[Any, ...]:
        residual = None if given["residual"] is None else given["residual"].clone()
        return (given["x"].clone(), residual, down, up, None, None, given["bias"], *vectors)

    torch.library.opcheck(op.default, arguments())

    def step(x: Tensor, residual: Tensor | None) -> Tensor:
        x = x + 1
        op(x, residual, down, up, None, None, given["bias"], *vectors)
        return x if residual is None else x + residual

    x, residual = arguments()[:2]
    expected = step(x.clone(), None if residual is None else residual.clone())
    assert torch.equal(torch.compile(step, fullgraph=True, dynamic=True)(x, residual), expected)
