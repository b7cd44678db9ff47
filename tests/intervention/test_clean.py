"""Putting a cache back: exactly, for every layer kind, without moving the tensors of static caches."""

from __future__ import annotations

import pytest
import torch
from hook_reference import cache_tensors
from tiny_models import prompts, tiny
from transformers import DynamicCache, StaticCache

from incline_fast.intervention.clean import CacheSnapshot, check_restorable

KINDS = ["dynamic", "dynamic with config", "static"]


def cache_of(kind, model):
    if kind == "static":
        return StaticCache(config=model.config, max_cache_len=16)
    return DynamicCache(config=model.config) if kind == "dynamic with config" else DynamicCache()


@pytest.mark.parametrize("filled", [0, 2, 9])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_a_restored_cache_continues_as_if_nothing_had_run(name, kind, filled):
    """Windows of 4 tokens: not full, filling, and full. The trial run writes other tokens than the real one."""
    model = tiny(name)
    ids, other = prompts((12,))["input_ids"], prompts((12,), seed=9)["input_ids"]
    expected_cache, cache = cache_of(kind, model), cache_of(kind, model)
    for each in (expected_cache, cache):
        if filled:
            model(ids[:, :filled], past_key_values=each)
    before = [tensor.data_ptr() for tensor in cache_tensors(cache) if kind == "static" and filled]
    snapshot = CacheSnapshot(cache)
    for trial in (other[:, :1], other[:, :3]):
        model(trial, past_key_values=cache)
        snapshot.restore()
        assert int(cache.get_seq_length()) == filled
    assert [tensor.data_ptr() for tensor in cache_tensors(cache) if kind == "static" and filled] == before
    for step in (slice(filled, filled + 2), slice(filled + 2, filled + 3)):
        expected = model(ids[:, step], past_key_values=expected_cache).logits
        assert torch.equal(model(ids[:, step], past_key_values=cache).logits, expected)
    for a, b in zip(cache_tensors(cache), cache_tensors(expected_cache), strict=True):
        assert torch.equal(a, b)


def test_offloaded_caches_are_refused():
    cache = DynamicCache()
    cache.offloading = True
    with pytest.raises(ValueError, match="not offloaded"):
        check_restorable(cache)


def test_unknown_layers_are_refused():
    class Odd:
        pass

    cache = DynamicCache()
    cache.layers.append(Odd())
    with pytest.raises(ValueError, match=r"DynamicCache \(Odd\)"):
        check_restorable(cache)
