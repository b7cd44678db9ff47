"""The Triton ops as operators: schemas, fakes, tracing without graph breaks, and refusals that name the argument."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_cases import TritonCase, make_triton

from incline_fast.ops.triton_kernels import cholesky_block
from incline_fast.ops.triton_kernels.affine_norm import affine_rms_norm_

pytestmark = pytest.mark.gpu_emulated
ROW_MAP = torch.tensor([0, -1, 2, 1], dtype=torch.int32)
TESTS = ("test_schema", "test_faketensor", "test_aot_dispatch_static")


def case_of(norm: str, rank: int | None, **options: Any) -> TritonCase:
    return make_triton(norm, 16, (4,), rank=rank, num_maps=3, row_map=ROW_MAP, alpha=0.5, **options)


@pytest.mark.parametrize("residual", [None, torch.float32])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_opcheck(norm: str, rank: int | None, residual: torch.dtype | None) -> None:
    case = case_of(norm, rank, residual_dtype=residual)
    namespace = torch.ops.incline_fast_triton
    functional = (case.x, case.options.get("residual"), *case.arguments())
    torch.library.opcheck(getattr(namespace, f"affine_{norm}_norm").default, functional, test_utils=TESTS)
    in_place = (case.x.clone(), case.x.clone(), residual is not None, *case.arguments())
    torch.library.opcheck(getattr(namespace, f"affine_{norm}_norm_").default, in_place, test_utils=TESTS)


@pytest.mark.parametrize("name", ["affine_rms_norm", "affine_layer_norm", "affine_rms_norm_", "affine_layer_norm_"])
def test_schemas_are_those_of_the_compiled_ops(name: str) -> None:
    ours, compiled = (
        str(getattr(namespace, name).default._schema)
        for namespace in (torch.ops.incline_fast_triton, torch.ops.incline_fast)
    )
    plain = re.sub(r"\((\w+)!\)", "(!)", ours.replace("incline_fast_triton::", "incline_fast::"))
    assert plain == re.sub(r"\((\w+)!\)", "(!)", compiled)


def test_opcheck_cholesky() -> None:
    A, info = torch.eye(9).repeat(2, 1, 1), torch.zeros(2, dtype=torch.int32)
    torch.library.opcheck(cholesky_block.cholesky_block, (A,), test_utils=TESTS)
    torch.library.opcheck(cholesky_block.triangular_inverse, (A,), test_utils=TESTS)
    for inverse in (torch.empty_like(A), None):
        torch.library.opcheck(cholesky_block.cholesky_block_, (A, inverse, info, 5), test_utils=TESTS)


@pytest.mark.parametrize("form", [TritonCase.__call__, TritonCase.in_place], ids=["functional", "in_place"])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_compiles_without_graph_breaks(norm: str, rank: int | None, form: Any) -> None:
    """Traced down to the Triton kernels; inductor itself would generate code for a GPU that is not there."""
    torch._dynamo.reset()
    case = case_of(norm, rank, residual_dtype=torch.float32, dtype=torch.bfloat16)
    actual = torch.compile(form, fullgraph=True, backend="aot_eager")(case)
    for tensor, wanted in zip(actual, form(case), strict=True):
        assert torch.equal(tensor, wanted)


@pytest.mark.parametrize("shape", [(2, 3), (6,), ()])
def test_any_layout(shape: tuple[int, ...]) -> None:
    """Rows with gaps, rows of a transposed tensor, every other element, and an address that is not aligned."""
    dense = make_triton("rms", 40, shape, dtype=torch.bfloat16, residual_dtype=torch.bfloat16, alpha=0.5)
    expected = dense()
    x = dense.x
    gapped = torch.empty(*shape, 50, dtype=x.dtype)[..., 3:43].copy_(x)
    transposed = x.transpose(0, -1).contiguous().transpose(0, -1)
    skipping = torch.empty(*shape, 80, dtype=x.dtype)[..., ::2].copy_(x)
    misaligned = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    for other in (gapped, transposed, skipping, misaligned):
        case = dense.but(x=other, residual=_like(dense.options["residual"], other))
        for form in (case, case.in_place):
            for actual, wanted in zip(form(), expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-2, atol=1e-2)


def _like(values: Tensor, other: Tensor) -> Tensor:
    return torch.empty_strided(other.shape, other.stride(), dtype=values.dtype).copy_(values)


def test_refused_arguments() -> None:
    case = make_triton("rms", 16, (4,), rank=2)
    for changes, message in [
        ({"x": case.x[:, :15]}, r"weight has shape \(16,\); expected \(15,\), the hidden size"),
        ({"x": case.x.double(), "map": case.map.to(torch.float64)}, "x has dtype float64; the Triton kernels take"),
        ({"residual": case.x.half()}, "residual has dtype float16; allowed: float32, float64"),
        ({"alpha": torch.ones(3)}, r"row_alpha has shape \(3,\); expected \(4,\)"),
        ({"row_map": torch.zeros(4, dtype=torch.int64)}, "row_map has dtype int64; allowed: int32"),
    ]:
        with pytest.raises(ValueError, match=message):
            case.but(**changes)()
    op, down, up, rest = torch.ops.incline_fast_triton.affine_rms_norm, case.map.down, case.map.up, [None] * 6
    stretched = torch.empty(*up.shape[:-1], 4)[..., ::2].copy_(up)
    with pytest.raises(ValueError, match=r"up has strides .*; expected contiguous: pass up.contiguous\(\)"):
        op(case.x, None, case.weight, down, stretched, *rest, 1, 1, 1, 0)
    with pytest.raises(ValueError, match=r"down has shape .*, packed for the CPU"):
        op(case.x, None, case.weight, *case.map.packed(), *rest, 1, 1, 1, 0)


def test_refused_outputs() -> None:
    case = make_triton("rms", 16, (4,), rank=2)
    x = case.x
    with pytest.raises(ValueError, match="y and residual are the same tensor"):
        affine_rms_norm_(x, x, True, *case.arguments())
    with pytest.raises(ValueError, match="residual has stride 0 in dimension 0 of size 4"):
        affine_rms_norm_(x, x[:1].expand(4, 16), True, *case.arguments())
