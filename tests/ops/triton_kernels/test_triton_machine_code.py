"""Machine code of the Triton kernels for GPUs that nobody here has: it spills nothing, loads wide, and is published."""

from __future__ import annotations

import re

import pytest
import triton

from emulator import triton_code
from emulator.build import ROOT
from emulator.machine_code import cells, markdown_row
from emulator.triton_code import Variant

pytestmark = pytest.mark.gpu_emulated
VARIANTS = list(triton_code.variants())
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def published(row: list[str]) -> bool:
    """Whether docs/gpu.md has a row. It need not say what other releases of Triton do than the one it describes."""
    (release,) = re.findall(r"^Triton (\S+), ", PAGE, re.MULTILINE)
    return release != triton.__version__ or markdown_row(row) in PAGE.splitlines()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variant(variant: Variant) -> None:
    """The widest tiles with every option, which need the most registers, in every configuration that may be chosen."""
    codes = triton_code.codes_of(variant)
    assert [complaint for code in codes for complaint in code.complaints()] == []
    assert all((code.matrix_products > 0) == variant.matrix for code in codes)
    assert published(cells(codes)), "run: python -m docs.build_gpu"


def test_the_page_has_no_other_variants() -> None:
    rows = re.findall(r"^\| `((?:decode|epilogue|factor|invert),[^`]*)` \| \d+ \| \d+ registers", PAGE, re.MULTILINE)
    assert rows == [variant.name for variant in VARIANTS]


@pytest.mark.parametrize("variant", list(triton_code.amd_variants()), ids=lambda variant: variant.name)
def test_amd(variant: Variant) -> None:
    """Compiles for gfx942 (MI300) without spills to memory; nothing of it has been executed."""
    row = triton_code.amd_cells(variant)
    assert row[triton_code.AMD_HEADS.index("VGPR spills")] == "0"
    assert published(row), "run: python -m docs.build_gpu"
