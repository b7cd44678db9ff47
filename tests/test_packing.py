"""Weights on huge pages: the same numbers, where Linux has been asked for them."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from incline_fast.maps import AffineMap
from incline_fast.packing import HUGE_PAGE, on_huge_pages, pack

SMAPS = Path("/proc/self/smaps")
linux = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE") or not SMAPS.exists(), reason="huge pages are asked for on Linux alone"
)


def advised(address: int) -> bool:
    """Whether the mapping that holds an address carries the flag "huge page advised"."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError(f"no mapping holds {address:#x}")


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_whole_huge_pages_are_advised_and_the_rest_is_not(dtype: torch.dtype) -> None:
    plain = torch.arange((2 * HUGE_PAGE + 4096 * 3) // dtype.itemsize).to(dtype).reshape(2, -1, 2)
    copy = on_huge_pages(plain)
    begin = copy.data_ptr()
    assert torch.equal(copy, plain)
    assert copy.is_contiguous()
    assert begin % HUGE_PAGE == 0
    assert copy.untyped_storage().nbytes() == plain.nbytes
    assert advised(begin)
    assert advised(begin + 2 * HUGE_PAGE - 1)
    assert not advised(begin + 2 * HUGE_PAGE)


@linux
@pytest.mark.parametrize("whole", [1, 9])
def test_a_huge_page_that_is_filled_well_enough_is_advised(whole: int) -> None:
    size = whole * HUGE_PAGE
    copy = on_huge_pages(torch.ones(size - size // 10, dtype=torch.int8))
    assert advised(copy.data_ptr() + size - 1)
    assert copy.untyped_storage().nbytes() == copy.nbytes
    assert int(copy.sum(dtype=torch.int64)) == copy.numel()


def test_what_fills_no_huge_page_or_has_no_memory_is_left_alone() -> None:
    small = torch.zeros(HUGE_PAGE * 8 // 9, dtype=torch.int8)
    assert on_huge_pages(small) is small
    meta = torch.empty(HUGE_PAGE, device="meta")
    assert on_huge_pages(meta) is meta
    with FakeTensorMode():
        fake = torch.empty(HUGE_PAGE)
        assert on_huge_pages(fake) is fake


@linux
def test_packed_maps_lie_on_huge_pages() -> None:
    map = AffineMap.dense(torch.randn(736, 736))
    packed = map.packed()[1]
    assert advised(packed.data_ptr())
    assert torch.equal(packed, pack(map.up))


@linux
def test_memory_outlives_everything_but_the_tensor() -> None:
    view = on_huge_pages(torch.full((HUGE_PAGE,), 7, dtype=torch.int8))[-5:]
    assert view.tolist() == [7] * 5
    assert view.clone().untyped_storage().nbytes() == 5
