"""The edited norms against output hooks: logits, keys and values, tokens; for every architecture."""

from __future__ import annotations

import pytest
import torch
from hook_reference import HookedEdit, cache_tensors, greedy, last_tokens
from tiny_models import CONFIGS, HIDDEN, LAYERS, prompts, tiny

from incline_fast.alignment import Alignment
from incline_fast.intervene import intervene

SITES = range(LAYERS + 1)
STEPS = 5
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def random_maps(seed: int = 0) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5 for site in SITES}


def random_bias(seed: int = 5) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(HIDDEN, generator=generator) / 4 for site in SITES}


def generate(model, inputs, steps=STEPS, **settings):
    out = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_logits=True, **settings
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], out


def assert_same_run(model, alignment, edit, inputs, positions="last", mode="online", **settings):
    """Logits, K/V cache and generated tokens of the library and of the hooks."""
    expected_tokens, expected_logits, expected_cache = greedy(model, edit, inputs, STEPS, positions)
    with intervene(model, alignment, positions=positions, mode=mode, **settings):
        tokens, out = generate(model, inputs)
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(out.logits[0], expected_logits[:, -1], **CLOSE)
    for actual, expected in zip(cache_tensors(out.past_key_values), cache_tensors(expected_cache), strict=True):
        torch.testing.assert_close(actual, expected, **CLOSE)
    _, plain = generate(model, inputs, steps=1)
    assert (out.logits[0] - plain.logits[0]).abs().max() > 1e-2, "the edit does too little to be seen"


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_output_hooks(name):
    model, maps, inputs = tiny(name), random_maps(), prompts()
    assert_same_run(model, Alignment.from_maps(maps), HookedEdit(maps, 0.6), inputs, alpha=0.6)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_output_hooks_with_right_padding(name):
    model, maps, inputs = tiny(name), random_maps(), prompts(side="right")
    edit = HookedEdit(maps, 0.6, where=last_tokens(inputs["attention_mask"]))
    with edit.on(model):
        expected = model(**inputs)
    with intervene(model, Alignment.from_maps(maps), alpha=0.6):
        actual = model(**inputs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(actual.logits[real], expected.logits[real], **CLOSE)
    for a, b in zip(cache_tensors(actual.past_key_values), cache_tensors(expected.past_key_values), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
