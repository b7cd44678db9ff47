"""What the decode kernels move at the size of a real model: the map once, in 16-byte loads, and little else."""

from __future__ import annotations

import pytest
import torch
from cuda.decode_cases import BF16, both_equal
from cuda.launcher import prepare, run_fibers, run_ptx
from kernel_traffic import HIDDEN, Counted, count, published
from op_cases import make
from tolerances import assert_close

from emulator import build

pytestmark = pytest.mark.gpu_emulated


def counted(name: str) -> Counted:
    """A case that has run and is right; its row of docs/gpu_traffic.csv, which nvcc 13.0 made, is what was counted."""
    found = count(name)
    y, edited = found.results
    assert_close(edited, found.case.expected()[1], HIDDEN)
    assert_close(y, found.case.normed(edited), HIDDEN)
    if "release 13.0" in build.compiler_version("nvcc"):
        assert found.cells() == published(name), "run: make gpu-traffic"
    assert found.report.worst_bank_conflict <= 2, found.report
    return found


@pytest.mark.parametrize(
    ("name", "limit"), [("CUDA, dense", 1.03), ("CUDA, dense, a row tile", 1.03), ("CUDA, rank 512", 1.05)]
)
def test_compulsory_bytes(name: str, limit: float) -> None:
    """Each sector is counted once in each direction, as memory behind a 50 MB cache sees it; see the next lines for
    what the caches see."""
    found = counted(name)
    case, report = found.case, found.report
    assert both_equal(found.results, run_fibers(prepare(case)))
    assert found.excess <= limit, report
    for map in found.maps:
        traffic = report.reads[map]
        assert set(traffic.widths) == {128}, report
        # The maps are what memory has to bring: nothing of them is asked for twice, and no sector in part.
        assert 32 * traffic.sectors == traffic.bytes, report
        assert traffic.sectors_per_request == 16, report
    # Every block reads all rows of x from the L2 cache; with one row that is 1/16 of the bytes of the map.
    rows = case.x.shape[0]
    assert report.bytes_read(["x"]) <= (rows + 1) / 16 * case.map.up.numel() * 2, report


@pytest.mark.parametrize("name", ["CUDA, dense, bulk copies", "CUDA, dense, bulk copies, ten tokens"])
def test_bulk_copies_read_the_map_once(name: str) -> None:
    """In segments of 1 KB, nothing twice; x once for each of 128 blocks, and a few times more for their own columns."""
    found = counted(name)
    report, traffic, x = found.report, found.report.reads["up"], found.case.x
    assert both_equal(found.results, run_fibers(prepare(found.case)))
    assert found.excess <= 1.03, report
    assert set(traffic.widths) == {8 * 1024}, report
    assert 32 * traffic.sectors == traffic.bytes == found.case.map.up.numel() * 2, report
    assert report.bytes_read(["x"]) <= 130 * x.numel() * 2, report


@pytest.mark.parametrize("name", ["CUDA, rank 64, one cluster", "CUDA, rank 64, one cluster, eight tokens"])
def test_a_cluster_reads_the_map_once(name: str) -> None:
    """`down` in rows of a piece, of 1 KB, `up` in one piece of 32 KB a block; no more than the compulsory bytes, for
    what the blocks have found does not go through memory. x is read once for each of four tiles of down r."""
    found = counted(name)
    report, x = found.report, found.case.x
    assert both_equal(found.results, run_fibers(prepare(found.case)))
    assert found.excess <= 1.001, report
    for map, bytes_of_copy in (("down", 1 << 10), ("up", 32 << 10)):
        traffic = report.reads[map]
        assert set(traffic.widths) == {8 * bytes_of_copy}, report
        assert 32 * traffic.sectors == traffic.bytes == 64 * HIDDEN * 2, report
    assert report.bytes_read(["x"]) <= 6 * x.numel() * 2, report
    assert "workspace" not in report.reads


def test_after_a_gemm() -> None:
    """Nothing is read that was not given, r' neither, and no map."""
    found = counted("CUDA, after a GEMM")
    assert "edited" not in found.report.reads
    assert found.report.distinct_bytes() <= 1.01 * found.compulsory, found.report
    assert not found.maps


@pytest.mark.parametrize("rank", [None, 64])
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (BF16, torch.int8), (BF16, BF16)])
def test_maps_of_any_type_load_wide(dtypes: tuple[torch.dtype, torch.dtype], rank: int | None) -> None:
    """And no access of shared memory has a conflict worse than two ways; with a residual, which splits the rows."""
    for residual in (None, torch.float32):
        case = make("layer", 512, (9,), rank=rank, dtype=dtypes[0], map_dtype=dtypes[1], residual_dtype=residual)
        _, _, report = run_ptx(prepare(case), "sm_80")
        for map in ("up",) if rank is None else ("up", "down"):
            assert set(report.reads[map].widths) == {128}, report
        assert report.worst_bank_conflict <= 2, report


def test_rows_of_any_width_are_right_though_slower() -> None:
    """d = 769 misaligns every second row of the map: loads of one element, the same sums."""
    case = make("layer", 769, (2,), dtype=BF16, residual_dtype=torch.float32)
    y, edited, report = run_ptx(prepare(case), "sm_90")
    assert_close(edited, case.expected()[1], 769)
    assert both_equal((y, edited), run_fibers(prepare(case)))
    assert set(report.reads["up"].widths) == {16}
