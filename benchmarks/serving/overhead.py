"""What do edits cost an engine? ``python -m benchmarks.serving.overhead``: with the plugin against plain vLLM, paired.

Two engines live at the same time, the first one plain, and take turns: the same prompts, the same number of tokens. Of
each pair of turns the ratio is kept, and its median over all pairs reported. The second engine is the plugin's unless
``--second`` names another one: "none", again a plain engine, tells how far ratios are from 1 by chance; "eager", what
an engine loses that gives its graphs up; "vllm-lens", that library with a vector at every block
(https://github.com/UKGovernmentBEIS/vllm-lens, on PYTHONPATH together with zstandard and jaxtyping).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving.results import add_lines
from benchmarks.serving.workload import LANGUAGES, Ask, ask_engine, asks, engine, fetched, parameters, synthetic_maps
from incline_fast.bench.machine import commit, cpu_name

__all__ = ["Overhead", "measure"]

KINDS = {
    "maps": ("plain", "last", "generated"),
    "none": ("plain",),
    "eager": ("plain",),
    "vllm-lens": ("plain", "last", "all"),
}
"""Second engine -> what its requests are."""
TITLES = {"maps": "", "none": "two plain engines: ", "eager": "eager engine: ", "vllm-lens": "vllm-lens, a vector: "}


@dataclass(frozen=True)
class Overhead:
    """One measure, in a second engine and in a plain one.

    Attributes:
        requests: "plain": none is edited; "last": all at the last prompt token; "generated": all, from it on; "all":
            all, at every token. Before that, the second engine if it is not the plugin's.
        measure: "batch": seconds for all requests in one batch; "first token": seconds to the first token of one.
        ratio: median over the pairs of (seconds of the second engine) / (seconds of the plain one).
        ratio_p20, ratio_p80: of the same ratios.
        seconds_plain: median of the plain engine.
        plain_bits_equal: whether plain requests' tokens and log-probabilities are the same in both engines.
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


def _batch(llm: Any, requests: Sequence[Ask], given: Sequence[Any]) -> float:
    start = time.perf_counter()
    llm.generate([ask.prompt for ask in requests], list(given), use_tqdm=False)
    return time.perf_counter() - start


@contextmanager
def second_engine(second: str, folder: Path, **options: Any) -> Iterator[Any]:
    """The engine that is compared with a plain one; a key of :data:`KINDS`."""
    with tempfile.TemporaryDirectory() as temporary:
        maps = synthetic_maps(folder, Path(temporary)) if second == "maps" else None
        if second == "vllm-lens":
            from vllm_lens._activations_plugin import register

            register()
        with engine(folder, maps, **options, enforce_eager=second in ("eager", "vllm-lens")) as llm:
            yield llm


def asked(second: str, kind: str, requests: Sequence[Ask], llm: Any, tokens: int) -> list[Any]:
    """Sampling parameters of requests of a kind; vllm-lens changes those it is given, so every turn has new ones."""
    if kind == "plain":
        return [parameters(ask, tokens) for ask in requests]
    if second == "maps":
        return [parameters(_with_map(kind, ask, i), tokens) for i, ask in enumerate(requests)]
    return [_with_vector(kind, ask, llm, tokens) for ask in requests]


def _with_vector(kind: str, ask: Ask, llm: Any, tokens: int) -> Any:
    from vllm_lens import SteeringVector

    config = llm.model_config
    blocks, d = config.hf_text_config.num_hidden_layers, config.get_hidden_size()
    last = len(llm.get_tokenizer()(ask.prompt).input_ids) - 1
    shape, positions = ((blocks, d), None) if kind == "all" else ((blocks, 1, d), [last])
    vector = SteeringVector(
        activations=torch.full(shape, 1e-2), layer_indices=list(range(blocks)), position_indices=positions
    )
    given = parameters(ask, tokens)
    given.extra_args = {"apply_steering_vectors": [vector]}
    return given


def _turn(llm: Any, second: str, kind: str, groups: Sequence[Sequence[Ask]], tokens: int) -> float:
    """Median of the seconds that each group takes, all its requests in one batch."""
    given = [asked(second, kind, group, llm, tokens) for group in groups]
    return statistics.median(_batch(llm, group, sampling) for group, sampling in zip(groups, given, strict=True))


def _paired(plain: Callable[[], float], other: Callable[[], float], pairs: int) -> tuple[float, float, float, float]:
    """Median, 20% and 80% quantile of the ratio, median seconds of the plain engine; each begins as often."""
    plain(), other()
    times = []
    for pair in range(pairs):
        if pair % 2:
            second = other()
            times.append((plain(), second))
        else:
            times.append((plain(), other()))
    ratios = sorted(b / a for a, b in times)
    outer = len(ratios) // 5
    return statistics.median(ratios), ratios[outer], ratios[-1 - outer], statistics.median(a for a, _ in times)


def measure(name: str, second: str, pairs: int, count: int, tokens: int) -> Iterator[Overhead]:
    """All kinds of requests: a batch of ``count``, and the first token of six of them one by one."""
    folder, catalogs = fetched(name)
    found = [replace(ask, map=None) for ask in asks(catalogs, count)]
    measures = {"batch": ([found], tokens), "first token": ([[ask] for ask in found[:6]], 1)}
    options = {"enable_prefix_caching": False}
    with engine(folder, None, **options) as plain, second_engine(second, folder, **options) as other:
        same = ask_engine(plain, found, tokens) == ask_engine(other, found, tokens)
        for kind in KINDS[second]:
            for title, (groups, length) in measures.items():
                found_times = _paired(
                    partial(_turn, plain, "none", "plain", groups, length),
                    partial(_turn, other, second, kind, groups, length),
                    pairs,
                )
                yield Overhead(name, TITLES[second] + kind, title, pairs, *found_times, same, cpu_name(), commit())


def _with_map(kind: str, ask: Ask, number: int) -> Ask:
    return replace(ask, map=f"{LANGUAGES[number % len(LANGUAGES)]}-en", positions=kind)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a model of the demo, or a folder")
    parser.add_argument("--second", default="maps", choices=list(KINDS), help="what is compared with a plain engine")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path, help="CSV file that the results are added to")
    given = parser.parse_args()
    for row in measure(given.model, given.second, given.pairs, given.requests, given.tokens):
        print(row, flush=True)
        if given.output is not None:
            add_lines([asdict(row)], ("model", "requests", "measure"), given.output)


if __name__ == "__main__":
    main()
