"""What is put in is taken out again, and what cannot be edited is refused with the reason."""

from __future__ import annotations

import re
import types

import pytest
import torch
from interventions import random_maps
from tiny_models import HIDDEN, LAYERS, prompts, tiny
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

from incline_fast import ops
from incline_fast.alignment.alignment import Alignment, AlignmentError
from incline_fast.intervention.intervene import InterventionError, NonFiniteStateError, intervene
from incline_fast.models.architectures import UnsupportedModelError
from incline_fast.models.identity import identify

ALIGNMENT = Alignment.from_maps(random_maps())


def fingerprint(model: nn.Module) -> list[tuple[object, ...]]:
    """Every module by identity, with its hooks and what hangs on the instance."""
    return [
        (
            name,
            id(module),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            # torch.compile marks what it has wrapped.
            sorted(vars(module).keys() - {"_is_torch_compile"}),
            type(module),
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("mode", ["online", "clean"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2", "opt-post"])
def test_the_model_is_restored_exactly(name, mode):
    model, inputs = tiny(name), prompts()
    before, plain = fingerprint(model), model(**inputs).logits
    state = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    with intervene(model, ALIGNMENT, alpha=0.5, mode=mode):
        assert fingerprint(model) != before
        assert {key: id(value) for key, value in model.state_dict(keep_vars=True).items()} == state
        model(**inputs)
    assert fingerprint(model) == before
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("mode", ["online", "clean"])
def test_the_model_is_restored_after_an_exception(mode):
    model, inputs = tiny("llama"), prompts()
    before, plain = fingerprint(model), model(**inputs).logits

    def stop(input_ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), intervene(model, ALIGNMENT, alpha=0.5, mode=mode):
        model.generate(**inputs, max_new_tokens=3, stopping_criteria=[stop])
    assert fingerprint(model) == before
    assert torch.equal(model(**inputs).logits, plain)


def test_a_failing_pass_leaves_the_intervention_usable():
    model, inputs = tiny("llama"), prompts()
    with intervene(model, ALIGNMENT, alpha=0.5) as run:
        expected = model(**inputs).logits
        with pytest.raises(IndexError):
            model(input_ids=torch.full((1, 3), 10_000))
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model(inputs["input_ids"], attention_mask=torch.ones(3, 2))
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(run.generate(**inputs, max_new_tokens=2), model.generate(**inputs, max_new_tokens=2))


def test_an_own_generate_and_forward_of_the_instance_are_put_back():
    model, inputs = tiny("llama"), prompts()
    calls = []

    def counting(self, *args, **kwargs):
        calls.append(1)
        return type(self).generate(self, *args, **kwargs)

    model.generate = types.MethodType(counting, model)
    own = model.generate
    with intervene(model, ALIGNMENT, alpha=0.5):
        model.generate(**inputs, max_new_tokens=2)
    assert model.generate is own
    assert calls == [1]


def test_nested_and_repeated_use():
    model = tiny("llama")
    before = fingerprint(model)
    other = Alignment.from_maps(random_maps(7))
    with intervene(model, ALIGNMENT, alpha=0.5) as run:
        for inner in (model, model.model, torch.compile(model, backend="eager")):
            with pytest.raises(InterventionError, match="being edited by another intervention"):
                intervene(inner, other, alpha=0.5).__enter__()
        with pytest.raises(InterventionError, match="is active"):
            run.__enter__()
    with pytest.raises(InterventionError, match="is done"):
        run.__enter__()
    for method in (run.generate, run.expect_prompt):
        with pytest.raises(InterventionError, match="outside the with block"):
            method()
    assert fingerprint(model) == before
    with intervene(model, other, alpha=0.5):
        pass


def test_two_models_can_be_edited_at_once():
    one, two, inputs = tiny("llama"), tiny("gpt2"), prompts()
    with intervene(one, ALIGNMENT, alpha=0.5):
        expected = one(**inputs).logits
    with intervene(one, ALIGNMENT, alpha=0.5), intervene(two, ALIGNMENT, alpha=0.5):
        assert torch.equal(one(**inputs).logits, expected)
        two(**inputs)


def test_a_norm_changed_underneath():
    model = tiny("llama")
    before = fingerprint(model)
    with (
        pytest.raises(InterventionError, match=r"changed.*model\.layers\.1\.input_layernorm no longer held"),
        intervene(model, ALIGNMENT, alpha=0.5),
    ):
        model.model.layers[1].input_layernorm = nn.Identity()
    assert fingerprint(model) == before


def test_a_block_changed_underneath():
    model = tiny("llama")
    block = model.model.layers[2]
    norm = block.input_layernorm
    with pytest.raises(InterventionError, match=r"model\.layers\.2\.input_layernorm"):  # noqa: SIM117
        with intervene(model, ALIGNMENT, alpha=0.5):
            model.model.layers[2] = nn.Identity()
    assert block.input_layernorm is norm


def test_a_class_changed_underneath():
    model = tiny("olmo2")
    before = fingerprint(model)
    run = intervene(model, ALIGNMENT, alpha=0.5).__enter__()
    model.model.layers[1].__class__ = nn.Identity
    with pytest.raises(InterventionError, match=r"model\.layers\.1 no longer held"):
        run.__exit__(None, None, None)
    assert fingerprint(model) == before
    assert type(model.model.layers[1]) is type(model.model.layers[0])


def test_a_change_underneath_does_not_hide_the_exception():
    model = tiny("llama")
    run = intervene(model, ALIGNMENT, alpha=0.5).__enter__()
    model.model.norm = nn.Identity()
    error = KeyError("mine")
    run.__exit__(KeyError, error, None)
    assert "model.norm no longer held" in error.__notes__[0]


def test_an_alignment_of_another_model():
    with pytest.raises(AlignmentError, match="hidden_size is 16 there and 32 here"):
        intervene(tiny("llama"), Alignment.from_maps({1: torch.eye(16)}), alpha=0.5)
    with pytest.raises(AlignmentError, match=f"site {LAYERS + 1}; this model has sites"):
        intervene(tiny("llama"), Alignment.from_maps({LAYERS + 1: torch.eye(HIDDEN)}), alpha=0.5)
    llama = ALIGNMENT.with_metadata(config_hash=identify(tiny("llama")).config_hash)
    intervene(tiny("llama"), llama, alpha=0.5)
    with pytest.raises(AlignmentError, match="config_hash"):
        intervene(tiny("qwen2"), llama, alpha=0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"positions": "first"}, ValueError, "positions is 'first'; allowed: 'last', 'generated', 'all'"),
        ({"mode": "dirty"}, ValueError, "mode is 'dirty'; allowed: 'online', 'clean'"),
        ({"mode": "clean", "positions": "all"}, ValueError, "positions='all' with mode='clean'"),
        ({"layers": [0, 9]}, ValueError, r"layers \[9\] have no map in this alignment; it has \[0, 1, 2, 3\]"),
        ({"layers": []}, ValueError, r"layers is \[\]; expected at least one"),
        ({"layers": [1, 1]}, ValueError, r"layers is \[1, 1\].*each of them once"),
        ({"alpha": {1: 0.5, 8: 0.5}}, ValueError, r"layers \[8\] have no map"),
        ({"alpha": {1: 0.5}, "layers": [1, 2]}, ValueError, r"alpha names the layers \[1\], layers is \[1, 2\]"),
        ({"alpha": {1: "x"}}, TypeError, r"alpha\[1\] is 'x'; expected a number"),
        ({"alpha": None}, TypeError, "alpha is None; expected a number"),
        ({"alpha": True}, TypeError, "alpha is True; expected a number"),
        ({"alpha": float("nan")}, ValueError, "alpha is nan; it must be finite"),
        ({"alpha": torch.ones(2, 2)}, ValueError, r"alpha has shape \(2, 2\)"),
        ({"alpha": torch.tensor([0.1, float("inf")])}, ValueError, "every value must be finite"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, error, message):
    with pytest.raises(error, match=message):
        intervene(tiny("llama"), ALIGNMENT, **{"alpha": 0.5, **arguments})


def test_alpha_for_another_number_of_rows():
    model = tiny("llama")
    with intervene(model, ALIGNMENT, alpha=torch.tensor([0.1, 0.2])):
        with pytest.raises(ValueError, match="alpha has 2 values; this forward pass has 3 rows"):
            model(**prompts())
        with pytest.raises(ValueError, match="alpha has 2 values; this forward pass has 4 rows"):
            model(**prompts((3, 3, 3, 3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 asks generate for assisted decoding"),
        ({"assistant_model": "itself"}, "assistant_model=LlamaForCausalLM asks generate for assisted decoding"),
        ({"prefill_chunk_size": 2}, "chunked prefill"),
        ({"guidance_scale": 1.5}, "classifier-free guidance"),
        ({"custom_generate": lambda *a, **k: None}, "custom generation loop"),
        ({"num_beams": 4, "num_beam_groups": 2}, "group beam search"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"cache_implementation": "paged"}, "continuous batching"),
        ({"generation_config": GenerationConfig(prefill_chunk_size=2)}, "prefill_chunk_size=2"),
    ],
)
def test_generation_modes_that_cannot_be_edited(settings, message):
    model = tiny("llama")
    settings = {key: model if value == "itself" else value for key, value in settings.items()}
    with intervene(model, ALIGNMENT, alpha=0.5), pytest.raises(ValueError, match=message):
        model.generate(**prompts(), max_new_tokens=3, **settings)


def test_a_refused_mode_by_position():
    model = tiny("llama")
    config = GenerationConfig(prefill_chunk_size=2)
    with intervene(model, ALIGNMENT, alpha=0.5), pytest.raises(ValueError, match="chunked prefill"):
        model.generate(prompts()["input_ids"], config)


def test_a_refused_mode_in_the_models_own_settings():
    model = tiny("llama")
    model.generation_config.prefill_chunk_size = 2
    with intervene(model, ALIGNMENT, alpha=0.5) as run, pytest.raises(ValueError, match="chunked prefill"):
        run.generate(**prompts(), max_new_tokens=3)


def test_an_unknown_kind_of_decoding_is_noticed():
    """A pass of several tokens after the prompt: no setting announced it."""
    model, inputs = tiny("llama"), prompts((4,))

    def speculate(input_ids, scores):
        cache = model(input_ids, use_cache=True).past_key_values
        model(input_ids[:, :2], past_key_values=cache)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    with intervene(model, ALIGNMENT, alpha=0.5), pytest.raises(RuntimeError, match="a pass of 2 tokens after"):
        model.generate(**inputs, max_new_tokens=2, stopping_criteria=[speculate])


def test_missing_inputs_are_refused():
    model = tiny("llama")
    with (
        intervene(model, ALIGNMENT, alpha=0.5),
        pytest.raises(ValueError, match="input_ids and inputs_embeds are both"),
    ):
        model()


@pytest.mark.parametrize("mode", ["online", "clean"])
def test_gradients_are_refused_and_frozen_models_are_not(mode):
    model, inputs = tiny("llama"), prompts()
    with intervene(model, ALIGNMENT, alpha=0.5, mode=mode):
        expected = model(**inputs).logits
        model.requires_grad_(True)
        with pytest.raises(RuntimeError, match=r"no gradient; call the model under torch.no_grad\(\)"):
            model(**inputs)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, expected)


def test_a_block_alone_is_refused():
    model = tiny("llama")
    with intervene(model, ALIGNMENT, alpha=0.5), pytest.raises(RuntimeError, match="outside a call of the model"):
        model.model.norm(torch.zeros(1, 2, HIDDEN))


def test_clean_mode_refuses_what_it_cannot_do():
    model, inputs = tiny("llama"), prompts()
    with intervene(model, ALIGNMENT, alpha=0.5, mode="clean"):
        with pytest.raises(ValueError, match="output_attentions=True with mode='clean'"):
            model(**inputs, output_attentions=True)
        with pytest.raises(ValueError, match="past_key_values is of type EncoderDecoderCache"):
            model(**inputs, past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()))


def test_unsupported_models_are_refused():
    with pytest.raises(UnsupportedModelError):
        intervene(nn.Linear(2, 2), ALIGNMENT, alpha=0.5)


@pytest.mark.parametrize("mode", ["online", "clean"])
def test_check_finite_names_site_row_and_alpha(mode):
    model, inputs = tiny("llama"), prompts((4, 4))
    maps = dict(random_maps())
    maps[2] = torch.eye(HIDDEN) * 3e38
    with (
        intervene(
            model, Alignment.from_maps(maps), alpha=torch.tensor([0.0, 1.0]), mode=mode, check_finite=True
        ) as run,
        pytest.raises(NonFiniteStateError, match=r"site 2 \(model\.layers\.2\.input_layernorm\).*row 1 at alpha=1\.0"),
    ):
        model(**inputs)
    assert run.max_abs[2] == float("inf")


def test_check_finite_measures_growth():
    """Near-identity maps at every site double the state L + 1 times: seen long before anything overflows."""
    model, inputs = tiny("llama"), prompts((4, 6))
    identity = Alignment.from_maps({site: torch.eye(HIDDEN) for site in range(LAYERS + 1)})
    with intervene(model, identity, alpha=1.0, check_finite=True) as run:
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert run.growth == pytest.approx(dict.fromkeys(range(LAYERS + 1), 2.0))
    for site in range(LAYERS):
        assert run.max_abs[site] == pytest.approx(float(hidden[site][:, -1].abs().max()))
    with intervene(model, identity, alpha=1.0) as unwatched:
        model(**inputs)
    assert unwatched.max_abs == {}


def test_describe_names_the_edited_sites():
    model = tiny("olmo2")
    alpha = {0: 0.5, 1: 0.0, 3: -0.25}
    text = intervene(model, ALIGNMENT, alpha=alpha, positions="generated").describe()
    assert re.match(r"2 of 4 sites edited, form='add', positions='generated', mode='online'", text)
    assert "site 0: model.layers.0 (block_input)" in text
    assert "site 3: model.norm (norm)" in text
    assert "alpha=-0.25" in text
    assert "site 1" not in text
    assert f"backend: {ops.explain()}" in text
    assert "alpha=per row" in intervene(model, ALIGNMENT, alpha=torch.ones(2)).describe()
