"""Latency of generation: plain, with the intervention in the norms, and with the usual two passes and hooks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from incline_fast import Alignment, intervene
from incline_fast.models.architectures import describe

__all__ = ["measure_latency"]

NEW_TOKENS = 32
ROUNDS = 9


@contextmanager
def two_pass_hooks(model: Any, alignment: Alignment, alpha: float, inputs: dict[str, Tensor]) -> Iterator[None]:
    """The straightforward implementation: one whole run to see the states, one with hooks that write the edited ones.

    The first pass records the last token's state at every site; during the second, a hook at every site overwrites it.
    """
    sites = [describe(model).sites[layer] for layer in alignment.layers]
    seen: dict[int, Tensor] = {}
    recorders = [site.observe(lambda h, i=site.index: seen.__setitem__(i, h[:, -1].clone())) for site in sites]
    model(**inputs, use_cache=False)
    for recorder in recorders:
        recorder.remove()
    beta = 1 - alpha if alignment.form == "interpolate" else 1.0
    edited = {
        layer: beta * h + alpha * (alignment.maps[layer].apply(h) + alignment.bias[layer]) for layer, h in seen.items()
    }

    def write(states: Tensor, layer: int) -> None:
        if layer in edited:
            states[:, -1] = edited.pop(layer)

    writers = [site.observe(lambda h, i=site.index: write(h, i)) for site in sites]
    try:
        yield
    finally:
        for writer in writers:
            writer.remove()


def measure_latency(model: Any, tokenizer: Any, alignment: Alignment, alpha: float, prompt: str) -> dict[str, Any]:
    """Seconds to generate :data:`NEW_TOKENS` tokens, in paired rounds: every way once per round, in changing order.

    Returns:
        Way -> median, 20th and 80th percentile of its seconds, and the median of its ratios to plain in the same round.
    """
    inputs = dict(tokenizer(prompt, return_tensors="pt"))

    def generate() -> None:
        model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)

    def fused() -> None:
        with intervene(model, alignment, alpha=alpha):
            generate()

    def hooked() -> None:
        with two_pass_hooks(model, alignment, alpha, inputs):
            generate()

    ways: dict[str, Callable[[], None]] = {"plain": generate, "fused": fused, "two-pass hooks": hooked}
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for way in ways.values():
            way()
        for turn in tqdm(range(ROUNDS), desc="latency", unit="round"):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                start = time.perf_counter()
                ways[name]()
                seconds[name].append(time.perf_counter() - start)
    return {
        "new_tokens": NEW_TOKENS,
        "prompt_tokens": int(inputs["input_ids"].shape[1]),
        "rounds": ROUNDS,
        "threads": torch.get_num_threads(),
        "alpha": alpha,
        "ways": {name: _summary(taken, seconds["plain"]) for name, taken in seconds.items()},
    }


def _summary(taken: list[float], plain: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(taken, n=10, method="inclusive")
    ratios = [a / b for a, b in zip(taken, plain, strict=True)]
    return {"p50": statistics.median(taken), "p20": deciles[1], "p80": deciles[7], "ratio": statistics.median(ratios)}
