"""Programmatic dependent launches: before the dependency wait nothing is touched but the maps, in the PTX emulator."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cuda.decode_cases import BF16, FP16, INT8, both_equal
from cuda.launcher import launches as launches_of
from cuda.launcher import prepare, run_fibers, run_ptx, source_of
from op_cases import Case, make
from tolerances import assert_close

pytestmark = pytest.mark.gpu_emulated

THREE_MAPS = {"num_maps": 3, "row_map": torch.tensor([2, -1, 0], dtype=torch.int32)}
CASES = {
    "one row": partial(make, "rms", 128, (1,), dtype=BF16),
    "several rows": partial(make, "layer", 128, (9,), dtype=BF16),
    "more rows than a launch takes": partial(make, "rms", 32, (65,), dtype=BF16),
    "row_map": partial(make, "rms", 96, (3,), dtype=BF16, **THREE_MAPS),
    "int8": partial(make, "rms", 64, (2,), dtype=BF16, map_dtype=INT8),
    "odd": partial(make, "layer", 39, (2,), dtype=FP16),
    "low rank, one row": partial(make, "layer", 128, (1,), rank=40, dtype=BF16),
    "low rank, several rows": partial(make, "rms", 128, (9,), rank=40, dtype=FP16),
    "low rank, two pieces": partial(make, "rms", 640, (2,), rank=16, dtype=BF16),
    "low rank, row_map": partial(make, "rms", 96, (3,), rank=40, dtype=BF16, **THREE_MAPS),
    "low rank, int8": partial(make, "rms", 64, (2,), rank=32, dtype=BF16, map_dtype=INT8),
    "low rank, odd": partial(make, "layer", 39, (2,), rank=7, dtype=BF16),
}


def check(case: Case, y: torch.Tensor, edited: torch.Tensor) -> None:
    length = case.x.shape[-1]
    assert_close(edited, case.expected()[1], length)
    assert_close(y, case.normed(edited), length)


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_the_maps_before_the_wait(name: str) -> None:
    """Right, in place as well, and with the bits of the launch that does not overlap."""
    case = CASES[name]()
    first = run_fibers(prepare(case))
    check(case, *first)
    for in_place in (False, True):
        call = prepare(case, in_place=in_place, programmatic=True)
        assert both_equal(run_ptx(call, "sm_90", resident=2), first)


def test_after_a_gemm() -> None:
    case = make("layer", 100, (3,), dtype=BF16)
    mapped = (case.x.double() @ case.map.up[0].double().T).float()
    y, edited, _ = run_ptx(prepare(case, mapped=mapped, programmatic=True), "sm_90")
    check(case, y, edited)


@pytest.mark.parametrize("name", ["one row", "low rank, one row"])
def test_the_maps_are_requested_before_the_wait(name: str) -> None:
    """In the order of the PTX: a dense map's first weights, and the prefetch of a map of low rank."""
    (launch,) = launches_of(prepare(CASES[name](), programmatic=True))
    kernel = launch.kernel.decode()
    text = source_of(kernel, "sm_90").split(f".entry {kernel}(")[1].split(".entry ")[0]
    before = text.split("griddepcontrol.wait")
    request = "cp.async.bulk.prefetch.L2.global" if "low rank" in name else "ld.global.nc.L1::no_allocate.v4"
    assert request in "".join(before[: 3 if name == "one row" else 1])
    assert "griddepcontrol.launch_dependents" in before[0]


@pytest.mark.parametrize("name", ["one row", "several rows", "low rank, one row"])
def test_older_architectures_have_none_of_these_instructions(name: str) -> None:
    for launch in launches_of(prepare(CASES[name](), programmatic=True)):
        text = source_of(launch.kernel.decode(), "sm_80")
        assert "griddepcontrol" not in text
        assert "cp.async.bulk" not in text


def test_fibers_are_launched_in_this_way_too() -> None:
    case = CASES["low rank, several rows"]()
    assert both_equal(run_fibers(prepare(case, programmatic=True)), run_fibers(prepare(case)))
