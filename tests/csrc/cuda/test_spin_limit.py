"""A debug build traps where a release would wait for ever, and a release does not count."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from emulator import build
from emulator.errors import EmulationError

pytestmark = pytest.mark.gpu_emulated

SOURCE = """
{define}
#include "cuda/affine_norm/tickets.h"

namespace incline_fast::cuda {{

__global__ void waits(const unsigned* counter, unsigned total, unsigned* passed) {{
  wait_for(counter, total);
  if (threadIdx.x == 0) *passed = 1;
}}

}}  // namespace incline_fast::cuda

extern "C" void run_waits(const unsigned* counter, unsigned total, unsigned* passed) {{
  LAUNCH(incline_fast::cuda::waits, 1, 32, 0, nullptr, counter, total, passed);
}}
"""
DEBUG = "#define INCLINE_FAST_SPIN_LIMIT 20"


def source(folder: Path, define: str) -> Path:
    path = folder / "waits.cu"
    path.write_text(SOURCE.format(define=define))
    return path


def run(folder: Path, define: str, total: int) -> int:
    """1 if a block that waits for the counter 3 to be ``total`` goes on."""
    library = build.load_fibers(source(folder, define))
    counter, passed = torch.tensor([3], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    library.function("run_waits", ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p)(
        counter.data_ptr(), total, passed.data_ptr()
    )
    return int(passed.item())


def test_a_debug_build_traps_in_a_wait_without_end(tmp_path: Path) -> None:
    assert run(tmp_path, DEBUG, 3) == 1
    with pytest.raises(EmulationError, match="__trap"):
        run(tmp_path, DEBUG, 4)


def test_a_release_waits_without_counting(tmp_path: Path) -> None:
    assert run(tmp_path, "", 3) == 1
    with pytest.raises(EmulationError) as caught:
        run(tmp_path, "", 4)
    assert "__trap" not in str(caught.value)
    assert "trap;" not in build.ptx(source(tmp_path, ""), "sm_90")
    assert "trap;" in build.ptx(source(tmp_path, DEBUG), "sm_90")
