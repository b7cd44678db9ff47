"""What editing every token costs a decoder: extra time per decoded token against the bytes of the maps.

python -m benchmarks.every_token --threads 1 -o benchmarks/results/every-token-1t.csv

A random Llama of 12 layers with d = 2048 in bf16 decodes one sequence, plainly and under ``intervene(positions="all")``
with bf16 maps at all 12 sites. The least time that the maps can add is their bytes over the read bandwidth, which is
measured in the same run; "ratio" is the extra time over that.

Rounds of their own have a clock around each part of a site: the compiled op ("op_us"), the rest of the edited norm's
Python ("python_us"), and in plain decoding the norm that it replaces ("norm_us"); medians over sites and steps.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from incline_fast import Alignment, intervene
from incline_fast.bench.machine import about, threads
from incline_fast.files import write_table
from incline_fast.maps import AffineMap
from incline_fast.ops.affine_norm import RMS_NORM

LAYERS, HIDDEN, PROMPT, NEW_TOKENS, ALPHA = 12, 2048, 4, 4, 0.1
RANKS = (None, 64, 500)


def random_llama() -> LlamaForCausalLM:
    """12 layers, bf16, a small vocabulary so that the blocks are most of a step."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=5632,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=4096,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def alignment_of(rank: int | None) -> Alignment:
    """bf16 maps at the outputs of all blocks, so small that what is generated stays ordinary."""

    def one() -> AffineMap:
        if rank is None:
            return AffineMap.dense(1e-3 * torch.randn(HIDDEN, HIDDEN))
        return AffineMap.low_rank(1e-2 * torch.randn(rank, HIDDEN), 1e-2 * torch.randn(HIDDEN, rank))

    return Alignment.from_maps({layer: one() for layer in range(1, LAYERS + 1)}).to(dtype=torch.bfloat16)


def bandwidth() -> float:
    """Bytes a second of the faster of a sum and a matrix-vector product over 256 MiB."""
    matrix, vector = torch.ones(2**13, 2**13), torch.ones(2**13)
    best = 0.0
    for read in (matrix.sum, lambda: matrix @ vector):
        for _ in range(10):
            start = time.perf_counter()
            read()
            best = max(best, matrix.nbytes / (time.perf_counter() - start))
    return best


def generate(model: LlamaForCausalLM) -> None:
    """Decode one sequence."""
    prompt = torch.arange(1, PROMPT + 1)[None]
    model.generate(prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)


class Clock:
    """A callable that notes how long each call of another one takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.microseconds: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the other one."""
        begin = time.perf_counter_ns()
        result = self.function(*args, **kwargs)
        self.microseconds.append((time.perf_counter_ns() - begin) / 1e3)
        return result


def site_parts(model: LlamaForCausalLM, alignment: Alignment, rounds: int) -> dict[str, float]:
    """Microseconds of the parts of one site: see the module's docstring."""
    op = RMS_NORM.compiled_in_place
    ops, edited, plain = Clock(op), [], []
    RMS_NORM.compiled_in_place = ops
    try:
        with torch.inference_mode():
            with intervene(model, alignment, alpha=ALPHA, positions="all"):
                norms = {name: norm for name, norm in model.named_modules() if "_incline_fast_taps" in vars(norm)}
                edits = [norm._incline_fast_taps.before for norm in norms.values()]
                edited = [Clock(edit.edit_and_normalise) for edit in edits]
                for edit, clock in zip(edits, edited, strict=True):
                    edit.edit_and_normalise = clock
                for _ in range(rounds):
                    generate(model)
            originals = [model.get_submodule(name) for name in norms]
            plain = [clocked(norm) for norm in originals]
            for _ in range(rounds):
                generate(model)
    finally:
        RMS_NORM.compiled_in_place = op
    for norm in originals:
        del norm.__dict__["forward"]
    whole = statistics.median(us for clock in edited for us in clock.microseconds)
    inner = statistics.median(ops.microseconds)
    replaced = statistics.median(us for clock in plain for us in clock.microseconds)
    return {"op_us": round(inner, 1), "python_us": round(whole - inner, 1), "norm_us": round(replaced, 1)}


def clocked(norm: torch.nn.Module) -> Clock:
    """Put a clock before a norm's forward."""
    clock = norm.__dict__["forward"] = Clock(norm.forward)
    return clock


def measure(rank: int | None, model: LlamaForCausalLM, rounds: int) -> dict[str, Any]:
    """Paired rounds of plain and edited decoding; medians of time per step and of their difference.

    Rounds are short and many, because a step's time drifts by more than an edit takes.
    """
    alignment = alignment_of(rank)

    def seconds(edited: bool) -> float:
        context = intervene(model, alignment, alpha=ALPHA, positions="all") if edited else nullcontext()
        with torch.inference_mode(), context:
            start = time.perf_counter()
            generate(model)
            return time.perf_counter() - start

    ways: list[Callable[[], float]] = [lambda: seconds(False), lambda: seconds(True)]
    for way in ways:
        way()
    pairs = []
    for turn in tqdm(range(rounds), desc=f"rank {rank or 'dense'}", unit="round"):
        taken = [0.0, 0.0]
        for index in (0, 1) if turn % 2 else (1, 0):
            taken[index] = ways[index]()
        pairs.append(taken)
    return {
        # The prompt is one step as well: its few tokens read the maps once.
        **costs(rank, alignment, pairs, NEW_TOKENS, bandwidth()),
        **site_parts(model, alignment, math.ceil(rounds / 3)),
        "rounds": rounds,
        **about(),
    }


def costs(
    rank: int | None, alignment: Alignment, pairs: Sequence[Sequence[float]], steps: int, speed: float
) -> dict[str, Any]:
    """Plain and edited seconds of so many steps, pair by pair, against the maps' bytes at ``speed`` bytes a second."""
    size = sum(part.nbytes for map in alignment.maps.values() for part in (map.up, map.down) if part is not None)
    extra = statistics.median(edited - plain for plain, edited in pairs) / steps
    return {
        "rank": rank or "dense",
        "map_mb": round(size / 1e6, 1),
        "plain_ms_per_token": round(1e3 * statistics.median(plain for plain, _ in pairs) / steps, 2),
        "extra_ms_per_token": round(1e3 * extra, 3),
        "bytes_ms_per_token": round(1e3 * size / speed, 3),
        "ratio": round(extra * speed / size, 2),
        "gb_s": round(speed / 1e9, 1),
    }


def main() -> None:
    """Measure every rank, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch's pool")
    parser.add_argument("--rounds", type=int, default=25, help="paired rounds per kind of map")
    parser.add_argument("-o", "--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    with threads(arguments.threads):
        model = random_llama()
        rows = [measure(rank, model, arguments.rounds) for rank in RANKS]
    for row in rows:
        print(row)
    if arguments.output is not None:
        write_table(rows, list(rows[0]), arguments.output)


if __name__ == "__main__":
    main()
