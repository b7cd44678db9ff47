"""The planted faults still fit the sources that they are planted into."""

from __future__ import annotations

import pytest

from emulator.faults import AFFINE_NORM, FAULTS

pytestmark = pytest.mark.gpu_emulated


def test_there_are_enough_of_many_kinds() -> None:
    assert len(FAULTS) >= 12
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({fault.file for fault in FAULTS}) >= 5


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_its_text_occurs_once(fault) -> None:
    text = (AFFINE_NORM / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.before) == 1
    assert fault.after != fault.before
    assert fault.cases
