"""Continuous batching gives each request the tokens that generate gives it alone, whatever shares its passes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from doors import ALIGNMENT
from interventions import random_bias, random_maps
from tiny_models import BOS, VOCAB, tiny
from transformers import GenerationConfig
from transformers.generation.configuration_utils import CompileConfig, ContinuousBatchingConfig

from incline_fast import NonFiniteStateError
from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import InterventionError, intervene

STEPS = 5


def random_prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


# Longer than a pass, shorter, of one token; all of them are more than a pass takes.
PROMPTS = random_prompts((7, 2, 1, 12, 3, 5, 6))
ROOM = {"page_size": 4, "num_blocks": 64, "max_batch_tokens": 6}


def generation(**settings):
    settings = {"do_sample": False, **settings}
    return GenerationConfig(max_new_tokens=STEPS, eos_token_id=-1, pad_token_id=0, **settings)


def together(model, prompts, method=None, room=ROOM, settings=None, **more):
    config = ContinuousBatchingConfig(**room)
    outputs = (method or model.generate_batch)(
        prompts, generation_config=generation(**settings or {}), continuous_batching_config=config, **more
    )
    assert [output.error for output in outputs.values()] == [None] * len(outputs)
    return [output.generated_tokens for output in outputs.values()]


def one_by_one(model, prompts):
    found = []
    for prompt in prompts:
        tokens = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
                                max_new_tokens=STEPS, do_sample=False, pad_token_id=0)  # fmt: skip
        found.append(tokens[0, len(prompt) :].tolist())
    return found


class Watch:
    """The pieces of requests in every pass: (tokens before them, tokens)."""

    def __init__(self, model):
        self.passes = []
        self._handle = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        ends = kwargs["cu_seq_lens_q"].tolist()
        positions = kwargs["position_ids"][0].tolist()
        self.passes.append([(positions[start], end - start) for start, end in pairwise(ends)])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._handle.remove()


@pytest.mark.parametrize("positions", ["last", "generated", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2", "olmo2"])
def test_requests_are_answered_as_they_are_alone(name, positions):
    model = tiny(name)
    plain = together(model, PROMPTS)
    with intervene(model, ALIGNMENT, alpha=0.6, positions=positions):
        expected = one_by_one(model, PROMPTS)
        with Watch(model) as watch:
            assert together(model, PROMPTS) == expected
    assert expected != plain == together(model, PROMPTS) == one_by_one(model, PROMPTS)
    # A prompt in pieces, the last of them a single token or not; pieces beside decode steps.
    assert any(before and tokens > 1 for one in watch.passes for before, tokens in one)
    assert any(len({tokens > 1 for _, tokens in one}) == 2 for one in watch.passes)


@pytest.mark.parametrize("form", ["add", "interpolate"])
def test_a_strength_per_request(form):
    model = tiny("llama")
    alignment = Alignment.from_maps(random_maps(), bias=random_bias(), form=form)
    alpha = torch.tensor([0.6, 0.0, 0.3, 0.5, 0.0, 0.2, 0.9])
    expected = []
    for prompt, value in zip(PROMPTS, alpha.tolist(), strict=True):
        with intervene(model, alignment, alpha=value):
            expected += one_by_one(model, [prompt])
    with intervene(model, alignment, alpha=alpha):
        assert together(model, PROMPTS) == expected
        with pytest.raises(ValueError, match="alpha has 7 values; this batch has 6 requests"):
            together(model, PROMPTS[1:])


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_a_language_per_request(positions):
    model = tiny("llama")
    languages = ["de", None, "fr", "fr", "de", None, "de"]
    alignments = {"de": ALIGNMENT, "fr": Alignment.from_maps(random_maps(7), bias=random_bias(), form="interpolate")}
    expected = []
    for prompt, language in zip(PROMPTS, languages, strict=True):
        with intervene(model, alignments.get(language, ALIGNMENT), alpha=0.5 if language else 0.0, positions=positions):
            expected += one_by_one(model, [prompt])
    with intervene(model, alignments, alpha=0.5, languages=languages, positions=positions) as run:
        assert together(model, PROMPTS) == expected
        run.languages = languages[::-1]
        assert together(model, PROMPTS[::-1]) == expected[::-1]
        with pytest.raises(ValueError, match="languages has 7 values; this batch has 1 requests"):
            together(model, PROMPTS[:1])


def test_a_prompt_that_begins_like_another_one():
    """Whole pages of the shorter one would otherwise serve the longer one, with the edited token in them."""
    model = tiny("llama")
    (long,) = random_prompts((16,), seed=3)
    prompts = [long[:8], long, long[:12], long[:8]]
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected = one_by_one(model, prompts)
        assert together(model, prompts, room=ROOM | {"max_batch_tokens": 8}) == expected
        assert together(model, prompts, room=ROOM | {"max_batch_tokens": 64}) == expected


def test_requests_that_are_run_again_for_want_of_memory():
    model = tiny("llama")
    room = {"page_size": 4, "num_blocks": 7, "max_batch_tokens": 16, "safety_margin": 0.0}
    prompts = random_prompts((8, 7, 6, 5), seed=2)
    alpha = torch.tensor([0.6, 0.2, 0.0, 0.4])
    expected = []
    for prompt, value in zip(prompts, alpha.tolist(), strict=True):
        with intervene(model, ALIGNMENT, alpha=value, positions="generated"):
            expected += one_by_one(model, [prompt])
    with intervene(model, ALIGNMENT, alpha=alpha, positions="generated"), Watch(model) as watch:
        assert together(model, prompts, room=room) == expected
    begun = [tokens for one in watch.passes for before, tokens in one if before == 0]
    assert len(begun) > len(prompts)
    assert max(begun) > max(map(len, prompts))  # with its answer behind it


def test_several_answers_of_one_request():
    model = tiny("llama")
    alpha = torch.tensor([0.6, 0.0, 0.3, 0.5, 0.0, 0.2, 0.9])
    with intervene(model, ALIGNMENT, alpha=alpha):
        expected = together(model, PROMPTS)
        several = {"num_return_sequences": 2, "do_sample": True, "top_k": 1}  # of the likeliest token alone
        found = together(model, PROMPTS, settings=several)
    assert found == [tokens for tokens in expected for _ in range(2)]


def test_bos_alone_is_not_edited():
    model = tiny("llama")
    prompts = [[BOS], [BOS, BOS], [BOS, 5]]
    plain = one_by_one(model, prompts)
    with intervene(model, ALIGNMENT, alpha=0.6):
        found = together(model, prompts)
        assert found == one_by_one(model, prompts)
    assert found[:2] == plain[:2]


def test_a_method_saved_before():
    model = tiny("llama")
    saved = model.generate_batch
    with intervene(model, ALIGNMENT, alpha=0.6):
        assert together(model, PROMPTS, method=saved) == one_by_one(model, PROMPTS)
    assert together(model, PROMPTS, method=saved) == one_by_one(model, PROMPTS)


def adapted(model):
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**options)).eval()


@pytest.mark.parametrize("change", [adapted, lambda model: torch.compile(model, backend="eager")])
def test_adapted_and_compiled_models(change):
    inner = tiny("llama")
    model = change(inner)
    plain = together(model, PROMPTS)
    with intervene(model, ALIGNMENT, alpha=0.6):
        found = together(model, PROMPTS)
    with torch.no_grad(), intervene(inner, ALIGNMENT, alpha=0.6):
        assert found == one_by_one(inner, PROMPTS)
    assert found != plain == together(model, PROMPTS)


@pytest.mark.parametrize("named", [False, True])
def test_requests_that_are_added_one_by_one(named):
    model = tiny("llama")
    alpha = torch.tensor([0.6, 0.0, 0.3])
    with intervene(model, ALIGNMENT, alpha=alpha):
        expected = together(model, PROMPTS[:3])
        options = {"generation_config": generation(), "continuous_batching_config": ContinuousBatchingConfig(**ROOM)}
        with model.continuous_batching_context_manager(**options) as manager:
            found = {}
            for number, prompt in enumerate(PROMPTS[:3]):
                name = manager.add_request(prompt, request_id=f"mine {number}" if named else None)
                while name not in found:
                    result = manager.get_result(timeout=1)
                    found |= {result.request_id: result.generated_tokens} if result else {}
            with pytest.raises(ValueError, match="alpha has 3 values; this is request 4"):
                manager.add_request(PROMPTS[3])
    assert list(found.values()) == expected


def test_states_that_are_not_finite_are_reported():
    model = tiny("llama")
    with intervene(model, ALIGNMENT, alpha=1e30, check_finite=True), pytest.raises(NonFiniteStateError, match="site"):
        together(model, PROMPTS)


def test_growth_is_measured():
    model = tiny("llama")
    with intervene(model, ALIGNMENT, alpha=0.6, check_finite=True) as run:
        together(model, PROMPTS)
        found = dict(run.max_abs)
    with intervene(model, ALIGNMENT, alpha=0.6, check_finite=True) as run:
        one_by_one(model, PROMPTS)
        assert found == pytest.approx(run.max_abs, rel=1e-4)


@pytest.mark.parametrize(
    ("room", "more", "message"),
    [
        ({"use_cuda_graph": True}, {}, "use_cuda_graph=True runs passes"),
        ({"use_cuda_graph": (False, True)}, {}, r"use_cuda_graph=\(False, True\)"),
        ({"use_async_batching": True}, {}, "use_async_batching=True"),
        ({"varlen_compile_config": CompileConfig()}, {}, "varlen_compile_config="),
        ({"default_compile_level": 1}, {}, "default_compile_level=1"),
        ({}, {"persistent_manager": True}, "leave persistent_manager out"),
    ],
)
def test_what_cannot_be_edited_is_refused(room, more, message):
    model = tiny("llama")
    plain = together(model, PROMPTS)
    with intervene(model, ALIGNMENT, alpha=0.6), pytest.raises(InterventionError, match=message):
        together(model, PROMPTS, room=ROOM | room, **more)
    assert together(model, PROMPTS) == plain


def test_what_would_outlive_the_block_is_refused():
    model = tiny("llama")
    with intervene(model, ALIGNMENT, alpha=0.6):
        with pytest.raises(InterventionError, match=r"init_continuous_batching makes a manager .*use generate_batch"):
            model.init_continuous_batching()
        with (
            pytest.raises(InterventionError, match="block=False leaves requests at work"),
            model.continuous_batching_context_manager(block=False),
        ):
            pass
    together(model, PROMPTS, persistent_manager=True)
    with intervene(model, ALIGNMENT, alpha=0.6), pytest.raises(InterventionError, match="destroy_cached"):
        together(model, PROMPTS)
    model.destroy_cached_continuous_batching_manager()
    with intervene(model, ALIGNMENT, alpha=0.6):
        together(model, PROMPTS)


def test_clean_mode_is_refused():
    model = tiny("llama")
    with (
        intervene(model, ALIGNMENT, alpha=0.6, mode="clean"),
        pytest.raises(InterventionError, match="use mode='online'"),
    ):
        together(model, PROMPTS)


def test_a_manager_that_was_at_work_before_is_refused():
    model = tiny("llama")
    options = {"generation_config": generation(), "continuous_batching_config": ContinuousBatchingConfig(**ROOM)}
    with model.continuous_batching_context_manager(**options) as manager:
        with intervene(model, ALIGNMENT, alpha=0.6):
            manager.add_request(PROMPTS[0])
            result = manager.get_result(timeout=20)
        assert "made outside the intervention" in result.error
