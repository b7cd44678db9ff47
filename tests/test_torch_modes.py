"""What is kept between calls outlives the mode of torch in which it was made, and follows what is written to a map."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from incline_fast import AffineLayerNorm, AffineMap, AffineRMSNorm, ops

D, ROWS = 40, 3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def map_of(kind: str, seed: int = 0) -> AffineMap:
    dense = AffineMap.dense(numbers(D, D, seed=seed) / D**0.5)
    if kind == "dense":
        return dense
    if kind == "int8":
        return dense.quantize()
    return AffineMap.low_rank(numbers(5, D, seed=seed) / D**0.5, numbers(D, 5, seed=seed + 1) / 5**0.5)


KINDS = ["dense", "low rank", "int8"]


def layer_of(map: AffineMap) -> AffineRMSNorm:
    return AffineRMSNorm(torch.ones(D), map, alpha=0.5)


def under(mode: str, layer: nn.Module, x: Tensor) -> None:
    """A call of the layer, the first that needs its layouts, while a mode of torch is active."""
    if mode == "export":
        torch.export.export(Around(layer), (x,))
    elif mode == "export, strict":
        torch.export.export(Around(layer), (x,), strict=True)
    elif mode == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            layer(fake.from_tensor(x))
    elif mode == "make_fx":
        make_fx(lambda x: layer(x.clone()), tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    elif mode == "functionalize":
        torch.func.functionalize(lambda x: layer(x.clone()))(x)
    elif mode == "inference":
        with torch.inference_mode():
            layer(x.clone())
    elif mode == "compile, inference":
        with torch.inference_mode():
            torch.compile(Around(layer), backend="aot_eager")(x)
    elif mode == "compile":
        torch.compile(Around(layer), backend="aot_eager")(x)
    elif mode == "dual":
        with forward_ad.dual_level():
            layer(forward_ad.make_dual(x.clone(), torch.ones_like(x)))
    elif mode == "vmap":
        torch.func.vmap(lambda row: layer(row.clone()[None]))(x)
    elif mode == "grad":
        torch.func.grad(lambda x: layer(x * 1.0).sum())(x)
    elif mode == "device":
        with torch.device("meta"):
            layer(x.clone())
    elif mode == "dtype":
        torch.set_default_dtype(torch.float64)
        try:
            layer(x.clone())
        finally:
            torch.set_default_dtype(torch.float32)


MODES = [
    "export",
    "export, strict",
    "fake",
    "make_fx",
    "functionalize",
    "inference",
    "compile, inference",
    "compile",
    "dual",
    "vmap",
    "grad",
    "device",
    "dtype",
]


class Around(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * 1.0)


@pytest.mark.parametrize(
    ("mode", "kind"), [(mode, kind) for mode in MODES for kind in KINDS if kind == "low rank" or "comp" not in mode]
)
def test_a_call_under_a_mode_leaves_nothing_of_it_behind(mode: str, kind: str) -> None:
    torch._dynamo.reset()
    x, map = numbers(ROWS, D, seed=9), map_of(kind)
    expected = layer_of(map_of(kind))(x.clone())
    layer = layer_of(map)
    under(mode, layer, x.clone())
    torch.testing.assert_close(layer(x.clone()), expected, rtol=0, atol=0)
    assert layer.map is map
    for layout in (map.packed(), map.aligned()):
        assert all(type(part) is Tensor and not part.is_inference() for part in layout if part is not None)
    # What was kept can be saved for a backward pass.
    tracked = x.clone().requires_grad_()
    y, _ = ops.affine_rms_norm(tracked, torch.ones(D), map, alpha=0.5)
    y.sum().backward()
    assert tracked.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_maps_made_in_inference_mode_serve_later(kind: str) -> None:
    x = numbers(ROWS, D, seed=9)
    with torch.inference_mode():
        map = map_of(kind)
        inside = layer_of(map)(x.clone())
    torch.testing.assert_close(layer_of(map)(x.clone()), inside, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_to_a_map_reaches_its_layouts(kind: str) -> None:
    x, map, other = numbers(ROWS, D, seed=9), map_of(kind), map_of(kind, seed=5)
    layer, aligned = layer_of(map), [part for part in map.aligned() if part is not None]
    layer(x.clone())
    for part in ("up", "down", "up_scale", "down_scale"):
        if getattr(map, part) is not None:
            getattr(map, part).copy_(getattr(other, part))
    torch.testing.assert_close(layer(x.clone()), layer_of(other)(x.clone()), rtol=0, atol=0)
    for part, expected in zip(map.aligned(), other.aligned(), strict=True):
        assert part is expected or torch.equal(part, expected)
    assert aligned


def test_a_gradient_asked_for_later_reaches_the_weights() -> None:
    x, weight = numbers(ROWS, D), numbers(D, D)
    map = AffineMap.dense(weight)
    ops.affine_rms_norm(x, torch.ones(D), map)
    map.up.requires_grad_()
    ops.affine_rms_norm(x, torch.ones(D), map)[0].sum().backward()
    assert map.up.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_map_holds_its_weights_alone(kind: str) -> None:
    map = map_of(kind)
    map.packed()
    size = len(pickle.dumps(map_of(kind)))
    for copied in (copy.deepcopy(map), copy.copy(map), pickle.loads(pickle.dumps(map))):
        assert len(pickle.dumps(copied)) == size
        x = numbers(ROWS, D)
        assert torch.equal(layer_of(copied)(x.clone()), layer_of(map)(x.clone()))


def layers(kind: str) -> list[nn.Module]:
    options = {"bias": numbers(D, seed=3), "alpha": 0.5}
    return [
        AffineRMSNorm(numbers(D, seed=4), map_of(kind), **options),
        AffineLayerNorm(numbers(D, seed=4), numbers(D, seed=6), map_of(kind), **options),
    ]


def blank(layer: nn.Module, kind: str) -> nn.Module:
    """A layer of the same shape and other numbers."""
    vectors = [torch.zeros(D) for _ in range(1 if isinstance(layer, AffineRMSNorm) else 2)]
    return type(layer)(*vectors, map_of(kind, seed=8), bias=torch.zeros(D), alpha=0.5)


def loaded(way: str, layer: nn.Module, kind: str) -> nn.Module:
    """Another layer with the numbers of this one."""
    if way == "meta":
        other = blank(layer, kind).to("meta").to_empty(device="cpu")
    else:
        other = blank(layer, kind)
        other(numbers(1, D))  # fills its layouts
    if way == "file":
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
    elif way == "functional":
        state = layer.state_dict()
        return lambda x: torch.func.functional_call(other, state, (x,))
    elif way == "inside":
        outer = nn.Sequential(other)
        outer.load_state_dict({f"0.{name}": value for name, value in layer.state_dict().items()})
    elif way == "pickle":
        return pickle.loads(pickle.dumps(layer))
    elif way == "deepcopy":
        return copy.deepcopy(layer)
    elif way == "module":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        return torch.load(file, weights_only=False)
    else:
        keys = other.load_state_dict(layer.state_dict(), strict=True, assign=way == "assign")
        assert not keys.missing_keys
        assert not keys.unexpected_keys
    return other


WAYS = ["copy", "assign", "meta", "file", "functional", "inside", "pickle", "deepcopy", "module"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_layers_state_is_all_that_it_computes_with(way: str, kind: str) -> None:
    x = numbers(ROWS, D, seed=9)
    for layer in layers(kind):
        expected = layer(x.clone())
        assert torch.equal(loaded(way, layer, kind)(x.clone()), expected)
        assert torch.equal(layer(x.clone()), expected)


@pytest.mark.parametrize("assign", [False, True])
def test_a_compiled_layer_sees_what_is_loaded(assign: bool) -> None:
    torch._dynamo.reset()
    x = numbers(ROWS, D, seed=9)
    layer, other = layers("dense")[0], blank(layers("dense")[0], "dense")
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    compiled(x.clone())
    compiled(x.clone())
    other.load_state_dict(layer.state_dict(), assign=assign)
    assert torch.equal(compiled(x.clone()), layer(x.clone()))


def test_a_state_without_the_map_is_refused() -> None:
    layer = layers("dense")[0]
    state = {name: value for name, value in layer.state_dict().items() if not name.startswith("map")}
    with pytest.raises(RuntimeError, match=r"Missing key.*map_up"):
        layer.load_state_dict(state)


@pytest.mark.parametrize(("own", "given"), [("int8", "dense"), ("dense", "int8")])
def test_int8_and_float_states_do_not_mix(own: str, given: str) -> None:
    layer, other = layers(own)[0], layers(given)[0]
    with pytest.raises(RuntimeError, match=r"map_up is torch\..* in the state dict and torch\..* in the layer"):
        layer.load_state_dict(other.state_dict(), strict=False)


def test_another_rank_is_refused() -> None:
    layer = layers("low rank")[0]
    wider = AffineRMSNorm(torch.ones(D), AffineMap.low_rank(numbers(6, D), numbers(D, 6)), bias=torch.zeros(D))
    with pytest.raises(RuntimeError, match=r"size mismatch for map_down"):
        layer.load_state_dict(wider.state_dict())


def test_another_map_may_be_assigned() -> None:
    x = numbers(ROWS, D)
    for layer in layers("dense"):
        layer.map = map_of("int8", seed=7)
        assert {"map_up", "map_up_scale"} <= layer.state_dict().keys()
        other = copy.deepcopy(layer)
        other.map = map_of("low rank")
        assert "map_up_scale" not in other.state_dict()
        assert torch.equal(layer(x.clone()), copy.deepcopy(layer)(x.clone()))


def test_trainable_weights_are_parameters() -> None:
    weight = nn.Parameter(numbers(1, D, D))
    layer = layer_of(AffineMap(None, weight))
    assert dict(layer.named_parameters())["map_up"] is weight
    layer(numbers(ROWS, D)).sum().backward()
    assert weight.grad is not None
    layer.load_state_dict(layer_of(map_of("dense")).state_dict())
    x = numbers(ROWS, D)
    with torch.no_grad():
        torch.testing.assert_close(layer(x.clone()), layer_of(map_of("dense"))(x.clone()))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("kind", KINDS)
class TestDerivatives:
    """Every mode of differentiation, against central differences in fp64 or the reverse mode."""

    def call(self, norm: str, kind: str, backend: str):
        map = map_of(kind)
        map = map if kind == "int8" else map.to(torch.float64)
        dtype = torch.float32 if kind == "int8" else torch.float64
        weight, bias = numbers(D, seed=2).to(dtype), numbers(D, seed=3).to(dtype)

        def run(x: Tensor, alpha: Tensor | float = 0.5) -> Tensor:
            options = {"alpha": alpha, "bias": bias, "backend": backend}
            if norm == "rms":
                return torch.cat(ops.affine_rms_norm(x, weight, map, **options))
            return torch.cat(ops.affine_layer_norm(x, weight, weight, map, **options))

        return run, numbers(ROWS, D, seed=9).to(dtype)

    def test_forward_mode_is_the_reverse_mode(self, norm: str, kind: str, backend: str) -> None:
        run, x = self.call(norm, kind, backend)
        tangent = numbers(ROWS, D, seed=11).to(x.dtype)
        jacobian = torch.autograd.functional.jacobian(run, x)
        expected = torch.einsum("abcd,cd->ab", jacobian, tangent)
        close = {"rtol": 1e-4, "atol": 1e-4} if kind == "int8" else {"rtol": 1e-9, "atol": 1e-9}
        with forward_ad.dual_level():
            dual = run(forward_ad.make_dual(x, tangent))
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected, **close)
        torch.testing.assert_close(torch.func.jvp(run, (x,), (tangent,))[1], expected, **close)
        torch.testing.assert_close(torch.func.jacfwd(run)(x), jacobian, **close)
        torch.testing.assert_close(torch.func.jacrev(run)(x), jacobian, **close)

    def test_transforms(self, norm: str, kind: str, backend: str) -> None:
        run, x = self.call(norm, kind, backend)
        close = {"rtol": 1e-4, "atol": 1e-4} if kind == "int8" else {"rtol": 1e-9, "atol": 1e-9}
        tracked = x.clone().requires_grad_()
        run(tracked).square().sum().backward()
        torch.testing.assert_close(torch.func.grad(lambda x: run(x).square().sum())(x), tracked.grad, **close)
        rows = torch.func.vmap(lambda row: run(row[None]))(x)
        torch.testing.assert_close(rows.transpose(0, 1).reshape(2 * ROWS, D), run(x), **close)
        one = torch.ones(ROWS, dtype=x.dtype)
        slope = torch.func.jvp(lambda alpha: run(x, alpha), (one,), (one,))[1]
        if kind != "int8":
            difference = (run(x, one + 1e-6) - run(x, one - 1e-6)) / 2e-6
            torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-5)

    def test_second_derivatives(self, norm: str, kind: str, backend: str) -> None:
        if kind == "int8":
            pytest.skip("fp32 differences are too coarse")
        run, x = self.call(norm, kind, backend)
        assert torch.autograd.gradgradcheck(lambda x: run(x)[:, :3], (x[:1, :].clone().requires_grad_(),))

    def test_in_place(self, norm: str, kind: str, backend: str) -> None:
        map, weight = map_of(kind), numbers(D, seed=2)
        x, tangent = numbers(ROWS, D, seed=9), numbers(ROWS, D, seed=11)

        def edit(x: Tensor) -> Tensor:
            written = x.clone()
            y = ops.affine_rms_norm_(written, weight, map, alpha=0.5, backend=backend)
            return torch.cat([y, written])

        def plain(x: Tensor) -> Tensor:
            return torch.cat(ops.affine_rms_norm(x, weight, map, alpha=0.5, backend="reference"))

        expected = torch.func.jvp(plain, (x,), (tangent,))[1]
        torch.testing.assert_close(torch.func.jvp(edit, (x,), (tangent,))[1], expected, rtol=1e-4, atol=1e-4)


def test_kernels_asked_for_by_name_refuse_transforms() -> None:
    x, map = numbers(ROWS, D), map_of("dense")
    with pytest.raises(ValueError, match='backend="cpu" under forward-mode AD or a transform'):
        torch.func.jvp(lambda x: ops.affine_rms_norm(x, torch.ones(D), map, backend="cpu")[0], (x,), (x,))
    with pytest.raises(ValueError, match="row_map is mapped over"):
        torch.func.vmap(lambda row, g: ops.affine_rms_norm(row[None], torch.ones(D), map, row_map=g[None])[0])(
            x, torch.zeros(ROWS, dtype=torch.int32)
        )


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", [False, True])
def test_sums_stay_in_fp32_under_autocast(kind: str, backend: str, gradient: bool) -> None:
    map, weight = map_of(kind), numbers(D, seed=2)

    def run(ambient) -> list[Tensor]:
        x = numbers(ROWS, D, seed=9).requires_grad_(gradient)
        with ambient:
            y, edited = ops.affine_rms_norm(x, weight, map, alpha=0.5, backend=backend)
            applied = [map.apply(x), map.as_dense()]
        if gradient:
            (y.sum() + edited.square().sum()).backward()
        return [y, edited, *applied, *([x.grad] if gradient else [])]

    for a, b in zip(run(torch.autocast("cpu", torch.bfloat16)), run(nullcontext()), strict=True):
        assert torch.equal(a, b)
