"""What editing every token costs a compiled decode step with a static cache, against the bytes of the maps.

python -m benchmarks.compiled_decode --threads 1 -o benchmarks/results/compiled-decode-1t.csv

The Llama and the maps of ``benchmarks/every_token.py``. A step is one call of the model under ``torch.compile`` with
one token and a static cache; rounds of steps alternate between the plain model and the one inside
``intervene(positions="all")``, which stays entered meanwhile. "ratio" is the extra time of a step over the time in
which the maps' bytes could be read. "graphs" counts what was compiled, "later" what was compiled after each way's
first two turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from tqdm import tqdm
from transformers import StaticCache

from benchmarks.every_token import ALPHA, RANKS, alignment_of, bandwidth, random_llama
from incline_fast import intervene
from incline_fast.bench.machine import commit, cpu_name, threads
from incline_fast.files import write_table

STEPS, CACHED = 8, 64


def stepper(compiled: Any) -> Callable[[], float]:
    """Seconds of so many steps of a compiled model, from an empty cache on."""
    cache = StaticCache(config=compiled.config, max_cache_len=CACHED)
    token = torch.ones(1, 1, dtype=torch.long)

    def run() -> float:
        cache.reset()
        begin = time.perf_counter()
        for _ in range(STEPS):
            compiled(input_ids=token, past_key_values=cache, use_cache=True)
        return time.perf_counter() - begin

    return run


def graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    return int(counters["stats"]["unique_graphs"])


def measure(rank: int | None, rounds: int) -> dict[str, Any]:
    """Two models of equal weights take turns, so that one of them can stay edited."""
    alignment = alignment_of(rank)
    plain, edited = (torch.compile(random_llama(), fullgraph=True) for _ in range(2))
    before = graphs()
    with torch.inference_mode(), intervene(edited, alignment, alpha=ALPHA, positions="all"):
        ways = [stepper(plain), stepper(edited)]
        for way in ways + ways:
            way()
        compiled = graphs()
        pairs = []
        for turn in tqdm(range(rounds), desc=f"rank {rank or 'dense'}", unit="round"):
            taken = [0.0, 0.0]
            for index in (0, 1) if turn % 2 else (1, 0):
                taken[index] = ways[index]()
            pairs.append(taken)
    size = sum(part.nbytes for map in alignment.maps.values() for part in (map.up, map.down) if part is not None)
    speed = bandwidth()
    extra = statistics.median(second - first for first, second in pairs) / STEPS
    return {
        "rank": rank or "dense",
        "map_mb": round(size / 1e6, 1),
        "plain_ms_per_step": round(1e3 * statistics.median(first for first, _ in pairs) / STEPS, 2),
        "extra_ms_per_step": round(1e3 * extra, 3),
        "bytes_ms_per_step": round(1e3 * size / speed, 3),
        "ratio": round(extra * speed / size, 2),
        "graphs": compiled - before,
        "later": graphs() - compiled,
        "gb_s": round(speed / 1e9, 1),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "device": cpu_name(),
        "torch": torch.__version__,
        "commit": commit(),
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
        for rank in RANKS:
            rows.append(measure(rank, arguments.rounds))
            print(rows[-1])
    if arguments.output is not None:
        write_table(rows, list(rows[0]), arguments.output)


if __name__ == "__main__":
    main()
