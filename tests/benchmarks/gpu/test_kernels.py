"""The kernel that reads and does nothing else, in the emulator."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)

from benchmarks.gpu.kernels import WORDS, read
from emulator.triton_driver import emulated

pytestmark = pytest.mark.gpu_emulated


def test_every_word_is_read_once_with_wide_loads() -> None:
    g = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31 - 1, (WORDS + 1024,), dtype=torch.int32, generator=g)
    with emulated(90) as launches:
        sums = read(words.view(torch.bfloat16))
    wanted = [int(piece.sum(dtype=torch.int64)) for piece in words.split(WORDS)]
    assert [(int(found) - total) % (1 << 32) for found, total in zip(sums, wanted, strict=True)] == [0, 0]
    (launch,) = launches
    (traffic,) = launch.report.reads.values()
    assert (traffic.bytes, set(traffic.widths)) == (words.nbytes, {128}), launch.report
