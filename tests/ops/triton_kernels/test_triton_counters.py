"""Who shares counters with whom: launches that cannot run at the same time, and no others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from incline_fast.ops.triton_kernels import _counters

GPU = torch.device("cuda", 0)


class MadeUpGpu:
    """A current CUDA stream and whether it is being captured; its memory is the CPU's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cuda_stream, self.capturing = 1, False
        monkeypatch.setattr(_counters, "_slabs", {})
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=self.cuda_stream))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        slab = _counters._Slab
        monkeypatch.setattr(_counters, "_Slab", lambda device: slab(torch.device("cpu")))

    def address(self, cuda_stream: int, capturing: bool = False) -> int | None:
        self.cuda_stream, self.capturing = cuda_stream, capturing
        piece = _counters._from_slab(GPU)
        return None if piece is None else piece.data_ptr()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> MadeUpGpu:
    return MadeUpGpu(monkeypatch)


def test_a_cuda_stream_keeps_its_counters_and_shares_them_with_no_other(gpu: MadeUpGpu) -> None:
    first, second = gpu.address(1), gpu.address(2)
    assert first != second
    assert gpu.address(1) == first


def test_every_captured_call_has_counters_of_its_own(gpu: MadeUpGpu) -> None:
    """Graphs that were captured on one CUDA stream may be replayed on several at once."""
    assert gpu.address(1, capturing=True) is None  # nothing that outlives the graph can be allocated now
    eager = gpu.address(1)
    captured = [gpu.address(1, capturing=True) for _ in range(3)]
    assert len({eager, *captured}) == 4
    assert gpu.address(1) == eager


def test_used_up_counters_and_large_launches_get_new_ones(monkeypatch: pytest.MonkeyPatch, gpu: MadeUpGpu) -> None:
    monkeypatch.setattr(_counters, "_SLAB", 2 * _counters._PER_CALL)
    assert gpu.address(1) != gpu.address(2)
    assert gpu.address(3) is None
    assert gpu.address(2) is not None
    x = torch.empty(1)
    small, large = _counters.zeroed(x, 4), _counters.zeroed(x, _counters._PER_CALL + 1)
    assert len(large) > _counters._PER_CALL
    assert not small.any()
    assert not large.any()
