"""Every way into an edited model: each pass is edited as the documentation says, or refused with the reason."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hook_reference import HookedEdit, last_tokens
from interventions import CLOSE, STEPS, random_maps
from tiny_models import HIDDEN, prompts, tiny
from torch import nn
from transformers import GenerationConfig, GenerationMixin, pipeline
from transformers.generation.stopping_criteria import StoppingCriteria

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import InterventionError, intervene

MAPS = random_maps()
ALIGNMENT = Alignment.from_maps(MAPS)
NAMES = ["llama", "gpt2", "olmo2", "opt-post"]


def hooked(model, inputs, alpha=0.6, where=None):
    edit = HookedEdit(MAPS, alpha, where=last_tokens(inputs["attention_mask"]) if where is None else where)
    with edit.on(model):
        return model(**inputs).logits


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


class Greedy(StoppingCriteria):
    """Never stops; calls something after every step."""

    def __init__(self, action):
        self.action = action

    def __call__(self, input_ids, scores, **kwargs):
        self.action(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def settings(**changes):
    return {"max_new_tokens": STEPS, "do_sample": False, **changes}


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


def test_continuous_batching_is_refused_at_every_door():
    model = tiny("llama")
    saved = model.generate_batch
    with intervene(model, ALIGNMENT, alpha=0.5):
        for door in (model.generate_batch, saved):
            with pytest.raises(InterventionError, match="continuous batching"):
                door([[3, 4, 5]])
        with pytest.raises(InterventionError, match="continuous batching"):
            model.init_continuous_batching()


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


class TestStandIn:
    """A module at a site is the module that it was."""

    @pytest.mark.parametrize("name", NAMES)
    def test_it_is_the_same_object_of_its_class(self, name):
        model = tiny(name)
        modules = dict(model.named_modules())
        classes = {path: type(module) for path, module in modules.items()}
        printed, state = repr(model), list(model.state_dict())
        with intervene(model, ALIGNMENT, alpha=0.6):
            assert dict(model.named_modules()) == modules
            assert all(isinstance(module, classes[path]) for path, module in modules.items())
            assert repr(model) == printed
            assert list(model.state_dict()) == state

    @pytest.mark.parametrize("name", NAMES)
    def test_hooks_put_on_it_see_the_edited_state(self, name):
        model, inputs = tiny(name), prompts((5, 3))

        def keep(module, args, kwargs):
            seen.append((args[0] if args else kwargs["hidden_states"]).clone())

        def run(where):
            seen.clear()
            with where:
                modules = [model.get_submodule(path) for path in tapped]
                handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
                model(**inputs)
            for handle in handles:
                handle.remove()
            return list(seen)

        seen = []
        with intervene(model, ALIGNMENT, alpha=0.6):
            tapped = [
                path
                for path, module in model.named_modules()
                if "_incline_fast_taps" in vars(module) and module._incline_fast_taps.before is not None
            ]
        edit = HookedEdit(MAPS, 0.6, where=last_tokens(inputs["attention_mask"]))
        expected = run(edit.on(model))
        actual = run(intervene(model, ALIGNMENT, alpha=0.6))
        assert len(actual) == len(expected) == len(tapped)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)

    @pytest.mark.parametrize("positions", ["last", "generated"])
    def test_hooks_that_change_its_output_do_so(self, positions):
        model, inputs = tiny("llama"), prompts((5, 3))
        norm = model.model.layers[1].input_layernorm
        with intervene(model, ALIGNMENT, alpha=0.6, positions=positions):
            untouched = model.generate(**inputs, **settings())
            handle = norm.register_forward_hook(lambda module, args, output: output)
            assert torch.equal(model.generate(**inputs, **settings()), untouched)
            handle.remove()
            handle = norm.register_forward_hook(lambda module, args, output: -output)
            touched = model.generate(**inputs, **settings())
        handle.remove()
        norm.register_forward_hook(lambda module, args, output: -output)
        with intervene(model, ALIGNMENT, alpha=0.6, positions=positions):
            assert torch.equal(model.generate(**inputs, **settings()), touched)
        assert not torch.equal(touched, untouched)

    def test_parameters_put_in_its_place(self):
        model, other, inputs = tiny("llama"), tiny("llama"), prompts((5, 3))
        for layer in other.model.layers:
            layer.input_layernorm.weight = nn.Parameter(layer.input_layernorm.weight * 2, requires_grad=False)
        expected = hooked(other, inputs)
        with intervene(model, ALIGNMENT, alpha=0.6):
            for layer in model.model.layers:
                layer.input_layernorm.weight = nn.Parameter(layer.input_layernorm.weight * 2, requires_grad=False)
            torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
        assert torch.equal(model(**inputs).logits, other(**inputs).logits)

    def test_parametrised_norms_are_the_norms_that_they_compute(self):
        class Doubled(nn.Module):
            def forward(self, weight):
                return 2 * weight

        model, other, inputs = tiny("llama"), tiny("llama"), prompts((5, 3))
        for layer, doubled in zip(model.model.layers, other.model.layers, strict=True):
            nn.utils.parametrize.register_parametrization(layer.input_layernorm, "weight", Doubled())
            doubled.input_layernorm.weight = nn.Parameter(doubled.input_layernorm.weight * 2, requires_grad=False)
        expected = hooked(other, inputs)
        with intervene(model, ALIGNMENT, alpha=0.6):
            torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
        assert torch.equal(model(**inputs).logits, other(**inputs).logits)

    def test_a_module_put_on_it_stays(self):
        model, inputs = tiny("llama"), prompts((5, 3))
        with intervene(model, ALIGNMENT, alpha=0.6):
            model.model.norm.extra = nn.Linear(2, 2)
            assert "model.norm.extra.weight" in model.state_dict()
            model(**inputs)
        assert "model.norm.extra.weight" in model.state_dict()


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


class TestThreads:
    @pytest.mark.parametrize("mode", ["online", "clean"])
    @pytest.mark.parametrize("name", ["llama", "olmo2"])
    def test_passes_at_the_same_time(self, name, mode):
        model = tiny(name)
        batches = [
            prompts((7, 4, 1), side="right", seed=1),
            prompts((3, 6, 5), side="left", seed=2),
            prompts((2,), seed=3),
        ]
        with intervene(model, ALIGNMENT, alpha=0.5, mode=mode):
            expected = [model(**inputs).logits for inputs in batches]

            def work(k):
                inputs = batches[k % 3]
                with torch.no_grad():
                    logits = model(**inputs).logits
                real = inputs["attention_mask"].bool()
                return torch.allclose(logits[real], expected[k % 3][real], atol=1e-5)

            with ThreadPoolExecutor(4) as pool:
                assert all(pool.map(work, range(60)))

    def test_generations_at_the_same_time(self):
        model = tiny("llama")
        batches = [prompts((7, 4), seed=1), prompts((3, 6), seed=2), prompts((1,), seed=3)]
        options = [settings(), settings(use_cache=False), settings(num_beams=2)]
        with intervene(model, ALIGNMENT, alpha=0.5):
            expected = [model.generate(**i, **o) for i, o in zip(batches, options, strict=True)]

            def work(k):
                with torch.no_grad():
                    return torch.equal(model.generate(**batches[k % 3], **options[k % 3]), expected[k % 3])

            with ThreadPoolExecutor(4) as pool:
                assert all(pool.map(work, range(24)))

    def test_declared_prompts_are_the_threads_own(self):
        model, inputs = tiny("llama"), prompts((6,))
        last, prefix = inputs["input_ids"][:, -1:], model(inputs["input_ids"][:, :-1]).past_key_values
        plain = model(last, past_key_values=copy.deepcopy(prefix)).logits
        with intervene(model, ALIGNMENT, alpha=0.5) as run:
            run.expect_prompt()
            with ThreadPoolExecutor(1) as pool:
                elsewhere = pool.submit(lambda: model(last, past_key_values=copy.deepcopy(prefix)).logits).result()
            here = model(last, past_key_values=copy.deepcopy(prefix)).logits
        assert torch.equal(elsewhere, plain)
        assert not torch.equal(here, plain)

    def test_leaving_waits_for_a_generation_in_another_thread(self):
        model, inputs = tiny("llama"), prompts((6,))
        plain = model.generate(**inputs, **settings())
        with intervene(model, ALIGNMENT, alpha=0.5):
            edited = model.generate(**inputs, **settings())
        begun, out = threading.Event(), []

        def go():
            slow = Greedy(lambda ids: (begun.set(), gate.wait(0.02)))
            out.append(model.generate(**inputs, **settings(), stopping_criteria=[slow]))

        gate = threading.Event()
        thread = threading.Thread(target=go)
        with intervene(model, ALIGNMENT, alpha=0.5):
            thread.start()
            begun.wait(30)
        # Whoever is here has left the block: nothing of it is at work any more.
        assert torch.equal(model.generate(**inputs, **settings()), plain)
        thread.join()
        assert torch.equal(out[0], edited)

    def test_what_begins_while_a_block_is_left_is_plain(self):
        model, inputs = tiny("llama"), prompts((6,))
        plain = model.generate(**inputs, **settings())
        inside, leaving, out = threading.Event(), threading.Event(), {}

        def first():
            slow = Greedy(lambda ids: (inside.set(), leaving.wait(30)))
            out["first"] = model.generate(**inputs, **settings(), stopping_criteria=[slow])

        def second():
            out["second"] = model.generate(**inputs, **settings())

        threads = [threading.Thread(target=first), threading.Thread(target=second)]
        run = intervene(model, ALIGNMENT, alpha=0.5).__enter__()
        edited = model.generate(**inputs, **settings())
        threads[0].start()
        inside.wait(30)
        exit = threading.Thread(target=run.__exit__, args=(None, None, None))
        exit.start()
        while run._calls is not None and run._calls.at_work._open:
            pass
        threads[1].start()
        leaving.set()
        for thread in (*threads, exit):
            thread.join(30)
        assert torch.equal(out["first"], edited)
        assert torch.equal(out["second"], plain)

    def test_leaving_inside_a_generation_of_the_same_thread_is_refused(self):
        model, inputs = tiny("llama"), prompts((6,))
        plain, classes = model(**inputs).logits, [type(module) for module in model.modules()]
        run = intervene(model, ALIGNMENT, alpha=0.5).__enter__()
        edited = model.generate(**inputs, **settings())
        errors = []

        def leave(ids):
            if not errors:
                with pytest.raises(InterventionError, match="left inside a forward pass or generate") as caught:
                    run.__exit__(None, None, None)
                errors.append(caught)

        assert torch.equal(model.generate(**inputs, **settings(), stopping_criteria=[Greedy(leave)]), edited)
        assert errors
        assert torch.equal(model(**inputs).logits, plain)
        assert [type(module) for module in model.modules()] == classes

    def test_only_one_of_many_threads_enters(self):
        model = tiny("llama")
        barrier, entered = threading.Barrier(4), []

        def enter():
            run = intervene(model, ALIGNMENT, alpha=0.5)
            barrier.wait()
            try:
                run.__enter__()
            except InterventionError:
                return
            entered.append(run)

        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(entered) == 1
        entered[0].__exit__(None, None, None)


def test_nothing_is_kept_alive():
    model = tiny("llama")
    alignment = Alignment.from_maps(random_maps())
    with intervene(model, alignment, alpha=0.5) as run:
        model(**prompts((4,)))
    gone = [weakref.ref(model), weakref.ref(model.model.norm), weakref.ref(run)]
    del model, run
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
