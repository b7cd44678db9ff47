"""With INCLINE_FAST_SPIN_LIMIT a program traps where it would otherwise wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from incline_fast.ops.triton_kernels import _decode

PROGRAM = Path(__file__).with_name("waiting_program.py")


@pytest.mark.gpu_emulated
def test_a_wait_without_end_traps() -> None:
    environment = {**os.environ, "INCLINE_FAST_SPIN_LIMIT": "30", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(PROGRAM)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert answer.stdout.split("\n")[:2] == ["went on", "trapped"], answer.stderr


@pytest.mark.skipif("os.environ.get('INCLINE_FAST_SPIN_LIMIT')")
def test_a_release_does_not_count() -> None:
    assert _decode.SPIN_LIMIT.value == 0
