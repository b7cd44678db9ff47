"""The table of architectures: every site is found, and what cannot be edited is refused by name."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS, HIDDEN, LAYERS, prompts, tiny
from torch import nn

from incline_fast.models.architectures import ARCHITECTURES, UnsupportedModelError, describe, unwrap


@pytest.mark.parametrize("name", CONFIGS)
def test_sites_see_the_states_that_the_model_reports(name):
    model = tiny(name)
    architecture = describe(model)
    assert architecture.num_layers == LAYERS
    assert architecture.hidden_size == HIDDEN
    seen: dict[int, torch.Tensor] = {}
    handles = [site.observe(lambda h, i=site.index: seen.__setitem__(i, h.clone())) for site in architecture.sites]
    out = model(**prompts((6, 6)), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    assert sorted(seen) == list(range(LAYERS + 1))
    # The last reported state is taken after the final norm; every other one is the residual stream itself.
    for index in range(LAYERS):
        torch.testing.assert_close(seen[index], out.hidden_states[index], rtol=0, atol=0)
    before = {k: v.clone() for k, v in seen.items()}
    model(**prompts((6, 6), seed=2))
    assert all(torch.equal(seen[k], before[k]) for k in seen), "a removed handle still observes"


@pytest.mark.parametrize("name", CONFIGS)
def test_norm_parameters_reproduce_the_norm(name):
    model = tiny(name)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(5, HIDDEN, generator=generator) * 3
    norms = [site for site in describe(model).sites if site.tap == "norm"]
    assert len(norms) == {"olmo2": 1, "opt-post": 0}.get(name, LAYERS + 1)
    for site in norms:
        assert model.get_submodule(site.path) is site.module
        centred = h - h.mean(-1, keepdim=True) if site.kind == "layer" else h
        expected = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + site.eps)
        expected = expected * (site.weight + site.weight_offset) + (0 if site.bias is None else site.bias)
        torch.testing.assert_close(site.module(h), expected)


def test_every_row_of_the_table_has_a_tiny_model():
    assert set(ARCHITECTURES) == {config["model_type"] for config in CONFIGS.values()}


def test_multimodal_gemma3_is_edited_in_its_language_model():
    model = tiny("gemma3-multimodal")
    architecture = describe(model)
    assert architecture.backbone is model.model.language_model
    assert architecture.sites[1].path == "model.language_model.layers.1.input_layernorm"


def test_backbone_alone_and_compiled_models_are_described():
    model = tiny("opt")
    assert describe(model.model).backbone is model.model.decoder
    assert describe(model.model.decoder).backbone is model.model.decoder
    compiled = torch.compile(model, backend="eager")
    assert unwrap(compiled) is model
    assert describe(compiled).sites[0].path == "model.decoder.layers.0.self_attn_layer_norm"
    llama = tiny("llama")
    inner = llama.model
    llama.model = torch.compile(inner, backend="eager")
    assert describe(llama).backbone is inner


def test_what_is_no_decoder_is_refused():
    with pytest.raises(UnsupportedModelError, match="Linear has no transformers config"):
        describe(nn.Linear(2, 2))


def test_a_model_that_is_not_built_like_its_row_of_the_table_is_probed():
    model = tiny("llama")
    block = model.model.layers[1]
    block.norm_of_another_name = block.input_layernorm
    del block.input_layernorm
    block.forward = _forward_with_the_other_name(block)
    architecture = describe(model)
    assert architecture.found_by == "probe"
    assert architecture.sites[1].path == "model.layers.1.norm_of_another_name"
    assert [site.tap for site in architecture.sites] == ["norm"] * (LAYERS + 1)


def _forward_with_the_other_name(block):
    def forward(hidden_states, **kwargs):
        attended, _ = block.self_attn(hidden_states=block.norm_of_another_name(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + block.mlp(block.post_attention_layernorm(hidden_states))

    return forward


def test_cross_attention_is_refused_and_blocks_are_counted():
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        describe(tiny("gpt2", add_cross_attention=True))
    model = tiny("llama")
    model.config.num_hidden_layers = 2
    with pytest.raises(UnsupportedModelError, match=r"model.layers ran \[0, 1\] times in one pass, not once each"):
        describe(model)
