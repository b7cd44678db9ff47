"""What the decode kernels move at the size of a real model: the map once, in 16-byte loads, and little else."""

from __future__ import annotations

import pytest
import torch
from cuda.decode_cases import BF16, both_equal
from cuda.launcher import Call, prepare, run_fibers, run_ptx
from emulation.ptx import TrafficReport
from ops.cases import make
from tolerances import assert_close

pytestmark = pytest.mark.gpu_emulated
HIDDEN = 4096


def compulsory_bytes(call: Call) -> int:
    """Every operand once: maps, rows and vectors in, r' and y out."""
    case = call.case
    operands = [case.x, case.map.up, case.map.down, case.weight, case.norm_bias, case.options.get("bias")]
    operands += [call.y, call.edited]
    return sum(tensor.numel() * tensor.element_size() for tensor in operands if tensor is not None)


def run(rank: int | None, num_tokens: int) -> tuple[Call, TrafficReport]:
    case = make("rms", HIDDEN, (num_tokens,), rank=rank, dtype=BF16, alpha=0.4)
    call = prepare(case)
    y, edited, report = run_ptx(call, "sm_80")
    assert_close(edited, case.expected()[1], HIDDEN)
    assert_close(y, case.normed(edited), HIDDEN)
    assert both_equal((y, edited), run_fibers(prepare(case)))
    return call, report


@pytest.mark.parametrize(("rank", "num_tokens", "limit"), [(None, 1, 1.03), (None, 8, 1.03), (512, 1, 1.05)])
def test_compulsory_bytes(rank: int | None, num_tokens: int, limit: float) -> None:
    """Each sector is counted once in each direction, as memory behind a 50 MB cache sees it; see the next lines for
    what the caches see."""
    call, report = run(rank, num_tokens)
    print(report)
    assert report.distinct_bytes() <= limit * compulsory_bytes(call), report
    for name in ("up", "down")[: 1 if rank is None else 2]:
        traffic = report.reads[name]
        assert set(traffic.widths) == {128}, report
        # The maps are what memory has to bring: nothing of them is asked for twice, and no sector in part.
        assert 32 * traffic.sectors == traffic.bytes, report
        assert traffic.sectors_per_request == 16, report
    assert report.worst_bank_conflict <= 2, report
    # Every block reads all rows of x from the L2 cache; with one row that is 1/16 of the bytes of the map.
    assert report.bytes_read(["x"]) <= (num_tokens + 1) / 16 * call.case.map.up.numel() * 2, report


def test_rows_of_any_width_are_right_though_slower() -> None:
    """d = 769 misaligns every second row of the map: loads of one element, the same sums."""
    case = make("layer", 769, (2,), dtype=BF16, residual_dtype=torch.float32)
    y, edited, report = run_ptx(prepare(case), "sm_90")
    assert_close(edited, case.expected()[1], 769)
    assert both_equal((y, edited), run_fibers(prepare(case)))
    assert set(report.reads["up"].widths) == {16}
