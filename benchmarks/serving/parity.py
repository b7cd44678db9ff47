"""Are the plugin's tokens those of transformers with ``intervene``? ``python -m benchmarks.serving.parity``.

Every configuration of the engine gets the same requests, edited and plain, in one continuous batch. Edited tokens have
to equal the reference wherever plain vLLM's equal plain transformers'; where two tokens are so close that rounding
decides, vLLM's plain tokens leave transformers' as well, and such requests are counted apart. Log-probabilities are
compared by map, and beside them stands what rounding does to the reference itself: transformers in fp32 against
transformers in fp64, with the same edits.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving.results import add_lines
from benchmarks.serving.workload import Ask, Result, ask_engine, asks, engine, fetched, reference, synthetic_maps
from incline_fast.bench.machine import commit, cpu_name

__all__ = ["CONFIGURATIONS", "Parity", "compare", "moved", "run"]

TINY = 24
"""Blocks of a cache that 32 requests overfill. Gemma 3 needs 128 to start: its six kinds of layers have their own."""
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "eager": {"enforce_eager": True},
    "compiled": {},
    "chunks of 16": {"long_prefill_token_threshold": 16, "enable_prefix_caching": False},
    "tiny cache": {"num_gpu_blocks_override": TINY, "enable_prefix_caching": False},
    "two ranks": {"tensor_parallel_size": 2, "enforce_eager": True},
    "speculative": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3},
        "enforce_eager": True,
    },
}
"""Options of ``vllm.LLM``. "compiled" is asked twice: the second time its prefix cache is warm."""

TOKENS = 24
SEEN = 1e-3
"""The tolerance of parity: an edit that moves a log-probability by less could be left out unseen."""


@dataclass(frozen=True)
class Parity:
    """One configuration against the reference.

    Attributes:
        requests, edited: how many.
        comparable: requests whose plain tokens are those of plain transformers.
        equal: of these, requests whose tokens are the reference's.
        changed: requests whose tokens, or whose first log-probability by 0.001, differ from plain ones: edits matter.
        max_dlogp: largest difference of a log-probability before the first unequal token, by map; "plain": without.
        preemptions: requests that lost their cache and were computed again.
        cached_tokens: prompt tokens that came from the prefix cache.
        accepted_drafts: speculated tokens that the model confirmed.
        rounding: the same between the reference in fp32 and in fp64.
        cpu, commit: where this was run.
    """

    model: str
    configuration: str
    requests: int
    edited: int
    comparable: int
    equal: int
    changed: int
    max_dlogp: dict[str, float]
    preemptions: int
    cached_tokens: int
    accepted_drafts: int
    rounding: dict[str, float]
    cpu: str
    commit: str


def compare(
    got: Sequence[Result], expected: Sequence[Result], plain: Sequence[Result], plain_expected: Sequence[Result]
) -> tuple[int, int, int]:
    """``(comparable, equal, changed)`` of :class:`Parity`."""
    comparable = equal = changed = 0
    for ours, theirs, without, without_expected in zip(got, expected, plain, plain_expected, strict=True):
        changed += ours.tokens != without.tokens or abs(ours.logprobs[0] - without.logprobs[0]) > SEEN
        if without.tokens == without_expected.tokens:
            comparable += 1
            equal += ours.tokens == theirs.tokens
    return comparable, equal, changed


def moved(requests: Sequence[Ask], got: Sequence[Result], expected: Sequence[Result]) -> dict[str, float]:
    """The largest difference of a log-probability by map."""
    worst: dict[str, float] = {}
    for ask, ours, theirs in zip(requests, got, expected, strict=True):
        name = ask.map or "plain"
        worst[name] = max(worst.get(name, 0.0), _moved(ours, theirs))
    return dict(sorted(worst.items()))


def _moved(ours: Result, theirs: Result) -> float:
    """The largest difference of a log-probability before the first unequal token."""
    worst = 0.0
    for a, b, token, other in zip(ours.logprobs, theirs.logprobs, ours.tokens, theirs.tokens, strict=True):
        if token != other:
            break
        worst = max(worst, abs(a - b))
    return worst


def _counters(llm: Any) -> list[int]:
    metrics = llm.get_metrics()
    names = ("vllm:num_preemptions", "vllm:prefix_cache_hits", "vllm:spec_decode_num_accepted_tokens")
    return [sum(int(metric.value) for metric in metrics if metric.name == name) for name in names]


def run(
    model: str, folder: Path, requests: Sequence[Ask], tokens: int, chosen: Sequence[str], blocks: int = TINY
) -> Iterator[Parity]:
    """One result per configuration, and one more for the warm prefix cache.

    Args:
        model: its name in the results.
        folder: the model's.
        requests: edited ones name maps of :func:`benchmarks.serving.workload.synthetic_maps`.
        tokens: to generate per request.
        chosen: names of :data:`CONFIGURATIONS`.
        blocks: of the tiny cache.
    """
    plain = [replace(ask, map=None) for ask in requests]
    with tempfile.TemporaryDirectory() as temporary:
        maps = synthetic_maps(folder, Path(temporary))
        expected = reference(folder, maps, requests, tokens)
        plain_expected = reference(folder, None, plain, tokens)
        rounding = moved(requests, expected, reference(folder, maps, requests, tokens, torch.float64))
        for name in chosen:
            options = CONFIGURATIONS[name] | ({"num_gpu_blocks_override": blocks} if name == "tiny cache" else {})
            with engine(folder, maps, **options) as llm:
                rounds = [(ask_engine(llm, requests, tokens), _counters(llm))]
                without, between = ask_engine(llm, plain, tokens), _counters(llm)
                if name == "compiled":
                    rounds.append((ask_engine(llm, requests, tokens), _since(between, _counters(llm))))
            labels = ["prefix cache cold", "prefix cache warm"] if len(rounds) > 1 else [""]
            for label, (got, counted) in zip(labels, rounds, strict=True):
                edited = sum(ask.map is not None for ask in requests)
                found = compare(got, expected, without, plain_expected)
                title, where = f"{name}, {label}".strip(", "), (cpu_name(), commit())
                worst = moved(requests, got, expected)
                yield Parity(model, title, len(requests), edited, *found, worst, *counted, rounding, *where)


def _since(before: Sequence[int], after: Sequence[int]) -> list[int]:
    return [new - old for old, new in zip(before, after, strict=True)]


def flat(row: Parity) -> dict[str, Any]:
    """One column for each number."""
    line: dict[str, Any] = {}
    for name, value in asdict(row).items():
        line |= {f"{name} {map}": number for map, number in value.items()} if isinstance(value, dict) else {name: value}
    return line


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a model of the demo, or a folder")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--configurations", nargs="*", default=list(CONFIGURATIONS)[:4], choices=list(CONFIGURATIONS))
    parser.add_argument("--blocks", type=int, default=TINY, help="of the tiny cache; gemma3 needs 128")
    parser.add_argument("-o", "--output", type=Path, help="CSV file that the results are added to")
    given = parser.parse_args()
    folder, catalogs = fetched(given.model)
    requests = asks(catalogs, given.prompts)
    for row in run(given.model, folder, requests, given.tokens, given.configurations, given.blocks):
        print(row, flush=True)
        if given.output is not None:
            add_lines([flat(row)], ("model", "configuration"), given.output)


if __name__ == "__main__":
    main()
