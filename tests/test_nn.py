"""The layers: the in-place convention, what is shared with the norm they replace, conversions, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from incline_fast import AffineLayerNorm, AffineRMSNorm, ops
from incline_fast.maps import AffineMap

D = 24


def layer(kind: str, **options: object) -> AffineRMSNorm | AffineLayerNorm:
    g = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(D, generator=g), requires_grad=False)
    map = AffineMap.low_rank(torch.randn(3, D, generator=g), torch.randn(D, 3, generator=g))
    bias = torch.randn(D, generator=g)
    if kind == "rms":
        return AffineRMSNorm(weight, map, bias=bias, alpha=0.5, **options)
    return AffineLayerNorm(weight, nn.Parameter(torch.randn(D, generator=g)), map, bias=bias, alpha=0.5, **options)


def op(kind: str, norm: AffineRMSNorm | AffineLayerNorm, x: torch.Tensor, **options: object):
    shared = {"bias": norm.bias, "alpha": norm.alpha, "beta": norm.beta, "eps": norm.eps} | options
    if kind == "rms":
        return ops.affine_rms_norm(x, norm.weight, norm.map, **shared)
    return ops.affine_layer_norm(x, norm.weight, norm.norm_bias, norm.map, **shared)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_edits_the_residual_stream_in_place(kind: str) -> None:
    norm, x = layer(kind), torch.randn(2, 3, D)
    y, edited = op(kind, norm, x)
    written = x.clone()
    assert torch.equal(norm(written), y)
    assert torch.equal(written, edited)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_with_a_residual_the_output_replaces_x(kind: str) -> None:
    norm, x, residual = layer(kind), torch.randn(2, 3, D), torch.randn(2, 3, D)
    y, edited = op(kind, norm, x, residual=residual)
    block, written = x.clone(), residual.clone()
    assert norm(block, written) is block
    assert torch.equal(block, y)
    assert torch.equal(written, edited)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_strength_is_assignable_and_a_call_may_override_it(kind: str) -> None:
    norm, x = layer(kind), torch.randn(4, D)
    norm.alpha, norm.beta = 0.25, 0.75
    assert torch.equal(norm(x.clone()), op(kind, norm, x)[0])
    rows = {"alpha": torch.rand(4), "beta": torch.rand(4), "row_map": torch.tensor([0, -1, 0, 0], dtype=torch.int32)}
    assert torch.equal(norm(x.clone(), **rows), op(kind, norm, x, **rows)[0])


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_alpha_zero_is_the_plain_norm(kind: str) -> None:
    norm, x = layer(kind), torch.randn(4, D)
    norm.alpha = 0.0
    plain = nn.RMSNorm(D, eps=1e-6) if kind == "rms" else nn.LayerNorm(D)
    plain.weight.copy_(norm.weight)
    if kind == "layer":
        plain.bias.copy_(norm.norm_bias)
    written = x.clone()
    torch.testing.assert_close(norm(written), plain(x))
    assert torch.equal(written, x)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_parameters_are_shared_and_tensors_are_buffers(kind: str) -> None:
    norm = layer(kind)
    names = {"weight"} if kind == "rms" else {"weight", "norm_bias"}
    assert {name for name, _ in norm.named_parameters()} == names
    assert {name for name, _ in norm.named_buffers()} == {"bias", "map_down", "map_up"}


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_conversion_takes_the_map_along(kind: str) -> None:
    norm = layer(kind).to(torch.bfloat16)
    assert norm.weight.dtype == norm.bias.dtype == norm.map.dtype == torch.bfloat16
    x = torch.randn(4, D, dtype=torch.bfloat16)
    assert torch.equal(norm(x.clone()), op(kind, norm, x)[0])
    assert layer(kind).double().map.dtype == torch.float64


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_compiles_without_graph_breaks(kind: str) -> None:
    torch._dynamo.reset()
    norm, x, residual = layer(kind), torch.randn(4, D), torch.randn(4, D)
    block, written = x.clone(), residual.clone()
    y = torch.compile(norm, fullgraph=True)(block, written)
    expected, edited = op(kind, norm, x, residual=residual)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(block, expected)
    torch.testing.assert_close(written, edited)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_gradients_reach_the_map(kind: str) -> None:
    norm = layer(kind)
    norm.map = AffineMap.low_rank(norm.map.down.clone().requires_grad_(), norm.map.up.clone().requires_grad_())
    with torch.enable_grad():
        norm(torch.randn(4, D)).square().sum().backward()
    assert norm.map.down.grad.abs().sum() > 0
    assert norm.map.up.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_says_what_it_holds(kind: str) -> None:
    assert "rank 3" in repr(layer(kind))
    assert "alpha=0.5" in repr(layer(kind))
