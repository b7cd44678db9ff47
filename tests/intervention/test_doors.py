"""Every way into an edited model: each pass is edited as the documentation says, or refused with the reason."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from doors import ALIGNMENT, NAMES, Greedy, hooked, settings
from interventions import CLOSE, STEPS, random_maps
from tiny_models import HIDDEN, prompts, tiny
from torch import nn
from transformers import GenerationConfig, GenerationMixin, pipeline

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import InterventionError, intervene

FORWARD_DOORS = {
    "call": lambda model, saved, inputs: model(**inputs).logits,
    "forward": lambda model, saved, inputs: model.forward(**inputs).logits,
    "a saved forward": lambda model, saved, inputs: saved["forward"](**inputs).logits,
    "a saved call": lambda model, saved, inputs: saved["call"](**inputs).logits,
    "the class's forward": lambda model, saved, inputs: type(model).__mro__[1].forward(model, **inputs).logits,
    "the backbone": lambda model, saved, inputs: model.lm_head(model.base_model(**inputs)[0]),
    "the backbone's forward": lambda model, saved, inputs: model.lm_head(model.base_model.forward(**inputs)[0]),
    "functional_call": lambda model, saved, inputs: torch.func.functional_call(model, {}, (), inputs).logits,
    "embeddings": lambda model, saved, inputs: (
        model(
            inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]), attention_mask=inputs["attention_mask"]
        ).logits
    ),
}


@pytest.mark.parametrize("door", FORWARD_DOORS)
@pytest.mark.parametrize("name", NAMES)
def test_doors_of_forward(name, door):
    model, inputs = tiny(name), prompts((5, 3), side="right")
    saved = {"forward": model.forward, "call": model.__call__}
    expected, plain = hooked(model, inputs), model(**inputs).logits
    real = inputs["attention_mask"].bool()
    with intervene(model, ALIGNMENT, alpha=0.6):
        actual = FORWARD_DOORS[door](model, saved, inputs)
    torch.testing.assert_close(actual[real], expected[real], **CLOSE)
    assert torch.equal(model(**inputs).logits, plain)


def test_a_saved_method_of_the_backbone_is_refused():
    """It goes past everything of ours but the edited norms, which then do not know which rows to edit."""
    model, inputs = tiny("llama"), prompts((5,))
    forward = model.model.forward
    with intervene(model, ALIGNMENT, alpha=0.6), pytest.raises(RuntimeError, match="outside a call of the model"):
        forward(**inputs)


def test_blocks_alone_are_refused():
    model = tiny("llama")
    states = torch.zeros(1, 2, HIDDEN)
    with intervene(model, ALIGNMENT, alpha=0.6):
        for module in (model.model.norm, model.model.layers[0].input_layernorm):
            with pytest.raises(RuntimeError, match="outside a call of the model"):
                module(states)


GENERATE_DOORS = {
    "the method": lambda model, saved, inputs, **s: model.generate(**inputs, **s),
    "a saved method": lambda model, saved, inputs, **s: saved(**inputs, **s),
    "the mixin's": lambda model, saved, inputs, **s: GenerationMixin.generate(model, **inputs, **s),
    "the class's": lambda model, saved, inputs, **s: type(model).__mro__[1].generate(model, **inputs, **s),
    "positional": lambda model, saved, inputs, **s: model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], **s
    ),
    "inputs": lambda model, saved, inputs, **s: model.generate(
        inputs=inputs["input_ids"], attention_mask=inputs["attention_mask"], **s
    ),
    "a config": lambda model, saved, inputs, **s: model.generate(**inputs, generation_config=GenerationConfig(**s)),
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("door", GENERATE_DOORS)
def test_doors_of_generate(door, cache):
    model, inputs = tiny("llama"), prompts((6, 4))
    saved = model.generate
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected = model.generate(**inputs, **settings())
    plain = saved(**inputs, **settings())
    with intervene(model, ALIGNMENT, alpha=0.6):
        actual = GENERATE_DOORS[door](model, saved, inputs, **settings(use_cache=cache))
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, plain)
    assert torch.equal(saved(**inputs, **settings()), plain)


@pytest.mark.parametrize("door", ["the method", "a saved method", "the mixin's", "the class's"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_lookup_num_tokens": 3}, "assisted decoding"),
        ({"assistant_model": "itself"}, "assisted decoding"),
        ({"prefill_chunk_size": 2}, "chunked prefill"),
        ({"guidance_scale": 1.5}, "classifier-free guidance"),
    ],
)
def test_refused_modes_are_refused_at_every_door(door, change, message):
    model, inputs = tiny("llama"), prompts((6, 4))
    saved = model.generate
    change = {name: tiny("llama", seed=3) if value == "itself" else value for name, value in change.items()}
    with intervene(model, ALIGNMENT, alpha=0.6), pytest.raises(ValueError, match=message):
        GENERATE_DOORS[door](model, saved, inputs, **settings(**change))


def test_a_custom_loop_by_a_saved_method_is_refused():
    model, inputs = tiny("llama"), prompts((6, 4))
    saved = model.generate
    loop = lambda model, input_ids, **kwargs: input_ids  # noqa: E731
    with intervene(model, ALIGNMENT, alpha=0.6), pytest.raises(ValueError, match="custom generation loop"):
        saved(**inputs, custom_generate=loop, max_new_tokens=2)


def test_a_generation_inside_a_generation_is_its_own():
    model, inputs, other = tiny("llama"), prompts((6, 4)), prompts((3,), seed=4)
    seen = []
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected = model.generate(**inputs, **settings())
        alone = model.generate(**other, **settings(max_new_tokens=2))
        inside = Greedy(lambda ids: seen.append(model.generate(**other, **settings(max_new_tokens=2))))
        actual = model.generate(**inputs, **settings(), stopping_criteria=[inside])
    assert torch.equal(actual, expected)
    assert len(seen) == STEPS
    assert all(torch.equal(tokens, alone) for tokens in seen)


def test_a_pass_inside_a_pass_is_its_own():
    model, inputs, other = tiny("llama"), prompts((6, 4)), prompts((3, 5), side="right", seed=4)
    inner = []
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected, alone = model(**inputs).logits, model(**other).logits
    handle = None

    def call_again(module, args, output):
        handle.remove()
        inner.append(model(**other).logits)

    handle = model.model.layers[1].register_forward_hook(call_again)
    with intervene(model, ALIGNMENT, alpha=0.6):
        assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(inner[0], alone)


def test_the_backbone_twice_in_one_pass_of_the_model():
    model, inputs = tiny("llama"), prompts((6, 4))
    states = []
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected, alone = model(**inputs).logits, model.model(input_ids=inputs["input_ids"][:, :3]).last_hidden_state
    handle = model.lm_head.register_forward_pre_hook(
        lambda module, args: states.append(model.model(input_ids=inputs["input_ids"][:, :3]).last_hidden_state)
    )
    with intervene(model, ALIGNMENT, alpha=0.6):
        assert torch.equal(model(**inputs).logits, expected)
    handle.remove()
    assert torch.equal(states[0], alone)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": pickle.dumps,
    "save": lambda module: torch.save(module, io.BytesIO()),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", NAMES)
def test_copies_of_an_edited_model_are_refused(name, way):
    model, inputs = tiny(name), prompts((5, 3))
    plain = model(**inputs).logits
    outer = nn.ModuleDict({"model": model})
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected = model(**inputs).logits
        tapped = next(module for module in model.modules() if "_incline_fast_taps" in vars(module))
        # A shallow copy of what holds edited modules shares them: it is edited as they are, and plain afterwards.
        for module in (model, tapped) if way == "copy" else (model, tapped, model.base_model, outer):
            with pytest.raises(InterventionError, match="cannot be copied or pickled now"):
                COPIES[way](module)
        assert torch.equal(model(**inputs).logits, expected)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(**inputs).logits, plain)
    pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_weights_loaded_into_an_edited_model(name, assign):
    model, other, inputs = tiny(name), tiny(name, seed=5), prompts((5, 3))
    expected = {step: hooked(other, {k: v[:, :step] for k, v in inputs.items()}) for step in (1, 5)}
    with intervene(model, ALIGNMENT, alpha=0.6):
        model(**inputs)
        keys = model.load_state_dict(other.state_dict(), strict=True, assign=assign)
        assert not keys.missing_keys
        actual = model(**inputs).logits
        single = model(**{k: v[:1, :1] for k, v in inputs.items()}).logits
    torch.testing.assert_close(actual, expected[5], **CLOSE)
    torch.testing.assert_close(single, expected[1][:1], **CLOSE)
    assert torch.equal(model(**inputs).logits, other(**inputs).logits)


@pytest.mark.parametrize("convert", ["half", "double", "bfloat16", "to"])
@pytest.mark.parametrize("name", NAMES)
def test_conversions_of_an_edited_model(name, convert):
    def converted(model):
        return model.to(torch.float64) if convert == "to" else getattr(model, convert)()

    model, inputs = tiny(name), prompts((5, 3))
    expected = hooked(converted(tiny(name)), inputs)
    with intervene(model, ALIGNMENT, alpha=0.6):
        model(**inputs)
        actual = converted(model)(**inputs).logits
    tolerance = 0.1 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-5
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()


def test_packed_texts_are_the_texts_alone():
    model = tiny("llama")
    texts = [torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 10, 11]]), torch.tensor([[12]])]
    packed = torch.cat(texts, 1)
    positions = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
    for mode in ("online", "clean"):
        with intervene(model, ALIGNMENT, alpha=0.5, mode=mode):
            alone = torch.cat([model(text).logits for text in texts], 1)
            if mode == "online":
                actual = model(packed, position_ids=positions, use_cache=False).logits
                torch.testing.assert_close(actual, alone, **CLOSE)


def test_right_padding_without_a_mask_is_padding():
    model, inputs = tiny("llama"), prompts((7, 4, 1), side="right")
    expected = hooked(model, inputs)
    with intervene(model, ALIGNMENT, alpha=0.6):
        actual = model(inputs["input_ids"]).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(actual[real], expected[real], **CLOSE)


def test_a_pipeline():
    from tiny_tokenizer import tiny_tokenizer

    model, tokenizer = tiny("llama"), tiny_tokenizer()
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 3, "do_sample": False, "return_full_text": False}
    text = tokenizer.decode([5, 6, 7, 8])
    plain = write(text, **options)
    ids = tokenizer(text, return_tensors="pt")
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected = tokenizer.decode(
            model.generate(**ids, max_new_tokens=3, do_sample=False)[0, ids["input_ids"].shape[1] :]
        )
        actual = write(text, **options)
    assert actual[0]["generated_text"] == expected
    assert write(text, **options) == plain


def test_nothing_is_kept_alive():
    model = tiny("llama")
    alignment = Alignment.from_maps(random_maps())
    with intervene(model, alignment, alpha=0.5) as run:
        model(**prompts((4,)))
    gone = [weakref.ref(model), weakref.ref(model.model.norm), weakref.ref(run)]
    del model, run
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
