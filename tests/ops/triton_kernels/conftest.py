"""Triton kernels compiled for sm_80 and executed as PTX on the CPU; one tuning unless a test asks for more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.triton_driver import Launch, emulated
from incline_fast.ops.triton_kernels._decode import decode


@pytest.fixture(scope="session")
def emulated_gpu() -> Iterator[list[Launch]]:
    with emulated(80) as launches:
        yield launches


@pytest.fixture(autouse=True)
def launches(emulated_gpu: list[Launch], monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the test launches. One tuning: its time means nothing here, and bits do not depend on it."""
    monkeypatch.setattr(decode, "configs", decode.configs[:1])
    emulated_gpu.clear()
    return emulated_gpu
