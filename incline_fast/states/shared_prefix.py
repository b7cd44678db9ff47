"""Tokens that all prompts begin with run once: every prompt reuses their keys and values.

Few-shot examples before the sentence are such tokens. They are found by comparing token ids, so callers need not name
them, and the boundary never falls inside a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from incline_fast.models.architectures import Architecture, text_config
from incline_fast.models.inputs import input_device

__all__ = [
    "SHORTEST",
    "KeysValues",
    "SharedPrefix",
    "common_prefix",
    "fill_skipped",
    "key_value_cache",
    "own_part",
    "run_shared_prefix",
]

KeysValues = Mapping[int, tuple[Tensor, Tensor]]
"""Block -> keys and values, ``[B, heads, tokens, head size]`` each."""

SHORTEST = 16
"""Shorter common beginnings (BOS, a few words) run with each prompt: copying keys and values would cost as much."""


def common_prefix(ids: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, the last token of each left out; 0 where it is below the limit."""
    first, last = min(map(list, ids)), max(map(list, ids))
    shared = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    shared = min(shared, min(map(len, ids)) - 1)
    return shared if shared >= SHORTEST else 0


@dataclass(frozen=True)
class SharedPrefix:
    """The tokens that all prompts begin with, and their keys and values for one row.

    Attributes:
        ids: the tokens; none for prompts that share no beginning.
        layers: block -> keys and values ``[1, heads, len(ids), head size]``.
    """

    ids: tuple[int, ...]
    layers: KeysValues

    def __len__(self) -> int:
        return len(self.ids)


def run_shared_prefix(architecture: Architecture, ids: Sequence[int]) -> SharedPrefix:
    """Run the tokens once. Where a sliding window is shorter than they are, nothing is shared."""
    if not ids:
        return SharedPrefix((), {})
    tokens = torch.tensor([list(ids)], device=input_device(architecture))
    with torch.inference_mode():
        cache = architecture.backbone(input_ids=tokens, use_cache=True).past_key_values
    layers = {block: (layer.keys, layer.values) for block, layer in enumerate(cache.layers)}
    if any(keys.shape[-2] < len(ids) for keys, _ in layers.values()):
        return SharedPrefix((), {})
    return SharedPrefix(tuple(ids), layers)


def key_value_cache(
    architecture: Architecture,
    shared: SharedPrefix,
    own: KeysValues,
    *,
    own_tokens: int,
    rows: int,
    repeats: int = 1,
    first_block: int = 0,
) -> DynamicCache:
    """A cache for ``rows * repeats`` rows: the shared prefix, then each row's own tokens, every row repeated.

    Args:
        architecture: of the model.
        shared: what all rows begin with.
        own: block -> keys and values ``[rows, heads, tokens, head size]`` after it. A sliding window may have dropped
            the oldest tokens; then they hold all that is left, the shared ones included.
        own_tokens: how many tokens they stand for; with 0, ``own`` may be empty.
        rows: number of prompts.
        repeats: how often each row is repeated.
        first_block: blocks before it hold as many tokens, but no keys and values: they will not run.
    """
    cache = DynamicCache(config=text_config(architecture.model))
    total = len(shared) + own_tokens
    for block, layer in enumerate(cache.layers):
        if block < first_block:
            _hold_nothing(layer, total)
            continue
        window = getattr(layer, "sliding_window", None)
        held = total if window is None else min(total, window - 1)
        keys, values = (_rows(shared, own, block, part, held, rows, repeats) for part in (0, 1))
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = total
    return cache


def fill_skipped(cache: Any, first_block: int, tokens: int) -> None:
    """Make the blocks before ``first_block`` count ``tokens`` tokens: they did not run in the last pass."""
    for layer in cache.layers[:first_block]:
        _hold_nothing(layer, tokens)


def _hold_nothing(layer: Any, tokens: int) -> None:
    """Prepare a block that does not run: masks only read the number of its tokens."""
    window = getattr(layer, "sliding_window", None)
    nothing = torch.zeros(1, 1, tokens if window is None else min(tokens, window - 1), 1)
    layer.lazy_initialization(nothing, nothing)
    layer.keys = layer.values = nothing
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = tokens


def _rows(shared: SharedPrefix, own: KeysValues, block: int, part: int, held: int, rows: int, repeats: int) -> Tensor:
    """``[rows * repeats, heads, held, head size]``: the last ``held`` keys (part 0) or values (part 1) of a block."""
    tail = own[block][part] if block in own else None
    missing = held - (0 if tail is None else tail.shape[-2])
    if missing == 0 and tail is not None:
        return tail.repeat_interleave(repeats, 0)
    head = shared.layers[block][part][:, :, len(shared) - missing :].expand(rows * repeats, -1, -1, -1)
    return head if tail is None else torch.cat([head, tail.repeat_interleave(repeats, 0)], 2)


def own_part(cache: Any, shared: SharedPrefix, own_tokens: int, first_block: int = 0) -> KeysValues:
    """The argument ``own`` of :func:`key_value_cache`, from a cache of the shared and ``own_tokens`` further tokens."""
    found = {}
    for block, layer in enumerate(cache.layers):
        if block >= first_block:
            whole = layer.keys.shape[-2] == len(shared) + own_tokens
            columns = slice(layer.keys.shape[-2] - own_tokens, None) if whole else slice(None)
            found[block] = layer.keys[:, :, columns], layer.values[:, :, columns]
    return found
