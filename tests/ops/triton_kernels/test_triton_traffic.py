"""What the Triton kernels move: the map once, in 16-byte loads, and little else."""

from __future__ import annotations

import pytest
import torch
import triton
from kernel_traffic import HIDDEN, Counted, count, published
from tolerances import assert_close
from triton_cases import make_triton

from emulator.triton_code import TUNINGS
from emulator.triton_driver import Launch
from incline_fast.ops.triton_kernels._decode import decode

pytestmark = pytest.mark.gpu_emulated
BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8


def counted(name: str) -> Counted:
    """A case that has run and is right; its row of docs/gpu_traffic.csv, which Triton 3.7 made, is what was counted."""
    found = count(name)
    y, edited = found.results
    assert_close(edited, found.case.expected()[1], HIDDEN)
    assert_close(y, found.case.normed(edited), HIDDEN)
    if triton.__version__.startswith("3.7."):
        assert found.cells() == published(name), "run: make gpu-traffic"
    assert found.report.worst_bank_conflict <= 2, found.report
    return found


@pytest.mark.parametrize(("name", "limit"), [("Triton, dense", 1.03), ("Triton, rank 512", 1.05)])
def test_compulsory_bytes(name: str, limit: float) -> None:
    """Each sector counted once in each direction; of the maps nothing is asked for twice."""
    found = counted(name)
    assert found.excess <= limit, found.report
    assert found.widths == {128}, found.report
    assert len(found.maps) == (2 if "rank" in name else 1)
    for map in found.maps:
        traffic = found.report.reads[map]
        assert 32 * traffic.sectors == traffic.bytes, found.report


def test_after_a_gemm() -> None:
    found = counted("Triton, after a GEMM")
    assert found.excess <= 1.01, found.report
    assert not found.maps


@pytest.mark.parametrize("rank", [None, 64])
@pytest.mark.parametrize(
    ("dtype", "map_dtype", "residual"),
    [(BF16, BF16, BF16), (FP16, FP16, None), (BF16, FP16, FP32), (BF16, INT8, None), (BF16, INT8, FP32)],
)
def test_maps_of_any_type_load_wide(
    dtype: torch.dtype,
    map_dtype: torch.dtype,
    residual: torch.dtype | None,
    rank: int | None,
    launches: list[Launch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every configuration that the autotuner may choose; and no conflict in shared memory worse than two ways."""
    for name, value in (("configs", list(TUNINGS)), ("cache", {}), ("cache_results", False)):
        monkeypatch.setattr(decode, name, value)
    kinds = {"dtype": dtype, "map_dtype": map_dtype, "residual_dtype": residual}
    case = make_triton("layer", 512, (3,), rank=rank, num_maps=2, row_map=torch.tensor([1, 1, -1]).int(), **kinds)
    case()
    assert len(launches) >= 3  # a trial of each, and the call
    size = case.map.up.numel() * map_dtype.itemsize
    for launch in launches:
        maps = [traffic for traffic in launch.report.reads.values() if traffic.bytes == size]
        assert [set(traffic.widths) for traffic in maps] == [{128}] * (1 if rank is None else 2), launch.report
        assert launch.report.worst_bank_conflict <= 2, launch.report
