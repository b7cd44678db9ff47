"""What editing every token costs a compiled decode step with a static cache, against the bytes of the maps.

python -m benchmarks.compiled_decode --threads 1 -o benchmarks/results/compiled-decode-1t.csv

The Llama and the maps of ``benchmarks/every_token.py``. A step is one call of the model under ``torch.compile`` with
one token and a static cache; rounds of steps alternate between the plain model and the one inside
``intervene(positions="all")``, which stays entered meanwhile. "ratio" is the extra time of a step over the time in
which the maps' bytes could be read. "graphs" counts what was compiled, "later" what was compiled after each way's
first two turns. Rank 1 has next to no bytes: what it costs is what a site costs beside its map. In further turns both
ways run without torch.compile's guards (``torch.compiler.set_stance(skip_guard_eval_unsafe=True)``), which says how
much of the extra time is the checking of the edit's properties.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from tqdm import tqdm
from transformers import StaticCache

from benchmarks.every_token import ALPHA, RANKS, alignment_of, bandwidth, costs, random_llama
from incline_fast import intervene
from incline_fast.bench.loops import interleaved
from incline_fast.bench.machine import about, threads
from incline_fast.files import write_table

STEPS, CACHED = 8, 64


def stepper(compiled: Any) -> Callable[[], None]:
    """So many steps of a compiled model, from an empty cache on."""
    cache = StaticCache(config=compiled.config, max_cache_len=CACHED)
    token = torch.ones(1, 1, dtype=torch.long)

    def run() -> None:
        cache.reset()
        for _ in range(STEPS):
            compiled(input_ids=token, past_key_values=cache, use_cache=True)

    return run


def unguarded(run: Callable[[], None]) -> Callable[[], None]:
    """The same without the guards of what was compiled; for measuring only, since a changed edit would not be seen."""

    def bare() -> None:
        with torch.compiler.set_stance("default", skip_guard_eval_unsafe=True):
            run()

    return bare


def graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    return int(counters["stats"]["unique_graphs"])


def measure(rank: int | None, rounds: int, speed: float) -> dict[str, Any]:
    """Two models of equal weights take turns, so that one of them can stay edited; ``speed`` of reading, bytes/s."""
    torch.compiler.reset()  # graphs of the maps before would count towards the limit of compilations
    alignment = alignment_of(rank)
    plain, edited = (torch.compile(random_llama(), fullgraph=True) for _ in range(2))
    before = graphs()
    with torch.inference_mode(), intervene(edited, alignment, alpha=ALPHA, positions="all"):
        runs = {"plain": stepper(plain), "edited": stepper(edited)}
        runs |= {f"{name}, no guards": unguarded(run) for name, run in runs.items()}
        for run in [*runs.values()] * 2:
            run()
        compiled = graphs()
        times = interleaved({name: lambda _, run=run: run for name, run in runs.items()}, rounds=rounds)
    seconds = {name: [us / 1e6 for us in found] for name, found in times.items()}
    bare = [
        (edited - plain) / STEPS
        for plain, edited in zip(seconds["plain, no guards"], seconds["edited, no guards"], strict=True)
    ]
    return {
        **costs(rank, alignment, list(zip(seconds["plain"], seconds["edited"], strict=True)), STEPS, speed),
        "extra_ms_no_guards": round(1e3 * statistics.median(bare), 2),
        "graphs": compiled - before,
        "later": graphs() - compiled,
        "rounds": rounds,
        **about(),
    }


def main() -> None:
    """Measure every rank, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch's pool")
    parser.add_argument("--rounds", type=int, default=25, help="paired rounds per kind of map")
    parser.add_argument("-o", "--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    rows = []
    with threads(arguments.threads):
        speed = max(bandwidth() for _ in range(10))  # another user of the memory can halve a single one
        for rank in tqdm((*RANKS, 1), unit="kind of map"):
            rows.append(measure(rank, arguments.rounds, speed))
            print(rows[-1])
    if arguments.output is not None:
        write_table(rows, list(rows[0]), arguments.output)


if __name__ == "__main__":
    main()
