"""AffineMap: forms, stacks, conversions, the packed layout, and what is refused."""

import pytest
import torch

from incline_fast import AffineRMSNorm
from incline_fast.maps import AffineMap
from incline_fast.packing import PANEL, pack, unpack

INT8 = torch.zeros(1, 3, 3, dtype=torch.int8)


def random_map(d: int, rank: int | None, seed: int = 0) -> AffineMap:
    g = torch.Generator().manual_seed(seed)
    if rank is None:
        return AffineMap.dense(torch.randn(d, d, generator=g))
    return AffineMap.low_rank(torch.randn(rank, d, generator=g), torch.randn(d, rank, generator=g))


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_apply_is_the_matrix_product(rank: int | None) -> None:
    map = random_map(7, rank)
    h = torch.randn(5, 7)
    torch.testing.assert_close(map.apply(h), h @ map.as_dense()[0].T)
    assert map.rank == rank
    assert map.is_low_rank is (rank is not None)
    assert map.hidden_size == 7


@pytest.mark.parametrize("rank", [None, 2])
def test_stack_keeps_every_map(rank: int | None) -> None:
    maps = [random_map(6, rank, seed) for seed in range(3)]
    stack = AffineMap.stack(maps)
    assert stack.num_maps == 3
    h = torch.randn(4, 6)
    for index, map in enumerate(maps):
        assert torch.equal(stack.apply(h, index), map.apply(h))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 15, 3), (2, 16, 16), (3, 17, 5), (1, 111, 40)])
def test_packed_layout_round_trips_and_is_k_major(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    G, N, K = shape
    weight = (torch.rand(shape) * 100 + 1).to(dtype)
    packed = pack(weight)
    panels, column = -(-N // PANEL), N - 1
    assert packed.is_contiguous()
    assert torch.equal(unpack(packed, N, K), weight)
    if dtype is torch.bfloat16:  # pairs of k, side by side
        assert packed.shape == (G, panels, -(-K // 2), PANEL, 2)
        last = packed[0, column // PANEL, :, column % PANEL].flatten()
    else:
        assert packed.shape == (G, panels, K, PANEL)
        last = packed[0, column // PANEL, :, column % PANEL]
    assert torch.equal(last[:K], weight[0, column])
    assert torch.count_nonzero(packed) == weight.numel()  # the rest is padding


def test_packing_happens_once_unless_a_gradient_flows() -> None:
    map = random_map(20, None)
    assert map.packed()[1] is map.packed()[1]
    weight = torch.randn(20, 20, requires_grad=True)
    packed = AffineMap.dense(weight).packed()[1]
    packed.square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_to_converts_weights_and_keeps_identity_when_nothing_changes() -> None:
    map = random_map(4, 2)
    assert map.to(torch.float32) is map
    half = map.to(torch.bfloat16)
    assert half.dtype is torch.bfloat16
    assert half.down is not None
    assert half.down.dtype is torch.bfloat16


def test_int8_weights_are_the_nearest_multiples_of_their_rows_scale() -> None:
    W = torch.tensor([[[1.27, -1.27, 0.014, 0.016], [0.0, 0.0, 0.0, 0.0], [-254.0, 127.0, 1.0, 3.0], [0.5, 0, 0, 0]]])
    map = AffineMap.dense(W).quantize()
    torch.testing.assert_close(map.up_scale, torch.tensor([[0.01, 0.0, 2.0, 0.5 / 127]]))
    expected = [[127, -127, 1, 2], [0, 0, 0, 0], [-127, 64, 0, 2], [127, 0, 0, 0]]  # 0.5 and 1.5: ties to even
    assert map.up.tolist() == [expected]
    assert map.dtype is torch.int8
    assert map.quantize() is map


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rank", [None, 3])
def test_quantised_weights_are_off_by_half_a_step(rank: int | None, dtype: torch.dtype) -> None:
    map = AffineMap.stack([random_map(20, rank, seed) for seed in range(2)]).to(dtype)
    quantized = map.quantize()
    for name in ("up", "down"):
        exact, q, scale = (
            getattr(m, part) for m, part in ((map, name), (quantized, name), (quantized, name + "_scale"))
        )
        if exact is not None:
            error = (q.double() * scale.double().unsqueeze(-1) - exact.double()).abs()
            assert (error <= scale.double().unsqueeze(-1) * (0.5 + 1e-6)).all()
    again = quantized.to(torch.float64)
    torch.testing.assert_close(again.as_dense(), quantized.as_dense().double(), rtol=1e-5, atol=1e-6)
    h = torch.randn(4, 20)
    torch.testing.assert_close(quantized.apply(h, 1).double(), again.apply(h, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 3])
def test_int8_maps_stack_and_keep_their_scales_when_a_module_is_converted(rank: int | None) -> None:
    maps = [random_map(20, rank, seed).quantize() for seed in range(3)]
    stack = AffineMap.stack(maps)
    h = torch.randn(4, 20)
    for index, map in enumerate(maps):
        assert torch.equal(stack.apply(h, index), map.apply(h))
    layer = AffineRMSNorm(torch.ones(20), stack).half()
    assert layer.weight.dtype is torch.float16
    assert layer.map is stack


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: AffineMap.dense(torch.zeros(3, 4)), ValueError, r"\(3, 4\).*square"),
        (lambda: AffineMap.dense(torch.zeros(3)), ValueError, r"W has shape \(3,\)"),
        (lambda: AffineMap.dense(torch.zeros(3, 3, dtype=torch.int16)), TypeError, "int16.*allowed"),
        (lambda: AffineMap.dense(torch.zeros(3, 3, dtype=torch.int8)), TypeError, "no up_scale; quantize"),
        (lambda: AffineMap(None, torch.zeros(1, 3, 3), up_scale=torch.ones(1, 3)), ValueError, "only int8 weights"),
        (lambda: AffineMap(None, INT8, up_scale=torch.ones(1, 4)), ValueError, r"\(1, 4\).*expected.*\(1, 3\)"),
        (
            lambda: AffineMap(None, INT8, up_scale=torch.ones(1, 3).requires_grad_()),
            ValueError,
            "int8 maps are constants",
        ),
        (lambda: AffineMap.dense(torch.full((3, 3), float("nan"))).quantize(), ValueError, "up holds NaN"),
        (lambda: random_map(4, None).to(torch.int8), TypeError, "quantize\\(\\) makes int8 maps"),
        (lambda: AffineMap.low_rank(torch.zeros(2, 5), torch.zeros(4, 2)), ValueError, r"down has shape \(1, 2, 5\)"),
        (lambda: AffineMap.low_rank(torch.zeros(0, 4), torch.zeros(4, 0)), ValueError, "rank is 0"),
        (lambda: AffineMap.low_rank(torch.zeros(2, 4).bfloat16(), torch.zeros(4, 2)), TypeError, "must agree"),
        (lambda: AffineMap.stack([]), ValueError, "maps is empty"),
        (lambda: AffineMap.stack([random_map(4, 2), random_map(4, 3)]), ValueError, "differ"),
        (lambda: AffineMap.stack([random_map(4, None), random_map(4, 3)]), ValueError, "differ"),
        (lambda: AffineMap.dense(torch.zeros(0, 3, 3)), ValueError, "holds no map"),
        (lambda: pack(torch.zeros(3, 3)), ValueError, r"\[G, N, K\]"),
        (lambda: unpack(torch.zeros(1, 2, 3, PANEL), 48, 3), ValueError, r"expected \[G, 3, 3, 16\]"),
        (lambda: unpack(torch.zeros(1, 3, 2, PANEL, 2).bfloat16(), 48, 5), ValueError, r"expected \[G, 3, 3, 16, 2\]"),
    ],
)
def test_wrong_input_is_named(build, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
