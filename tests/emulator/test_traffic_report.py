"""Traffic against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from test_fiber import KERNELS

from emulator import build, ptx
from emulator.ptx import TrafficReport

pytestmark = pytest.mark.gpu_emulated


@pytest.fixture(scope="module")
def code() -> str:
    return build.ptx(KERNELS / "traffic.cu", "sm_80", include=[KERNELS])


def aligned(count: int) -> np.ndarray:
    """Floats that start at a sector of 32 bytes."""
    memory = np.zeros(count + 8, np.float32)
    skip = -memory.ctypes.data % 32 // 4
    return memory[skip : skip + count]


def run(code: str, name: str, x: np.ndarray | None, y: np.ndarray, *more: int, blocks: int = 1) -> TrafficReport:
    arguments = [y, *more] if x is None else [x, y, *more]
    return ptx.launch(code, name, (blocks, 1, 1), (64, 1, 1), arguments)


def test_coalesced_wide_copy(code: str) -> None:
    x, y = aligned(512), aligned(512)
    report = run(code, "copy_wide", x, y, blocks=2)
    read, written = report.reads["copy_wide_param_0"], report.writes["copy_wide_param_1"]
    for traffic in (read, written):
        assert (traffic.requests, traffic.sectors, traffic.distinct_sectors) == (4, 64, 64)
        assert traffic.sectors_per_request == 16
        assert traffic.widths == {128: 128}
    assert report.bytes_read() == report.bytes_written() == 2048
    assert report.distinct_bytes() == 4096
    assert (report.instructions["ld"], report.instructions["st"]) == (4 * 3, 4), "two loads of parameters, one of x"


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (16, 32)])
def test_strided_reads_cost_a_sector_for_each_piece(code: str, stride: int, sectors: int) -> None:
    report = run(code, "read_strided", aligned(64 * stride), aligned(64), stride)
    assert report.reads["read_strided_param_0"].sectors_per_request == sectors
    assert report.writes["read_strided_param_1"].sectors_per_request == 4


def test_misaligned_rows_touch_one_sector_more(code: str) -> None:
    report = run(code, "read_strided", aligned(72)[1:65], aligned(64), 1)
    assert report.reads["read_strided_param_0"].sectors == 2 * 5


def test_repeated_reads_count_again_but_are_not_distinct(code: str) -> None:
    report = run(code, "read_again", aligned(64), aligned(64 * 5), blocks=5)
    traffic = report.reads["read_again_param_0"]
    assert (traffic.sectors, traffic.distinct_sectors) == (5 * 8, 8)
    assert report.bytes_read(["read_again_param_0"]) == 5 * 256


@pytest.mark.parametrize(("stride", "ways"), [(0, 1), (1, 1), (2, 2), (3, 1), (8, 8), (32, 32)])
def test_bank_conflicts_of_words(code: str, stride: int, ways: int) -> None:
    report = run(code, "shared_strided", None, aligned(64), stride)
    assert report.worst_bank_conflict == ways
    stores = 1024 // 32
    assert report.shared_requests == stores + 2
    assert report.shared_passes == stores + 2 * ways
    assert ("traffic.cu:" in report.worst_bank_conflict_at) == (ways > 1)


@pytest.mark.parametrize(("stride", "ways"), [(0, 1), (1, 1), (2, 2), (3, 1), (8, 8)])
def test_bank_conflicts_of_quarter_warps(code: str, stride: int, ways: int) -> None:
    report = run(code, "shared_wide", None, aligned(64), stride)
    assert report.worst_bank_conflict == ways


def test_report_reads_well_and_adds_up(code: str) -> None:
    x, y = aligned(512), aligned(512)
    report = TrafficReport()
    for _ in range(2):
        report += run(code, "copy_wide", x, y, blocks=2)
    traffic = report.reads["copy_wide_param_0"]
    assert (traffic.requests, traffic.sectors, traffic.distinct_sectors) == (8, 128, 64)
    assert traffic.widths == {128: 256}
    text = str(report)
    assert text.splitlines()[1].split() == ["copy_wide_param_0", "read", "2048", "4096", "2048", "16.00", "128:", "256"]
    assert "worst bank conflict 1-way" in text
