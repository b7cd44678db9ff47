"""What do edits cost an engine? ``python -m benchmarks.serving.overhead``: with the plugin against plain vLLM, paired.

Two engines live at the same time, one without maps, and take turns: the same prompts, the same number of tokens. Of
each pair of turns the ratio is kept, and its median over all pairs reported; two engines without maps tell how far
ratios are from 1 by chance.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.serving.results import add_lines
from benchmarks.serving.workload import LANGUAGES, Ask, ask_engine, asks, engine, fetched, parameters, synthetic_maps
from incline_fast.bench.machine import commit, cpu_name

__all__ = ["Overhead", "measure"]

KINDS = ("plain", "last", "generated")


@dataclass(frozen=True)
class Overhead:
    """One measure, with the plugin and without.

    Attributes:
        requests: "plain": none is edited; "last": all at the last prompt token; "generated": all, at every token.
        measure: "batch": seconds for all requests in one batch; "first token": seconds to the first token of one.
        ratio: median over the pairs of (seconds with the plugin) / (seconds without).
        ratio_p20, ratio_p80: of the same ratios.
        seconds_plain: median without the plugin.
        plain_bits_equal: whether plain requests' tokens and log-probabilities are the same with and without the plugin.
        cpu, commit: where it was measured.
    """

    model: str
    requests: str
    measure: str
    pairs: int
    ratio: float
    ratio_p20: float
    ratio_p80: float
    seconds_plain: float
    plain_bits_equal: bool
    cpu: str
    commit: str


def _batch(llm: Any, requests: Sequence[Ask], tokens: int) -> float:
    given = [parameters(ask, tokens) for ask in requests]
    start = time.perf_counter()
    llm.generate([ask.prompt for ask in requests], given, use_tqdm=False)
    return time.perf_counter() - start


def _first_token(llm: Any, requests: Sequence[Ask]) -> float:
    return statistics.median(_batch(llm, [ask], 1) for ask in requests[:6])


def measure(name: str, pairs: int, count: int, tokens: int, other: bool) -> list[Overhead]:
    """All kinds of requests; ``other``: the second engine has no maps either."""
    folder, catalogs = fetched(name)
    found = asks(catalogs, count)
    rows, where = [], (cpu_name(), commit())
    with tempfile.TemporaryDirectory() as temporary:
        maps = None if other else synthetic_maps(folder, Path(temporary))
        options = {"enable_prefix_caching": False}
        with engine(folder, None, **options) as plain, engine(folder, maps, **options) as edited:
            without = [replace(ask, map=None) for ask in found]
            same = ask_engine(plain, without, tokens) == ask_engine(edited, without, tokens)
            for kind in ("plain",) if other else KINDS:
                asked = [_as(kind, ask, i) for i, ask in enumerate(found)]
                measures: dict[str, Callable[[Any, Sequence[Ask]], float]] = {
                    "batch": lambda llm, requests: _batch(llm, requests, tokens),
                    "first token": _first_token,
                }
                for title, run in measures.items():
                    run(plain, without), run(edited, asked)
                    times = _paired(partial(run, plain, without), partial(run, edited, asked), pairs)
                    ratios = sorted(b / a for a, b in times)
                    p20, p80 = ratios[len(ratios) // 5], ratios[-1 - len(ratios) // 5]
                    seconds = statistics.median(a for a, _ in times)
                    label = "none (two plain engines)" if other else kind
                    rows.append(
                        Overhead(name, label, title, pairs, statistics.median(ratios), p20, p80, seconds, same, *where)
                    )
                    print(rows[-1], flush=True)
    return rows


def _paired(plain: Callable[[], float], edited: Callable[[], float], pairs: int) -> list[tuple[float, float]]:
    """Seconds of both, which begin in turn: whatever a first run does to the next falls on each as often."""
    times = []
    for pair in range(pairs):
        if pair % 2:
            second = edited()
            times.append((plain(), second))
        else:
            times.append((plain(), edited()))
    return times


def _as(kind: str, ask: Ask, number: int) -> Ask:
    if kind == "plain":
        return replace(ask, map=None)
    return replace(ask, map=f"{LANGUAGES[number % len(LANGUAGES)]}-en", positions=kind)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a model of the demo, or a folder")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--no-maps", action="store_true", help="compare two engines without maps")
    parser.add_argument("-o", "--output", type=Path, help="CSV file that the results are added to")
    given = parser.parse_args()
    rows = measure(given.model, given.pairs, given.requests, given.tokens, given.no_maps)
    if given.output is not None:
        add_lines([asdict(row) for row in rows], ("model", "requests", "measure"), given.output)


if __name__ == "__main__":
    main()
