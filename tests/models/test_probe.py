"""The probe: it finds what the table says, sees through unusual builds, and trusts no norm that it has not proven."""

from __future__ import annotations

import copy

import pytest
import torch
from decoder_zoo import tiny_decoder
from hook_reference import HookedEdit, last_tokens
from interventions import CLOSE, random_maps
from tiny_models import CONFIGS, HIDDEN, LAYERS, prompts, tiny
from torch import nn

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import intervene
from incline_fast.models.architectures import describe, from_probe, from_table
from incline_fast.models.norms import norm_formula
from incline_fast.models.probe import probe
from incline_fast.models.sites import UnsupportedModelError, unwrap

MAPS = random_maps()


def taps(model):
    return [site.tap for site in from_probe(model).sites]


def check_edited(model):
    """Logits and cache of an edited prompt are those of hooks on the blocks."""
    inputs = prompts((6, 4))
    edit = HookedEdit(MAPS, 0.6, where=last_tokens(inputs["attention_mask"]))
    with torch.no_grad(), edit.on(model):
        expected = model(**inputs).logits
    with torch.no_grad(), intervene(model, Alignment.from_maps(MAPS), alpha=0.6):
        actual = model(**inputs).logits
    torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_says_what_the_probe_finds(name):
    model = tiny(name)
    known, found = from_table(model), from_probe(model)
    assert known is not None
    assert found.note == ""
    assert found.backbone is known.backbone
    assert (found.num_layers, found.hidden_size) == (known.num_layers, known.hidden_size)
    for a, b in zip(known.sites, found.sites, strict=True):
        assert (a.tap == "norm") == (b.tap == "norm")
        if a.tap == "norm":
            assert a.module is b.module
            assert (a.path, a.kind, a.eps, a.weight_offset) == (b.path, b.kind, b.eps, b.weight_offset)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "cohere"])
def test_norms_are_found_in_every_dtype(name, dtype):
    assert taps(tiny(name).to(dtype)) == ["norm"] * (LAYERS + 1)


def test_the_passes_are_few_and_kept():
    model = tiny("llama")
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = probe(model)
    assert len(calls) == 2
    assert probe(model) is found
    assert len(calls) == 2
    model.model.norm = copy.deepcopy(model.model.norm)
    assert probe(model) is not found, "another norm: what was found of the old one is no longer true"
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_model_is_left_as_it_was():
    model = tiny("llama", attention_dropout=0.5).train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    probe(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def patched(forward, blocks=(1,)):
    """A Llama in which some blocks compute something else; ``forward(block, states, attend)``."""
    model = tiny("llama")
    for index in blocks:
        block = model.model.layers[index]

        def replacement(hidden_states, block=block, **kwargs):
            return forward(block, hidden_states, lambda x: block.self_attn(hidden_states=x, **kwargs)[0])

        block.forward = replacement
    return model


def read_before_its_norm(block, h, attend):
    gate = h.mean(-1, keepdim=True).sigmoid()
    h = h + attend(block.input_layernorm(h)) * gate
    return h + block.mlp(block.post_attention_layernorm(h))


def copied_before_its_norm(block, h, attend):
    kept = h.clone()
    h = kept + attend(block.input_layernorm(h))
    return h + block.mlp(block.post_attention_layernorm(h))


def normed_twice(block, h, attend):
    h = h + attend(block.input_layernorm(h)) + 0.1 * block.input_layernorm(h)
    return h + block.mlp(block.post_attention_layernorm(h))


def no_residual(block, h, attend):
    return attend(block.input_layernorm(h))


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (read_before_its_norm, "block_output"),
        (copied_before_its_norm, "block_output"),
        (normed_twice, "block_output"),
        (no_residual, "norm"),
    ],
)
def test_a_norm_in_which_an_edit_would_be_wrong_is_not_used(forward, expected):
    model = patched(forward)
    architecture = from_probe(model)
    assert [site.tap for site in architecture.sites] == ["norm", expected, "norm", "norm"]
    assert ("gave other results" in architecture.note) == (forward in (read_before_its_norm, copied_before_its_norm))


def test_states_edited_by_hooks_where_norms_fail():
    model = patched(read_before_its_norm)
    model.config.model_type = "of-somebody"
    check_edited(model)
    with intervene(model, Alignment.from_maps(MAPS), alpha=0.6) as run:
        text = run.describe()
    assert "sites found by the probe" in text
    assert "edits in the norms of the sites 1 gave other results" in text


def test_one_norm_for_all_blocks_is_edited_by_hooks():
    model = tiny("llama")
    for block in model.model.layers:
        block.input_layernorm = model.model.layers[0].input_layernorm
    assert taps(model) == ["block_input", "block_output", "block_output", "norm"]
    model.config.model_type = "of-somebody"
    check_edited(model)


def test_blocks_that_return_lists():
    model = tiny_decoder("openai-gpt")
    assert isinstance(model.transformer.h[0](torch.randn(1, 2, HIDDEN)), list)
    assert taps(model) == ["block_input"] + ["block_output"] * LAYERS


def test_later_tokens_must_not_change_earlier_ones():
    model = tiny_decoder("bert")
    model.config.is_decoder = False
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    with pytest.raises(UnsupportedModelError, match=r"it is not causal"):
        describe(model)


def test_a_block_that_runs_twice_is_refused():
    model = tiny("llama")
    model.model.layers[2] = model.model.layers[1]
    with pytest.raises(UnsupportedModelError, match=r"ran \[1, 2\] times in one pass, not once each"):
        probe(model)


def test_states_that_are_not_finite_prove_nothing():
    model = tiny("llama")
    model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(UnsupportedModelError, match="its output is not finite"):
        probe(model)


def test_compiled_models_are_probed_as_written():
    model = tiny("llama")
    expected = probe(model).sites
    inner = tiny("llama")
    inner.model = torch.compile(inner.model, backend="eager")
    assert probe(inner).sites == expected
    whole = tiny("llama")
    whole.compile(backend="eager")
    assert probe(whole).sites == expected
    assert unwrap(torch.compile(model, backend="eager")) is model


def test_quantised_weights():
    model = tiny("llama")
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert taps(quantised) == ["norm"] * (LAYERS + 1)
    check_edited(quantised)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_offloaded_weights_are_edited_by_hooks(name):
    accelerate = pytest.importorskip("accelerate")
    model = tiny(name)
    model.config.model_type = "of-somebody"
    accelerate.cpu_offload(model, execution_device="cpu")
    assert {site.tap for site in describe(model).sites} == {"block_input", "block_output"}
    check_edited(model)


def test_device_map():
    accelerate = pytest.importorskip("accelerate")
    model = tiny("qwen2")
    model.config.model_type = "of-somebody"
    accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert taps(model) == ["norm"] * (LAYERS + 1)
    check_edited(model)


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12])
def test_norms_of_torch(eps):
    like = torch.randn(2, 3, HIDDEN)
    assert norm_formula(nn.RMSNorm(HIDDEN, eps=eps), like).kind == "rms"
    assert norm_formula(nn.RMSNorm(HIDDEN, eps=eps), like).eps == eps
    assert norm_formula(nn.LayerNorm(HIDDEN, eps=eps, bias=False), like).kind == "layer"
    assert norm_formula(nn.RMSNorm(HIDDEN), like).eps == torch.finfo(torch.float32).eps


def test_what_is_not_a_norm():
    like = torch.randn(2, 3, HIDDEN)

    class Hidden(nn.RMSNorm):
        def forward(self, x):
            return super().forward(x).tanh()

    class ByToken(nn.Module):
        def forward(self, x):
            return torch.nn.functional.layer_norm(x, x.shape[1:])

    for module in (nn.Linear(HIDDEN, HIDDEN), nn.Identity(), Hidden(HIDDEN), ByToken(), nn.Dropout()):
        assert norm_formula(module, like) is None
    wrong = nn.LayerNorm(HIDDEN)
    wrong.eps = 1e-3
    wrong.forward = lambda x: torch.nn.functional.layer_norm(x, (HIDDEN,), wrong.weight, wrong.bias, 1e-6)
    assert norm_formula(wrong, like) is None, "the epsilon of its attributes is not the one that it uses"
