"""How long each GPU kernel should take, before any of them has run on a GPU: python -m benchmarks.roofline.

Every number that this prints, writes or draws is a PREDICTION of a model, none is a measurement. The model is there to
be checked: when the kernels run on a GPU, ``make gpu`` puts its times beside these.

Where the decode kernels serve a call it is that of ``benchmarks/decode_model.py``, which counts bytes in flight,
traffic from L2 and the chain of dependent steps; docs/gpu_time.md shows it. Elsewhere torch's product and the epilogue
take their bytes or flops, and a launch each. The datasheet's limit, bytes over bandwidth or flops over peak, stands
beside both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import decode_model as model
from benchmarks.cholesky_model import block_us
from benchmarks.decode_model import DESIGNS, GPUS, Design, Gpu
from benchmarks.report.markdown import table as markdown
from benchmarks.report.plots import PLOTS
from incline_fast.bench.problems import Problem
from incline_fast.bench.rows import write_csv
from incline_fast.files import replacing
from incline_fast.ops._arguments import DECODE_TOKENS

__all__ = ["EXPECTATIONS", "GPUS", "Gpu", "Prediction", "find_gpu", "predict", "predict_cholesky_block"]

LABEL = "predicted, not measured"
PAGE = Path(__file__).parents[1] / "docs" / "gpu_time.md"


@dataclass(frozen=True)
class Prediction:
    """One kernel on one GPU. ``design`` names the version of the decode kernels, ``us_roofline`` is the datasheet's
    limit, ``us_unfused`` the unfused pair in a CUDA graph, ``ratio`` us_predicted / us_unfused. The columns that end
    with pdl are for programmatic launches, of ours and within the pair; they are empty where the GPU or the design has
    none."""

    status: str
    gpu: str
    kernel: str
    design: str
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
    us_predicted_pdl: float | None = None
    us_unfused_pdl: float | None = None
    ratio_pdl: float | None = None


def find_gpu(device_name: str) -> Gpu | None:
    """The entry for a device as the driver names it ("NVIDIA H100 80GB HBM3"), None where there is none."""
    return next((gpu for name, gpu in GPUS.items() if name in device_name), None)


def predict(gpu: Gpu, problem: Problem, design: Design = DESIGNS[-1]) -> Prediction:
    """The fused op: the decode kernels up to the design's number of tokens, torch's product and the epilogue above."""
    decode = design.decodes(gpu, problem)

    def fused(programmatic: bool) -> float:
        if decode:
            return model.decode_us(gpu, problem, design, programmatic=programmatic)
        return model.prefill_us(gpu, problem, programmatic=programmatic)

    ours, unfused = fused(False), model.pair_us(gpu, problem)
    overlaps = gpu.sm_90 and design is DESIGNS[-1]
    ours_pdl = fused(True) if overlaps else None
    unfused_pdl = model.pair_us(gpu, problem, programmatic=True) if overlaps else None
    form = "dense" if problem.rank is None else "low_rank"
    return Prediction(
        status=LABEL,
        gpu=gpu.name,
        kernel=f"decode_{form}" if decode else f"gemm_{form}+epilogue",
        design=design.name,
        dtype=str(problem.dtype).removeprefix("torch."),
        num_tokens=problem.num_tokens,
        hidden_size=problem.hidden_size,
        rank=problem.rank,
        bytes=problem.bytes,
        flops=problem.flops,
        us_roofline=max(problem.bytes / gpu.bandwidth / 1e6, problem.flops / model.peak(gpu, problem) / 1e6),
        us_predicted=ours,
        us_unfused=unfused,
        ratio=ours / unfused,
        us_predicted_pdl=ours_pdl,
        us_unfused_pdl=unfused_pdl,
        ratio_pdl=None if ours_pdl is None or unfused_pdl is None else ours_pdl / unfused_pdl,
    )


def predict_cholesky_block(gpu: Gpu, size: int = 128) -> Prediction:
    """Factor and inverse of one fp32 diagonal block in one program: bound by its chain of pivots, not by bytes."""
    moved, flops = 2 * 4 * size * size, 2 * size**3 // 3
    return Prediction(
        status=LABEL,
        gpu=gpu.name,
        kernel="cholesky_block",
        design="",
        dtype="float32",
        num_tokens=1,
        hidden_size=size,
        rank=None,
        bytes=moved,
        flops=flops,
        us_roofline=max(moved / gpu.bandwidth, flops / gpu.vector) / 1e6,
        us_predicted=block_us(gpu, size, torch.float32),
        us_unfused=None,
        ratio=None,
    )


EXPECTATIONS = (
    ("dense, over the weights' time at full bandwidth", Problem("rms", 1, 4096, None, *2 * (torch.bfloat16,)), 1.15),
    ("dense, over the unfused pair in a CUDA graph", Problem("rms", 1, 4096, None, *2 * (torch.bfloat16,)), 0.85),
    ("rank 500, in microseconds", Problem("rms", 1, 4096, 500, *2 * (torch.bfloat16,)), 5.0),
)
"""What the kernels are expected to reach on an H100 at one token, d = 4096, bf16: (what, problem, limit)."""


def expectation_values(gpu: Gpu, design: Design = DESIGNS[-1]) -> list[float]:
    """The three predicted values that EXPECTATIONS limit."""
    dense, low = (predict(gpu, EXPECTATIONS[i][1], design) for i in (0, 2))
    weights = 4096 * 4096 * 2 / gpu.bandwidth / 1e6
    assert dense.ratio is not None
    return [dense.us_predicted / weights, dense.ratio, low.us_predicted]


TOKENS, WIDTHS, RANKS = (1, 4, 8, 16, 64), (1024, 2048, 4096, 8192), (None, 64, 128, 500)


def _problems() -> list[Problem]:
    bf16 = [Problem("rms", m, d, r, *2 * (torch.bfloat16,)) for d, r, m in product(WIDTHS, RANKS, (*TOKENS, 2048))]
    return bf16 + [Problem("rms", m, 4096, r) for r, m in product((None, 500), (1, 16))]


def predictions() -> list[Prediction]:
    """Every GPU and problem; the decode kernels in each of their designs."""
    rows = []
    for gpu, problem in product(GPUS.values(), _problems()):
        designs = DESIGNS if problem.num_tokens <= DECODE_TOKENS else DESIGNS[-1:]
        rows += [predict(gpu, problem, design) for design in designs]
    return rows + [predict_cholesky_block(gpu) for gpu in GPUS.values()]


def _draw(rows: Sequence[Prediction], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, rank in zip(axes, (None, 500), strict=True):
        for gpu in GPUS:
            line = [r for r in rows if (r.gpu, r.rank, r.hidden_size, r.dtype) == (gpu, rank, 4096, "bfloat16")]
            line = [r for r in line if r.design == DESIGNS[-1].name]
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
    heads = ("gpu", "kernel", "design", "tokens", "rank", "roofline us", "predicted us", "unfused us", "ratio")
    table = Table(*heads, title=title)
    for row in rows:
        if row.kernel != "cholesky_block" and (row.hidden_size, row.dtype) != (4096, "bfloat16"):
            continue
        unfused = ["", ""] if row.ratio is None else [f"{row.us_unfused:.1f}", f"{row.ratio:.2f}"]
        rank = "" if row.rank is None else str(row.rank)
        times = [f"{row.us_roofline:.2f}", f"{row.us_predicted:.1f}"]
        table.add_row(row.gpu, row.kernel, row.design, str(row.num_tokens), rank, *times, *unfused)
    return table


PAGE_TEXT = """# Predicted times of the decode kernels

Written by `python -m benchmarks.roofline`; do not edit by hand. **Nothing here was measured on a GPU.** These are
predictions of the model in [decode_model.py](../benchmarks/decode_model.py), which counts bytes in flight, traffic
from L2 and the chain of dependent steps, with every constant and its source. Expect errors of a quarter either way.

Microseconds for bf16 and the RMS norm in a CUDA graph. {columns}*pair* is the unfused pair: the vendor's product (two
for a low rank) and one kernel that adds and normalises, granted the same latencies. In **bold**: where we would lose.

With *PDL*: programmatic dependent launch (`incline_fast.set_programmatic_launch(True)`, off at first). Ours begins
while the kernel ahead of it still runs and has requested its first weights when that one ends; the pair is granted the
same for every kernel but its first, which is the vendor's product. Were that one launched so as well, it would gain
what ours gains over the kernel ahead. How long such a hand-over takes is assumed, not known (`DEPENDENCY_US`); that the
kernel ahead leaves room for the next one is assumed as well.

Where *now* equals *pair* the op leaves the product to the vendor and does the rest in one kernel
(`decode_rows` in csrc/bindings): there the decode kernels would take longer on one of these two GPUs. The choice
depends on the GPU for dense maps alone, whose kernel with bulk copies serves 16 tokens on an H100 and 9 on an H200. On
GPUs with more bandwidth beside the same L2 cache, such as the B200 of the CSV, the model says that others take longer
too.

All GPUs and the limits of the datasheets are in [the CSV](../benchmarks/results/roofline-predicted.csv).
"""


def _beside(unfused: float | None, ratio: float | None) -> list[str]:
    """The pair's time and ours over it."""
    assert unfused is not None
    assert ratio is not None
    return [f"{unfused:.1f}", f"{ratio:.2f}" if ratio <= 1 else f"**{ratio:.2f}**"]


def page(rows: Sequence[Prediction]) -> str:
    """docs/gpu_time.md."""
    columns = "".join(f"*{design.name}*: {design.what}. " for design in DESIGNS)
    parts = [PAGE_TEXT.format(columns=columns)]
    heads = ["tokens", "hidden size", *(design.name for design in DESIGNS), "pair", f"{DESIGNS[-1].name} / pair"]
    heads += [f"{DESIGNS[-1].name}, PDL", "pair, PDL", "ratio, PDL"]
    for gpu, rank in product(("H100", "H200"), RANKS):
        found = {
            (r.num_tokens, r.hidden_size, r.design): r
            for r in rows
            if (r.gpu, r.rank, r.dtype) == (gpu, rank, "bfloat16") and r.num_tokens <= DECODE_TOKENS
        }
        lines = []
        for tokens, width in product(TOKENS, WIDTHS):
            designs = [found[tokens, width, design.name] for design in DESIGNS]
            last = designs[-1]
            times = [f"{row.us_predicted:.1f}" for row in designs]
            overlapping = [f"{last.us_predicted_pdl:.1f}", *_beside(last.us_unfused_pdl, last.ratio_pdl)]
            lines.append([str(tokens), str(width), *times, *_beside(last.us_unfused, last.ratio), *overlapping])
        title = f"## {gpu}, {'dense' if rank is None else f'rank {rank}'}\n"
        parts.append(f"{title}\n{markdown(heads, lines)}")
    return "\n".join(parts)


def main(output: Path, plots: Path = PLOTS, text: Path = PAGE) -> None:
    """Print the table; write roofline-predicted.csv into ``output``, its picture into ``plots``, and the page."""
    rows = predictions()
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
    with replacing(text) as temporary:
        temporary.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the CSV")
    main(parser.parse_args().output)
