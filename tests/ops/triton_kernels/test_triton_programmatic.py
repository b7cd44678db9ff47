"""Triton's decode kernel launched programmatically: nothing is touched before the dependency wait."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tolerances import assert_close
from triton_cases import make_triton

from emulator import triton_driver
from emulator.ptx import PTXError, launch
from emulator.triton_driver import Launch, emulated
from incline_fast.ops import set_programmatic_launch

pytestmark = pytest.mark.gpu_emulated


@pytest.fixture
def hopper(launches: list[Launch]) -> Iterator[list[Launch]]:
    """An sm_90, on which the setting is on."""
    set_programmatic_launch(True)
    try:
        with emulated(90, constants=("down", "up")) as on_hopper:
            yield on_hopper
    finally:
        set_programmatic_launch(False)


@pytest.mark.parametrize("rank", [None, 24])
def test_it_waits_first(rank: int | None, hopper: list[Launch]) -> None:
    """Right, with the bits of the launch that does not overlap."""
    case = make_triton("rms", 80, (3,), rank=rank, dtype=torch.bfloat16, alpha=0.5)
    y, edited = case()
    assert "griddepcontrol.wait" in hopper[-1].ptx
    assert "griddepcontrol.launch_dependents" in hopper[-1].ptx
    assert_close(edited, case.expected()[1], 80)
    set_programmatic_launch(False)
    usual = case()
    assert "griddepcontrol" not in hopper[-1].ptx
    assert torch.equal(usual[0], y)
    assert torch.equal(usual[1], edited)


def test_a_missing_wait_is_found(hopper: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    def launch_with_fault(source: str, *arguments: Any, **options: Any) -> Any:
        changed, count = re.subn(r"griddepcontrol\.wait;", "", source)
        assert count == 1
        return launch(changed, *arguments, **options)

    monkeypatch.setattr(triton_driver, "launch", launch_with_fault)
    case = make_triton("rms", 80, (3,), dtype=torch.bfloat16, alpha=0.5)
    with pytest.raises(PTXError, match=r"is touched before griddepcontrol.wait, while the previous launch may still"):
        case()


def test_older_gpus_are_launched_as_usual(launches: list[Launch]) -> None:
    case = make_triton("rms", 80, (3,), dtype=torch.bfloat16, alpha=0.5)
    set_programmatic_launch(True)
    try:
        case()
    finally:
        set_programmatic_launch(False)
    assert "griddepcontrol" not in launches[-1].ptx
