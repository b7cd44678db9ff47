"""A fault planted into the PTX that Triton emits: the emulator has to notice it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tolerances import assert_close
from triton_cases import make_triton

from emulator import triton_driver
from emulator.ptx import launch

pytestmark = pytest.mark.gpu_emulated


@pytest.mark.parametrize("rank", [None, 24])
def test_an_asynchronous_copy_that_is_not_waited_for(rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_triton("layer", 272, (3,), rank=rank, dtype=torch.bfloat16, alpha=0.5)
    assert_close(case()[1], case.expected()[1], 272)
    planted = []

    def launch_with_fault(source: str, *arguments: Any, **options: Any) -> Any:
        changed, count = re.subn(r"cp\.async\.wait_group[^;]*;", "", source)
        planted.append(count)
        return launch(changed, *arguments, **options)

    monkeypatch.setattr(triton_driver, "launch", launch_with_fault)
    edited = case()[1]
    assert planted
    assert all(planted)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(edited, case.expected()[1], 272)
