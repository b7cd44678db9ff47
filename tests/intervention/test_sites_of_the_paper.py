"""Outputs of attention and FFN as sites: fitted and edited as by hooks on these modules, written here a second time."""

from __future__ import annotations

import pytest
import torch
from decoder_zoo import tiny_decoder
from hook_reference import last_tokens
from interventions import CLOSE, random_maps
from tiny_models import HIDDEN, LAYERS, prompts, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast.alignment.alignment import Alignment, AlignmentMetadata
from incline_fast.fitting.fit import fit
from incline_fast.intervention.intervene import intervene
from incline_fast.models.architectures import describe
from incline_fast.models.sites import UnsupportedModelError
from incline_fast.states import collect

MAPS = {site: map for site, map in random_maps().items() if site > 0}
ALPHA = 0.6

# Where the outputs are, by name. BLOOM's modules add the residual stream before they return: the layers before count.
MODULES = {
    "llama": {"attention": "model.layers.{}.self_attn", "ffn": "model.layers.{}.mlp"},
    "gemma3": {"attention": "model.layers.{}.self_attn", "ffn": "model.layers.{}.mlp"},
    "gpt2": {"attention": "transformer.h.{}.attn", "ffn": "transformer.h.{}.mlp"},
    "bloom": {"attention": "transformer.h.{}.self_attention.dense", "ffn": "transformer.h.{}.mlp.dense_4h_to_h"},
    "falcon-7b": {"attention": "transformer.h.{}.self_attention", "ffn": "transformer.h.{}.mlp"},
    "olmo2": {"attention": "model.layers.{}.self_attn", "ffn": "model.layers.{}.mlp"},
}


def hooked(model, paths, change):
    """Hooks on the modules at ``paths``, ``{site: path}``; ``change(site, states)`` returns the new states."""

    def hook(site):
        def after(module, args, output):
            if isinstance(output, tuple):
                return (change(site, output[0]), *output[1:])
            return change(site, output)

        return after

    return [model.get_submodule(path).register_forward_hook(hook(site)) for site, path in paths.items()]


def run(model, inputs, paths, change):
    handles = hooked(model, paths, change)
    with torch.no_grad():
        logits = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("mode", ["online", "clean"])
@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("name", MODULES)
def test_edits_are_those_of_hooks_on_the_modules(name, kind, mode):
    model, inputs = tiny(name), prompts((6, 4))
    where = last_tokens(inputs["attention_mask"])
    paths = {site: MODULES[name][kind].format(site - 1) for site in MAPS}
    recorded = {}

    def record(site, states):
        recorded[site] = states.clone()
        return states

    def edit(site, states):
        new = states.clone()
        for row, token in where:
            h = (states if mode == "online" else recorded[site])[row, token]
            new[row, token] = h + ALPHA * (MAPS[site] @ h)
        return new

    plain = run(model, inputs, paths, record)
    expected = run(model, inputs, paths, edit)
    alignment = Alignment.from_maps(MAPS, metadata=AlignmentMetadata(site=kind))
    with torch.no_grad(), intervene(model, alignment, alpha=ALPHA, mode=mode) as active:
        actual = model(**inputs).logits
        assert f"{paths[1]} (module_output)" in active.describe()
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(actual[real], expected[real], **CLOSE)
    assert (actual - plain).abs().max() > 0.01
    with torch.no_grad(), intervene(model, Alignment.from_maps(MAPS), alpha=ALPHA, mode=mode, site=kind):
        assert torch.equal(model(**inputs).logits, actual)


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_collect_and_fit_take_the_outputs(kind):
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    source, target = sentences(12, seed=1), sentences(12, seed=2)
    got = collect(model, tokenizer, source, site=kind, pooling="mean_all", progress=False)
    for row, text in enumerate(source[:3]):
        seen = {}
        run(
            model,
            {"input_ids": torch.tensor([tokenizer(text)["input_ids"]])},
            {site: MODULES["llama"][kind].format(site - 1) for site in MAPS},
            lambda site, states, seen=seen: seen.setdefault(site, states.clone()),
        )
        for site in MAPS:
            torch.testing.assert_close(got[site][row], seen[site][0].mean(0), **CLOSE)
    alignment = fit(model, tokenizer, source, target, site=kind, progress=False)
    assert alignment.metadata.site == kind
    assert alignment.layers == list(range(1, LAYERS + 1))


def test_files_keep_the_site_and_old_ones_mean_the_residual_stream(tmp_path):
    alignment = Alignment.from_maps(MAPS, metadata=AlignmentMetadata(site="ffn"))
    alignment.save(tmp_path / "a.safetensors")
    assert Alignment.load(tmp_path / "a.safetensors").metadata.site == "ffn"


def test_what_a_model_does_not_have_is_refused():
    model = tiny_decoder("mamba")
    with pytest.raises(UnsupportedModelError, match="MambaBlock has no module named like an FFN"):
        describe(model, "ffn")
    with pytest.raises(ValueError, match="site is 'mlp'; allowed: hidden, attention, ffn"):
        describe(model, "mlp")
    assert describe(tiny("llama"), "ffn").hidden_size == HIDDEN
