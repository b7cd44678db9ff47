"""What the launchers refuse before anything is started, naming the argument."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cuda.decode_cases import BF16
from cuda.launcher import Call, prepare, rows, run_fibers
from op_cases import make

pytestmark = pytest.mark.gpu_emulated


def scattered(call: Call) -> None:
    """Five leading dimensions of which no two have one stride."""
    x = torch.zeros(4, 4, 4, 4, 4, 16, dtype=BF16)[::2, ::2, ::2, ::2, ::2]
    call.op.x, call.buffers["scattered"] = rows(x), x


def set_field(path: str, value: object) -> Callable[[Call], None]:
    *parents, name = path.split(".")

    def change(call: Call) -> None:
        target = call.op
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)

    return change


REFUSED: dict[str, tuple[Callable[[Call], None], str]] = {
    "fp64 rows": (set_field("x.dtype", 1), "x has dtype float64; allowed on CUDA: float32, bfloat16, float16"),
    "fp64 map": (set_field("up.dtype", 1), "up has dtype float64; allowed on CUDA: float32, bfloat16, float16, int8"),
    "packed map": (set_field("up.packed", True), "up is packed in the CPU's panel layout"),
    "map with gaps": (set_field("up.column_stride", 17), r"up is not contiguous; pass up.contiguous\(\)"),
    "transposed map": (set_field("down.depth_stride", 8), r"down is not contiguous; pass down.contiguous\(\)"),
    "stack with gaps": (set_field("up.map_stride", 512), r"up is not contiguous; pass up.contiguous\(\)"),
    "hidden size": (set_field("hidden_size", 1 << 25), "x has hidden size 33554432; allowed on CUDA: up to 16777216"),
    "strides": (scattered, "x has more than 4 leading dimensions that cannot be merged; pass x.contiguous"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, message = REFUSED[name]
    call = prepare(make("rms", 16, (4,), dtype=BF16, rank=8, num_maps=2))
    change(call)
    with pytest.raises(ValueError, match=message):
        run_fibers(call)


def test_missing_workspace() -> None:
    call = prepare(make("rms", 16, (4,), dtype=BF16))
    call.workspace = torch.empty(0)
    with pytest.raises(ValueError, match=r"workspace.data is null; expected memory aligned to 16"):
        run_fibers(call)


def test_misaligned_workspace() -> None:
    call = prepare(make("rms", 16, (4,), dtype=BF16))
    call.workspace = torch.cat([call.workspace, torch.empty(4)])[1:]
    with pytest.raises(ValueError, match=r"workspace.data is misaligned; expected memory aligned to 16"):
        run_fibers(call)
