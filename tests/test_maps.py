"""AffineMap: forms, stacks, conversions, the packed layout, and what is refused."""

import pytest
import torch

from incline_fast.maps import PANEL, AffineMap, pack, unpack


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


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 15, 3), (2, 16, 16), (3, 17, 5), (1, 111, 40)])
def test_packed_layout_round_trips_and_is_k_major(shape: tuple[int, int, int]) -> None:
    G, N, K = shape
    weight = torch.randn(shape)
    packed = pack(weight)
    assert packed.shape == (G, -(-N // PANEL), K, PANEL)
    assert packed.is_contiguous()
    assert torch.equal(unpack(packed, N), weight)
    column = N - 1
    assert torch.equal(packed[0, column // PANEL, :, column % PANEL], weight[0, column])
    assert packed.transpose(2, 3).reshape(G, -1, K)[:, N:].abs().sum() == 0


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


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: AffineMap.dense(torch.zeros(3, 4)), ValueError, r"\(3, 4\).*square"),
        (lambda: AffineMap.dense(torch.zeros(3)), ValueError, r"W is \(3,\)"),
        (lambda: AffineMap.dense(torch.zeros(3, 3, dtype=torch.int8)), TypeError, "int8.*allowed"),
        (lambda: AffineMap.low_rank(torch.zeros(2, 5), torch.zeros(4, 2)), ValueError, r"down has shape \(1, 2, 5\)"),
        (lambda: AffineMap.low_rank(torch.zeros(0, 4), torch.zeros(4, 0)), ValueError, "rank is 0"),
        (lambda: AffineMap.low_rank(torch.zeros(2, 4).bfloat16(), torch.zeros(4, 2)), TypeError, "must agree"),
        (lambda: AffineMap.stack([]), ValueError, "maps is empty"),
        (lambda: AffineMap.stack([random_map(4, 2), random_map(4, 3)]), ValueError, "differ"),
        (lambda: AffineMap.stack([random_map(4, None), random_map(4, 3)]), ValueError, "differ"),
        (lambda: AffineMap.dense(torch.zeros(0, 3, 3)), ValueError, "holds no map"),
        (lambda: pack(torch.zeros(3, 3)), ValueError, r"\[G, N, K\]"),
        (lambda: unpack(torch.zeros(1, 2, 3, PANEL), 48), ValueError, "packed has shape"),
    ],
)
def test_wrong_input_is_named(build, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
