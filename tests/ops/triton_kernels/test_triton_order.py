"""One order of summation: a row's bits depend neither on the batch, nor on the tuning, nor on an earlier launch."""

from __future__ import annotations

import re

import pytest
import torch
from triton_cases import TritonCase, make_triton

from emulator.triton_driver import Launch
from incline_fast.ops import set_batch_invariant
from incline_fast.ops.triton_kernels import _counters
from incline_fast.ops.triton_kernels._decode import decode

pytestmark = pytest.mark.gpu_emulated
BF16 = torch.bfloat16
TUNINGS = list(decode.configs)
KINDS = [
    pytest.param(dtype, map_dtype, rank, id=f"{name}-{'dense' if rank is None else 'low_rank'}")
    for rank in (None, 40)
    for name, dtype, map_dtype in (
        ("bf16", BF16, BF16),
        ("fp32", torch.float32, torch.float32),
        ("fp32_bf16", torch.float32, BF16),
        ("bf16_fp16", BF16, torch.float16),
    )
]


def batch(rows: int, dtype: torch.dtype, map_dtype: torch.dtype, rank: int | None) -> TritonCase:
    row_map = torch.arange(rows, dtype=torch.int32) % 4 - 1
    strength = torch.linspace(-1, 1, rows)
    kinds = {"dtype": dtype, "map_dtype": map_dtype, "residual_dtype": dtype}
    return make_triton("layer", 144, (rows,), rank=rank, num_maps=3, row_map=row_map, alpha=strength, **kinds)


def part(case: TritonCase, rows: slice) -> TritonCase:
    options = {name: case.options[name][rows] for name in ("row_map", "alpha", "residual")}
    return case.but(x=case.x[rows], **options)


@pytest.mark.parametrize(("dtype", "map_dtype", "rank"), KINDS)
def test_a_row_does_not_see_its_batch(dtype: torch.dtype, map_dtype: torch.dtype, rank: int | None) -> None:
    """Tiles of 8, 16 and 32 tokens, and 40 tokens in more than one tile."""
    case = batch(40, dtype, map_dtype, rank)
    together = case()
    for rows in (slice(0, 20), slice(5, 17), slice(39, 40)):
        for whole, alone in zip(together, part(case, rows)(), strict=True):
            assert torch.equal(whole[rows], alone)


@pytest.mark.parametrize(("dtype", "map_dtype", "rank"), [KINDS[0], KINDS[1], KINDS[6], KINDS[7]])
def test_tuning_changes_no_bit(
    dtype: torch.dtype, map_dtype: torch.dtype, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = batch(5, dtype, map_dtype, rank)
    expected = case()
    for config in TUNINGS:
        monkeypatch.setattr(decode, "configs", [config])
        for actual, wanted in zip(case(), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("rank", [None, 40])
def test_batch_invariant(rank: int | None, launches: list[Launch]) -> None:
    """A row's bits at 1, 64, 65 and 129 tokens of one map, whose product would otherwise be torch's above 64."""
    case = make_triton("layer", 80, (129,), rank=rank, dtype=BF16, alpha=0.5)
    set_batch_invariant(True)
    try:
        results = {rows: case.but(x=case.x[:rows])() for rows in (1, 64, 65, 129)}
    finally:
        set_batch_invariant(False)
    for rows, result in results.items():
        for actual, whole in zip(result, results[129], strict=True):
            assert torch.equal(actual, whole[:rows])
    assert [launch.name for launch in launches] == ["decode"] * 4
    case()
    assert launches[-1].name == "epilogue"


@pytest.mark.parametrize("rank", [None, 40])
def test_replay_needs_no_reset(rank: int | None) -> None:
    """The counters of a CUDA stream are zero after every launch, of any shape, and the next one works with them."""
    cases = [batch(rows, BF16, BF16, rank) for rows in (3, 20, 3)]
    first = cases[0]()
    cases[1]()
    for actual, wanted in zip(cases[2](), first, strict=True):
        assert torch.equal(actual, wanted)
    (slab,) = _counters._slabs.values()
    assert not slab.memory.any()


@pytest.mark.parametrize("rank", [None, 40])
def test_results_are_published_before_they_are_counted(rank: int | None, launches: list[Launch]) -> None:
    """In the PTX: between a program's last store and the atomic that counts it lies a barrier, and the atomic releases.

    Waiting programs acquire. The emulator, which follows that order while it runs, reports what is read outside of it.
    """
    batch(3, BF16, BF16, rank)()
    (launch,) = launches
    instructions = re.findall(r"\b(st\.global|bar\.sync|atom\.global\S+|ld\.global\S+)", launch.ptx)
    releases = [at for at, name in enumerate(instructions) if "release" in name or "acq_rel" in name]
    assert len(releases) == (2 if rank is None else 3)  # the phases' counters, and that of the rows
    for at in releases:
        before = instructions[:at][::-1]
        assert before.index("bar.sync") < before.index("st.global")
    assert sum("acquire" in name for name in instructions) == (1 if rank is None else 2)
