"""An alignment on the disk."""

from __future__ import annotations

import pytest
from alignments import example


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "fr-en.safetensors"
    example().save(path)
    return path
