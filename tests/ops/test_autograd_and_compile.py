"""Gradients, torch's own checks of a custom op, and graphs without breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import BACKENDS, Case, make
from torch import Tensor

from incline_fast import ops
from incline_fast.maps import AffineMap
from incline_fast.ops._extension import EXTENSION
from incline_fast.ops.affine_norm import NormOp

compiled = pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation")
ROW_MAP = torch.tensor([0, 2, -1, 1], dtype=torch.int32)
NORMS = ["rms", "layer"]


def double_case(norm: str, rank: int | None, num_maps: int, residual: bool) -> Case:
    kinds: dict[str, Any] = {"residual_dtype": torch.float64 if residual else None}
    if num_maps > 1:
        kinds["row_map"] = ROW_MAP
    g = torch.Generator().manual_seed(1)
    alpha, beta = torch.randn(2, 4, dtype=torch.float64, generator=g)
    return make(
        norm,
        5,
        (2, 2),
        rank=rank,
        num_maps=num_maps,
        dtype=torch.float64,
        alpha=alpha,
        beta=beta,
        weight_offset=1.0,
        **kinds,
    )


def leaves(case: Case) -> dict[str, Tensor]:
    """Every floating-point tensor of a case by name."""
    tensors = {
        "x": case.x,
        "weight": case.weight,
        "norm_bias": case.norm_bias,
        "down": case.map.down,
        "up": case.map.up,
    }
    tensors |= {name: value for name, value in case.options.items() if isinstance(value, Tensor)}
    return {name: t.clone() for name, t in tensors.items() if t is not None and t.is_floating_point()}


def with_leaves(case: Case, tensors: dict[str, Tensor]) -> Case:
    tensors = dict(tensors)
    map = AffineMap(tensors.pop("down", None), tensors.pop("up"))
    return case.but(map=map, **tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("num_maps", [1, 3])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_every_input(norm: str, rank: int | None, num_maps: int, residual: bool, backend: str) -> None:
    case = double_case(norm, rank, num_maps, residual)
    tensors = {name: t.requires_grad_() for name, t in leaves(case).items()}

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return with_leaves(case, dict(zip(tensors, values, strict=True)))(backend)

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))


@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives(norm: str) -> None:
    case = double_case(norm, 2, 1, False)
    tensors = {name: t.requires_grad_() for name, t in leaves(case).items()}

    def run(*values: Tensor) -> Tensor:
        return with_leaves(case, dict(zip(tensors, values, strict=True)))("auto")[0]

    assert torch.autograd.gradgradcheck(run, tuple(tensors.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_dtype_of_their_inputs(dtype: torch.dtype, norm: str, backend: str) -> None:
    case = make(norm, 7, (3,), rank=2, dtype=dtype, map_dtype=torch.bfloat16, vector_dtype=torch.float32, alpha=0.5)
    tensors = {name: t.requires_grad_() for name, t in leaves(case).items()}
    y, edited = with_leaves(case, tensors)(backend)
    (y.sum() + edited.sum()).backward()
    for tensor in tensors.values():
        assert tensor.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_flow_around_an_int8_map(norm: str, rank: int | None, backend: str) -> None:
    """The map is a constant; every other input has the gradient that the multiplied-out map gives it."""
    case = make(norm, 7, (3,), rank=rank, map_dtype=torch.int8, alpha=0.5)
    gradients = []
    for map in (case.map, case.map.to(torch.float32)):
        tensors = {name: t.requires_grad_() for name, t in leaves(case).items()}
        y, edited = case.but(**tensors, map=map)(backend)
        (y * edited).sum().backward()
        gradients.append({name: t.grad for name, t in tensors.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


@compiled
@pytest.mark.parametrize("norm", NORMS)
def test_a_scale_has_no_gradient(norm: str) -> None:
    case = make(norm, 7, (3,), map_dtype=torch.int8)
    arguments = list(op_arguments(case, packed=True))
    scale = next(i for i, value in enumerate(arguments) if value is case.map.up_scale)
    arguments[scale] = case.map.up_scale.clone().requires_grad_()
    with pytest.raises(ValueError, match="up_scale requires a gradient; int8 maps are constants"):
        getattr(torch.ops.incline_fast, f"affine_{norm}_norm").default(*arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [None, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_in_place_form_under_autograd(norm: str, residual: torch.dtype | None, backend: str) -> None:
    """The same values and gradients as the functional form, with the inputs overwritten."""
    case = make(norm, 5, (3,), rank=2, dtype=torch.float64, residual_dtype=residual)
    functional = {name: t.requires_grad_() for name, t in leaves(case).items()}
    y, edited = with_leaves(case, functional)(backend)
    (y * edited).sum().backward()

    tensors = {name: t.requires_grad_() for name, t in leaves(case).items()}
    written = {name: tensors[name].clone() for name in ("x", "residual") if name in tensors}
    in_place = with_leaves(case, {**tensors, **written})
    run = ops.affine_rms_norm_ if norm == "rms" else ops.affine_layer_norm_
    vectors = (in_place.weight,) if norm == "rms" else (in_place.weight, in_place.norm_bias)
    again = run(in_place.x, *vectors, in_place.map, **in_place.options, backend=backend)
    written = in_place.options.get("residual", in_place.x)
    assert torch.equal(again, y)
    assert torch.equal(written, edited)
    (again * written).sum().backward()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, functional[name].grad)


@compiled
@pytest.mark.parametrize("norm", NORMS)
def test_parameters_without_a_graph_are_no_reason_to_copy(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(norm, 5, (3,))
    case.weight.requires_grad_()
    monkeypatch.setattr(NormOp, "functional", None)  # what runs on copies
    with torch.no_grad():
        y, _ = case.in_place("cpu")
    assert not y.requires_grad


@pytest.mark.parametrize("written", ["x", "residual"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_overwriting_what_a_graph_has_saved_is_reported(backend: str, written: str) -> None:
    case = make("rms", 5, (3,))
    residual = torch.ones(3, 5) if written == "residual" else None
    saved = case.x if residual is None else residual
    leaf = torch.ones(3, 5, requires_grad=True)
    loss = (leaf * saved).sum()
    with torch.no_grad():
        ops.affine_rms_norm_(case.x, case.weight, case.map, residual=residual, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def op_arguments(case: Case, packed: bool) -> tuple[Any, ...]:
    """Positional arguments of the functional torch op."""
    down, up = case.map.packed() if packed else (case.map.down, case.map.up)
    o = case.options
    norm = (case.weight,) if case.norm == "rms" else (case.weight, case.norm_bias)
    scales = (case.map.down_scale, case.map.up_scale)
    rows = (o.get("alpha"), o.get("beta"), o.get("row_map"))
    return (case.x, o.get("residual"), *norm, down, up, *scales, o.get("bias"), *rows, 0.5, 1.0, 1e-6, 1.0)


@compiled
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_opcheck_int8(norm: str, rank: int | None) -> None:
    case = make(norm, 5, (4,), rank=rank, map_dtype=torch.int8, alpha=torch.rand(4), beta=torch.rand(4))
    op = getattr(torch.ops.incline_fast, f"affine_{norm}_norm").default
    torch.library.opcheck(op, op_arguments(case.but(x=case.x.requires_grad_()), packed=True))


@compiled
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("num_maps", [1, 3])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_opcheck_functional(norm: str, rank: int | None, num_maps: int, residual: bool, packed: bool) -> None:
    case = double_case(norm, rank, num_maps, residual)
    case = with_leaves(case, {name: t.requires_grad_() for name, t in leaves(case).items()})
    op = getattr(torch.ops.incline_fast, f"affine_{norm}_norm").default
    torch.library.opcheck(op, op_arguments(case, packed))


@compiled
@pytest.mark.parametrize("add_y", [True, False])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_opcheck_in_place(norm: str, rank: int | None, add_y: bool) -> None:
    case = double_case(norm, rank, 3, False)
    _, _, *rest = op_arguments(case, packed=True)
    op = getattr(torch.ops.incline_fast, f"affine_{norm}_norm_").default
    torch.library.opcheck(op, (case.x.clone(), case.x.clone(), add_y, *rest))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", [Case.__call__, Case.in_place], ids=["functional", "in_place"])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_compiles_without_graph_breaks(norm: str, rank: int | None, form: Callable[..., Any], backend: str) -> None:
    torch._dynamo.reset()
    case = make(norm, 16, (4,), rank=rank, num_maps=3, row_map=ROW_MAP, residual_dtype=torch.float32, alpha=0.5)
    actual = torch.compile(form, fullgraph=True)(case, backend)
    for tensor, wanted in zip(actual, form(case, backend), strict=True):
        torch.testing.assert_close(tensor, wanted)


@compiled
def test_compiled_gradients() -> None:
    torch._dynamo.reset()
    case = make("layer", 16, (4,), rank=3, alpha=0.5)
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True)):
        tensors = {name: t.requires_grad_() for name, t in leaves(case).items()}

        def loss(t: dict[str, Tensor]) -> Tensor:
            map = AffineMap(t["down"], t["up"])
            y, edited = ops.affine_layer_norm(t["x"], t["weight"], t["norm_bias"], map, bias=t["bias"], alpha=0.5)
            return (y * edited).sum()

        wrap(loss)(tensors).backward()
        results.append([t.grad for t in tensors.values()])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager)
