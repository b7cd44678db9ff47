"""The edited norms against output hooks: logits, keys and values, tokens; for every architecture."""

from __future__ import annotations

import pytest
import torch
from hook_reference import HookedEdit, cache_tensors, greedy, last_tokens, record
from interventions import CLOSE, STEPS, generate, random_bias, random_maps
from tiny_models import CONFIGS, prompts, tiny

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import intervene
from incline_fast.ops import affine_residual
from incline_fast.ops._extension import EXTENSION

SOME = ["llama", "gemma3", "gpt2", "falcon-rw", "opt-post", "olmo2"]


def assert_same_cache(actual, expected, where, exact=False):
    """Keys and values at the tokens ``where [B, T]``; what padding attends to is of no account and not defined."""
    close = {"rtol": 0, "atol": 0} if exact else CLOSE
    for a, b in zip(cache_tensors(actual), cache_tensors(expected), strict=True):
        kept = where[:, -a.shape[2] :]  # a sliding window keeps the end of the sequence only
        torch.testing.assert_close(a.transpose(1, 2)[kept], b.transpose(1, 2)[kept], **close)


def assert_same_run(model, alignment, edit, inputs, positions="last", mode="online", **settings):
    """Logits, K/V cache and generated tokens of the library and of the hooks."""
    expected_tokens, expected_logits, expected_cache = greedy(model, edit, inputs, STEPS, positions)
    with intervene(model, alignment, positions=positions, mode=mode, **settings):
        tokens, out = generate(model, inputs)
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(out.logits[0], expected_logits[:, -1], **CLOSE)
    decoded = inputs["attention_mask"].new_ones(len(tokens), STEPS - 1)
    assert_same_cache(out.past_key_values, expected_cache, torch.cat([inputs["attention_mask"], decoded], dim=1).bool())
    _, plain = generate(model, inputs, steps=1)
    assert (out.logits[0] - plain.logits[0]).abs().max() > 1e-2, "the edit does too little to be seen"


def assert_same_pass(model, alignment, edit, inputs, mode="online", **settings):
    """Logits of real tokens and the K/V cache of one direct forward pass."""
    edit.where = last_tokens(inputs["attention_mask"])
    if mode == "clean":
        edit.recorded = record(model, max(edit.maps) + 1, **inputs)
    with edit.on(model):
        expected = model(**inputs)
    with intervene(model, alignment, mode=mode, **settings):
        actual = model(**inputs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(actual.logits[real], expected.logits[real], **CLOSE)
    assert_same_cache(actual.past_key_values, expected.past_key_values, real)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_output_hooks(name):
    maps = random_maps()
    assert_same_run(tiny(name), Alignment.from_maps(maps), HookedEdit(maps, 0.6), prompts(), alpha=0.6)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_output_hooks_with_right_padding(name):
    maps = random_maps()
    inputs = prompts(side="right")
    assert_same_pass(tiny(name), Alignment.from_maps(maps), HookedEdit(maps, 0.6), inputs, alpha=0.6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_costs_one_call_a_site(side, monkeypatch):
    if EXTENSION is None:
        pytest.skip("a way of the compiled kernels")
    calls, op = [], affine_residual.OP
    monkeypatch.setattr(affine_residual, "OP", lambda *arguments: calls.append(op(*arguments)))
    model, maps = tiny("llama"), random_maps()
    with intervene(model, Alignment.from_maps(maps), alpha=0.6):
        model(**prompts(side=side))
    assert len(calls) == len(maps)


@pytest.mark.parametrize("name", CONFIGS)
def test_clean_mode_equals_two_full_passes(name):
    maps = random_maps()
    edit = HookedEdit(maps, 0.6, recorded={})
    assert_same_run(tiny(name), Alignment.from_maps(maps), edit, prompts(), mode="clean", alpha=0.6)


@pytest.mark.parametrize("name", SOME)
def test_clean_mode_equals_two_full_passes_with_right_padding(name):
    maps = random_maps()
    edit = HookedEdit(maps, 0.6)
    assert_same_pass(tiny(name), Alignment.from_maps(maps), edit, prompts(side="right"), mode="clean", alpha=0.6)


@pytest.mark.parametrize("positions", ["generated", "all"])
@pytest.mark.parametrize("name", SOME)
def test_other_positions_equal_output_hooks(name, positions):
    maps = random_maps()
    edit = HookedEdit(maps, 0.3)
    assert_same_run(tiny(name), Alignment.from_maps(maps), edit, prompts(), positions=positions, alpha=0.3)


@pytest.mark.parametrize("mode", ["online", "clean"])
@pytest.mark.parametrize("name", SOME)
def test_interpolation_with_bias_equals_output_hooks(name, mode):
    maps, bias = random_maps(), random_bias()
    alignment = Alignment.from_maps(maps, bias=bias, form="interpolate")
    recorded = {} if mode == "clean" else None
    edit = HookedEdit(maps, 0.7, bias=bias, interpolate=True, recorded=recorded)
    assert_same_run(tiny(name), alignment, edit, prompts(), mode=mode, alpha=0.7)


@pytest.mark.parametrize("mode", ["online", "clean"])
@pytest.mark.parametrize("name", SOME)
def test_layer_subset_with_its_own_alphas(name, mode):
    alpha = {0: 0.8, 2: -0.5}
    maps = random_maps()
    edit = HookedEdit({site: maps[site] for site in alpha}, alpha, recorded={} if mode == "clean" else None)
    assert_same_run(tiny(name), Alignment.from_maps(maps), edit, prompts(), mode=mode, alpha=alpha)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_unedited_rows_keep_their_bits(name, side):
    """Keys and values of all tokens but the edited ones are those of the plain model, bit for bit, at every layer."""
    model, inputs = tiny(name), prompts(side=side)
    plain = model(**inputs).past_key_values
    with intervene(model, Alignment.from_maps(random_maps()), alpha=0.6):
        edited = model(**inputs).past_key_values
    kept = inputs["attention_mask"].bool()
    for row, token in last_tokens(inputs["attention_mask"]):
        kept[row, token] = False
    assert_same_cache(edited, plain, kept, exact=True)
    assert not torch.equal(cache_tensors(edited)[0], cache_tensors(plain)[0])
