"""How long each GPU kernel should take, before any of them has run on a GPU: python -m benchmarks.roofline.

Every number that this prints, writes or draws is a PREDICTION of the model below, none is a measurement. The model is
meant to be wrong in the open: when the kernels run on a GPU, ``make gpu`` puts its times beside these.

A kernel takes

    launch + first byte + max(bytes / bandwidth, bytes of the busiest SM / bandwidth of one SM, flops / peak)

where bytes are compulsory (each operand once) and the busiest of S multiprocessors runs ceil(programs / S) programs.
The fused kernels then hand over between their phases (publish, count, notice: trips to L2) and finish the rows, one
multiprocessor a row. The unfused pair is the vendor's product and one kernel for add and norm, in one CUDA graph;
it is granted the same bandwidth, so that what is compared is the design and not a guess about cuBLAS.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.report.plots import PLOTS
from incline_fast.bench.problems import Problem
from incline_fast.bench.rows import write_csv
from incline_fast.files import replacing

__all__ = ["EXPECTATIONS", "GPUS", "Gpu", "Prediction", "find_gpu", "predict", "predict_cholesky_block"]

LABEL = "predicted, not measured"


@dataclass(frozen=True)
class Gpu:
    """Datasheet figures: TB/s of memory, dense Tflop/s of the tensor cores in 16 bits and of the fp32 units."""

    name: str
    bandwidth: float
    tensor: float
    vector: float
    multiprocessors: int
    clock_ghz: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 2.039, 312, 19.5, 108, 1.41, "NVIDIA A100 80GB datasheet (June 2021), SXM; A100 whitepaper"),
        Gpu("H100", 3.35, 989.4, 66.9, 132, 1.83, "NVIDIA H100 datasheet (2023), SXM; H100 whitepaper"),
        Gpu("H200", 4.8, 989.4, 66.9, 132, 1.83, "NVIDIA H200 datasheet (2024), SXM"),
        Gpu("B200", 8.0, 2250, 80, 148, 1.85, "NVIDIA Blackwell architecture technical brief (2024), HGX B200"),
    )
}
"""Tensor figures are half of those that the datasheets give with sparsity."""

ATTAINABLE_BANDWIDTH = 0.92
"""Assumed share of the datasheet's bandwidth that a long read reaches; for every kernel alike."""
ATTAINABLE_FLOPS = 0.7
"""Assumed share of the peak that a vendor's large product reaches."""
LAUNCH_US = 1.3
"""Assumed time from the end of a kernel to the first instruction of the one that depends on it in a CUDA graph."""
DRAM_US, L2_US = 0.6, 0.3
"""Assumed time of one trip to memory and to L2 under load."""
SM_BYTES_PER_CLOCK = 64
"""Assumed bytes that one multiprocessor receives from L2 per clock."""
COLUMNS_PER_PROGRAM = 16
"""Output columns of a work item of the decode kernels."""
PIVOT_CLOCKS = 300
"""Assumed clocks per pivot of the Cholesky block: two barriers, a reciprocal square root, a broadcast in sequence."""


@dataclass(frozen=True)
class Prediction:
    """One kernel on one GPU. ``us_roofline`` is the datasheet's limit, ``ratio`` us_predicted / us_unfused."""

    status: str
    gpu: str
    kernel: str
    dtype: str
    num_tokens: int
    hidden_size: int
    rank: int | None
    bytes: int
    flops: int
    us_roofline: float
    us_predicted: float
    us_unfused: float | None
    ratio: float | None


def find_gpu(device_name: str) -> Gpu | None:
    """The entry for a device as the driver names it ("NVIDIA H100 80GB HBM3"), None where there is none."""
    return next((gpu for name, gpu in GPUS.items() if name in device_name), None)


def predict(gpu: Gpu, problem: Problem) -> Prediction:
    """The fused op: decode kernels up to 64 tokens, torch's product and the epilogue above."""
    decode = problem.num_tokens <= 64
    ours = (_fused_us if decode else _prefill_us)(gpu, problem)
    unfused = _unfused_us(gpu, problem)
    form = "dense" if problem.rank is None else "low_rank"
    return Prediction(
        status=LABEL,
        gpu=gpu.name,
        kernel=f"decode_{form}" if decode else f"gemm_{form}+epilogue",
        dtype=str(problem.dtype).removeprefix("torch."),
        num_tokens=problem.num_tokens,
        hidden_size=problem.hidden_size,
        rank=problem.rank,
        bytes=problem.bytes,
        flops=problem.flops,
        us_roofline=max(problem.bytes / gpu.bandwidth / 1e6, problem.flops / _peak(gpu, problem) / 1e6),
        us_predicted=ours,
        us_unfused=unfused,
        ratio=ours / unfused,
    )


def predict_cholesky_block(gpu: Gpu, size: int = 128) -> Prediction:
    """Factor and inverse of one fp32 diagonal block in one program: bound by its chain of pivots, not by bytes."""
    moved, flops = 2 * 4 * size * size, 2 * size**3 // 3
    return Prediction(
        status=LABEL,
        gpu=gpu.name,
        kernel="cholesky_block",
        dtype="float32",
        num_tokens=1,
        hidden_size=size,
        rank=None,
        bytes=moved,
        flops=flops,
        us_roofline=max(moved / gpu.bandwidth, flops / gpu.vector) / 1e6,
        us_predicted=LAUNCH_US + DRAM_US + size * PIVOT_CLOCKS / gpu.clock_ghz / 1e3,
        us_unfused=None,
        ratio=None,
    )


def _peak(gpu: Gpu, problem: Problem) -> float:
    return gpu.vector if problem.map_dtype is torch.float32 else gpu.tensor


def _sm_us(gpu: Gpu, moved: float) -> float:
    """Time in which one multiprocessor receives ``moved`` bytes."""
    return moved / (SM_BYTES_PER_CLOCK * gpu.clock_ghz) / 1e3


def _stream_us(gpu: Gpu, moved: int, flops: int, peak: float, programs: int) -> float:
    busiest = moved * math.ceil(programs / gpu.multiprocessors) / programs
    return max(moved / (gpu.bandwidth * ATTAINABLE_BANDWIDTH) / 1e6, _sm_us(gpu, busiest), flops / peak / 1e6)


def _rows_us(gpu: Gpu, problem: Problem, vectors: int) -> float:
    """Norms of all rows, one multiprocessor a row that moves ``vectors`` vectors: read, reduce, write."""
    waves = math.ceil(problem.num_tokens / gpu.multiprocessors)
    row = vectors * problem.hidden_size * problem.dtype.itemsize
    total = problem.num_tokens * row / (gpu.bandwidth * ATTAINABLE_BANDWIDTH) / 1e6
    return 2 * L2_US + max(waves * _sm_us(gpu, row), total if waves > 1 else 0.0)


def _factors(problem: Problem) -> list[tuple[int, int]]:
    """(columns, depth) of the products of one call."""
    d, rank = problem.hidden_size, problem.rank
    return [(d, d)] if rank is None else [(rank, d), (d, rank)]


def _programs(columns: int, depth: int) -> int:
    """Work items of one product: blocks of columns, cut along the depth where there are fewer than 128 of them."""
    blocks = math.ceil(columns / COLUMNS_PER_PROGRAM)
    return blocks * max(1, min(128 // blocks, depth // 256))


def _fused_us(gpu: Gpu, problem: Problem) -> float:
    """One launch; between two phases one hand-over: publish, count, notice."""
    time = LAUNCH_US + L2_US + DRAM_US + _rows_us(gpu, problem, 5)
    for columns, depth in _factors(problem):
        moved, flops = columns * depth * problem.map_dtype.itemsize, 2 * problem.num_tokens * columns * depth
        time += _stream_us(gpu, moved, flops, _peak(gpu, problem), _programs(columns, depth)) + 2 * L2_US
    return time


def _gemm_us(gpu: Gpu, problem: Problem, columns: int, depth: int, result_bytes: int) -> float:
    """A vendor's product as a kernel of its own, spread perfectly."""
    m, element = problem.num_tokens, problem.map_dtype.itemsize
    moved = columns * depth * element + m * depth * element + m * columns * result_bytes
    peak = _peak(gpu, problem) * ATTAINABLE_FLOPS
    time = max(moved / (gpu.bandwidth * ATTAINABLE_BANDWIDTH), 2 * m * columns * depth / peak) / 1e6
    return LAUNCH_US + DRAM_US + time


def _unfused_us(gpu: Gpu, problem: Problem) -> float:
    """Vendor products, then one kernel that adds, rounds and normalises."""
    products = sum(_gemm_us(gpu, problem, n, k, problem.dtype.itemsize) for n, k in _factors(problem))
    return products + LAUNCH_US + _rows_us(gpu, problem, 4)


def _prefill_us(gpu: Gpu, problem: Problem) -> float:
    """Vendor products with an fp32 result, then the epilogue, which reads it beside x and writes r' and y."""
    products = sum(_gemm_us(gpu, problem, n, k, 4) for n, k in _factors(problem))
    return products + LAUNCH_US + _rows_us(gpu, problem, 3 + 4 // problem.dtype.itemsize)


EXPECTATIONS = (
    ("dense, over the weights' time at full bandwidth", Problem("rms", 1, 4096, None, *2 * (torch.bfloat16,)), 1.15),
    ("dense, over the unfused pair in a CUDA graph", Problem("rms", 1, 4096, None, *2 * (torch.bfloat16,)), 0.85),
    ("rank 500, in microseconds", Problem("rms", 1, 4096, 500, *2 * (torch.bfloat16,)), 5.0),
)
"""What the kernels are expected to reach on an H100 at one token, d = 4096, bf16: (what, problem, limit)."""


def expectation_values(gpu: Gpu) -> list[float]:
    """The three predicted values that EXPECTATIONS limit."""
    dense, low = predict(gpu, EXPECTATIONS[0][1]), predict(gpu, EXPECTATIONS[2][1])
    weights = 4096 * 4096 * 2 / gpu.bandwidth / 1e6
    assert dense.ratio is not None
    return [dense.us_predicted / weights, dense.ratio, low.us_predicted]


def _problems() -> list[Problem]:
    shapes = product((2048, 4096, 8192), (None, 64, 500), (1, 4, 16, 64, 2048))
    bf16 = [Problem("rms", m, d, r, torch.bfloat16, torch.bfloat16) for d, r, m in shapes]
    return bf16 + [Problem("rms", m, 4096, r) for r, m in product((None, 500), (1, 16))]


def _draw(rows: Sequence[Prediction], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, rank in zip(axes, (None, 500), strict=True):
        for gpu in GPUS:
            line = [r for r in rows if (r.gpu, r.rank, r.hidden_size, r.dtype) == (gpu, rank, 4096, "bfloat16")]
            line = [r for r in line if r.kernel != "cholesky_block"]
            (drawn,) = axis.plot([r.num_tokens for r in line], [r.us_predicted for r in line], "o-", label=gpu)
            axis.plot([r.num_tokens for r in line], [r.us_unfused for r in line], "--", color=drawn.get_color())
        axis.set(xscale="log", yscale="log", xlabel="tokens", title="dense" if rank is None else f"rank {rank}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("µs, predicted")
    axes[0].legend(title="fused; dashed: unfused pair")
    figure.suptitle("Predictions of a model, not measurements: d = 4096, bf16")
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def _table(rows: Sequence[Prediction]) -> Table:
    title = "Predictions of a model, not measurements (bf16, d = 4096)"
    table = Table("gpu", "kernel", "tokens", "rank", "roofline us", "predicted us", "unfused us", "ratio", title=title)
    for row in rows:
        if row.kernel != "cholesky_block" and (row.hidden_size, row.dtype) != (4096, "bfloat16"):
            continue
        unfused = ["", ""] if row.ratio is None else [f"{row.us_unfused:.1f}", f"{row.ratio:.2f}"]
        rank = "" if row.rank is None else str(row.rank)
        times = [f"{row.us_roofline:.2f}", f"{row.us_predicted:.1f}"]
        table.add_row(row.gpu, row.kernel, str(row.num_tokens), rank, *times, *unfused)
    return table


def main(output: Path, plots: Path = PLOTS) -> None:
    """Print the table, write roofline-predicted.csv into ``output`` and the picture of that name into ``plots``."""
    rows = [predict(gpu, problem) for gpu, problem in product(GPUS.values(), _problems())]
    rows += [predict_cholesky_block(gpu) for gpu in GPUS.values()]
    console = Console(width=120)
    console.print(_table(rows))
    for gpu in GPUS.values():
        console.print(f"{gpu.name}: {gpu.source}", highlight=False)
    console.print("\nExpectations for an H100, one token, d = 4096, bf16; predicted, not measured:")
    for (what, _, limit), value in zip(EXPECTATIONS, expectation_values(GPUS["H100"]), strict=True):
        verdict = "meets it" if value <= limit else "MISSES it"
        console.print(f"  {what}: at most {limit}, the model says {value:.2f} and {verdict}", highlight=False)
    output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, output / "roofline-predicted.csv", Prediction)
    _draw(rows, plots / "roofline-predicted.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the CSV")
    main(parser.parse_args().output)
