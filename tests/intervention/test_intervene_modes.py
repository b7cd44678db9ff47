"""Ways of calling a model under intervention: batches, caches, beams, sampling, strengths per row."""

from __future__ import annotations

import copy

import pytest
import torch
from hook_reference import HookedEdit, cache_tensors, greedy, last_column_of_prompts, last_tokens, record
from interventions import CLOSE, STEPS, generate, random_bias, random_maps
from tiny_models import BOS, CONFIGS, HIDDEN, LAYERS, VOCAB, prompts, tiny
from transformers import DynamicCache, StaticCache

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import intervene
from incline_fast.maps import AffineMap

MAPS = random_maps()
ALIGNMENT = Alignment.from_maps(MAPS)
MODES = ["online", "clean"]
SOME = ["llama", "gemma3", "bloom", "opt", "olmo2"]


def alone(inputs, row):
    """One prompt without its padding."""
    real = inputs["attention_mask"][row].bool()
    return {"input_ids": inputs["input_ids"][row][real][None], "attention_mask": real[real].long()[None]}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_gives_the_same_tokens_alone_and_in_a_batch(name, mode):
    model, inputs = tiny(name), prompts((7, 4, 1))
    with intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
        together, _ = generate(model, inputs)
        singles = [generate(model, alone(inputs, row))[0][0] for row in range(3)]
    assert torch.equal(together, torch.stack(singles))


@pytest.mark.parametrize("mode", MODES)
def test_one_token_prompts(mode):
    model, inputs = tiny("llama"), prompts((1, 1))
    expected, logits, _ = greedy(model, HookedEdit(MAPS, 0.6, recorded={} if mode == "clean" else None), inputs, STEPS)
    with intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
        tokens, out = generate(model, inputs)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(out.logits[0], logits[:, -1], **CLOSE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rest", [1, 3])
@pytest.mark.parametrize("name", SOME)
def test_past_key_values_passed_in(name, rest, mode):
    """A prefix in the cache, then the rest of the prompt: as the whole prompt at once, in generate and outside."""
    model, inputs = tiny(name), prompts((8, 8))
    ids = inputs["input_ids"]
    with intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
        expected, _ = generate(model, inputs)
        expected_logits = model(**inputs).logits[:, -1]
    prefix = model(ids[:, :-rest], use_cache=True).past_key_values
    with intervene(model, ALIGNMENT, alpha=0.6, mode=mode) as run:
        tokens, _ = generate(model, inputs, past_key_values=copy.deepcopy(prefix))
        run.expect_prompt()
        logits = model(ids[:, -rest:], past_key_values=copy.deepcopy(prefix)).logits[:, -1]
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logits, expected_logits, **CLOSE)


def test_one_token_after_a_cache_is_a_decode_step_unless_declared():
    model, inputs = tiny("llama"), prompts((6,))
    prefix = model(inputs["input_ids"][:, :-1]).past_key_values
    last = inputs["input_ids"][:, -1:]
    plain = model(last, past_key_values=copy.deepcopy(prefix)).logits
    with intervene(model, ALIGNMENT, alpha=0.6) as run:
        decoded = model(last, past_key_values=copy.deepcopy(prefix)).logits
        run.expect_prompt()
        declared = model(last, past_key_values=copy.deepcopy(prefix)).logits
        again = model(last, past_key_values=copy.deepcopy(prefix)).logits
    assert torch.equal(decoded, plain)
    assert torch.equal(again, plain), "the declaration holds for one pass"
    assert (declared - plain).abs().max() > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_a_sweep_over_alpha_is_one_step_over_a_shared_prefix(mode):
    model, inputs = tiny("gemma3"), prompts((7,))
    alphas = torch.tensor([-0.5, 0.0, 0.3, 1.0])
    singles = []
    for alpha in alphas.tolist():
        with intervene(model, ALIGNMENT, alpha=alpha, mode=mode):
            singles.append(model(**inputs).logits[0, -1])
    cache = model(inputs["input_ids"][:, :-1]).past_key_values
    cache.batch_repeat_interleave(len(alphas))
    with intervene(model, ALIGNMENT, alpha=alphas, mode=mode) as run:
        run.expect_prompt()
        logits = model(inputs["input_ids"][:, -1:].expand(len(alphas), 1), past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(logits, torch.stack(singles), **CLOSE)


@pytest.mark.parametrize("form", ["add", "interpolate"])
@pytest.mark.parametrize("mode", MODES)
def test_alpha_per_row(mode, form):
    model, inputs = tiny("llama"), prompts((7, 4, 3))
    alphas = torch.tensor([0.9, 0.0, -0.4])
    alignment = Alignment.from_maps(MAPS, bias=random_bias(), form=form)
    with intervene(model, alignment, alpha=alphas, mode=mode):
        tokens, out = generate(model, inputs)
    for row, alpha in enumerate(alphas.tolist()):
        with intervene(model, alignment, alpha=alpha, mode=mode):
            expected, single = generate(model, alone(inputs, row))
        assert torch.equal(tokens[row], expected[0])
        torch.testing.assert_close(out.logits[0][row], single.logits[0][0], **CLOSE)


@pytest.mark.parametrize("positions", ["last", "generated", "all"])
@pytest.mark.parametrize("name", CONFIGS)
def test_alpha_zero_leaves_the_bits_alone(name, positions):
    model, inputs = tiny(name), prompts()
    tokens, plain = generate(model, inputs)
    for alpha in (0.0, torch.zeros(3), dict.fromkeys(MAPS, 0)):
        with intervene(model, ALIGNMENT, alpha=alpha, positions=positions):
            same_tokens, out = generate(model, inputs)
        assert torch.equal(same_tokens, tokens)
        assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))


def test_rows_with_alpha_zero_leave_their_bits_alone():
    model, inputs = tiny("llama"), prompts((5, 5, 5))
    plain = model(**inputs).logits[:, -1]
    for mode in MODES:
        with intervene(model, ALIGNMENT, alpha=torch.tensor([0.0, 0.5, 0.0]), mode=mode):
            logits = model(**inputs).logits[:, -1]
        close = {"rtol": 0, "atol": 0} if mode == "online" else CLOSE  # clean mode runs the last token by itself
        torch.testing.assert_close(logits[[0, 2]], plain[[0, 2]], **close)
        assert (logits[1] - plain[1]).abs().max() > 1e-2


@pytest.mark.parametrize(("positions", "mode"), [("last", "online"), ("generated", "online"), ("last", "clean")])
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beam_search(settings, positions, mode):
    model, inputs = tiny("llama"), prompts((6, 6))

    def where(states):
        return last_column_of_prompts(states) or ([(r, 0) for r in range(len(states))] if positions != "last" else [])

    edit = HookedEdit(MAPS, 0.4, where=where)
    if mode == "clean":
        states = record(model, LAYERS + 1, **inputs)
        edit.recorded = {site: h.repeat_interleave(3, 0) for site, h in states.items()}
    with edit.on(model):
        expected, _ = generate(model, inputs, **settings)
    with intervene(model, ALIGNMENT, alpha=0.4, positions=positions, mode=mode) as run:
        tokens = run.generate(**inputs, max_new_tokens=STEPS, do_sample=False, **settings)[:, 6:]
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_alpha_per_row_follows_its_prompt_through_beams(positions):
    model, inputs = tiny("llama"), prompts((6, 5))
    with intervene(model, ALIGNMENT, alpha=torch.tensor([0.7, -0.3]), positions=positions):
        tokens, _ = generate(model, inputs, num_beams=2, num_return_sequences=2)
    for row, alpha in enumerate((0.7, -0.3)):
        with intervene(model, ALIGNMENT, alpha=alpha, positions=positions):
            single, _ = generate(model, alone(inputs, row), num_beams=2, num_return_sequences=2)
        assert torch.equal(tokens[2 * row : 2 * row + 2], single)


def test_sampling_with_a_seed():
    model, inputs = tiny("llama"), prompts((6, 6))
    edit = HookedEdit(MAPS, 0.5, where=last_column_of_prompts)
    settings = {"do_sample": True, "top_k": 20, "temperature": 1.3, "num_return_sequences": 2}
    torch.manual_seed(11)
    with edit.on(model):
        expected, _ = generate(model, inputs, **settings)
    torch.manual_seed(11)
    with intervene(model, ALIGNMENT, alpha=0.5):
        tokens, _ = generate(model, inputs, **settings)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("positions", "mode"), [("last", "online"), ("generated", "online"), ("all", "online"), ("last", "clean")]
)
@pytest.mark.parametrize("name", SOME)
def test_generation_without_a_cache(name, positions, mode):
    model, inputs = tiny(name), prompts((6, 3))
    with intervene(model, ALIGNMENT, alpha=0.3, positions=positions, mode=mode):
        expected, _ = generate(model, inputs)
        tokens, _ = generate(model, inputs, use_cache=False)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("positions", "mode"), [("last", "online"), ("generated", "online"), ("all", "online"), ("last", "clean")]
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_static_cache(name, positions, mode):
    """Its masks are prepared, and those of windows of 4 tokens hide the beginning of the prompt."""
    model, inputs = tiny(name), prompts((7, 4, 1))
    with intervene(model, ALIGNMENT, alpha=0.3, positions=positions, mode=mode):
        expected, _ = generate(model, inputs)
        tokens, _ = generate(model, inputs, cache_implementation="static")
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_embeddings_as_input_are_not_changed(name, mode):
    model, inputs = tiny(name), prompts((6, 4))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    before = embeds.clone()
    with intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
        expected = model(**inputs).logits[:, -1]
        actual = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits[:, -1]
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert torch.equal(embeds, before)


@pytest.mark.parametrize("mode", MODES)
def test_generation_from_embeddings(mode):
    model, inputs = tiny("llama"), prompts((6, 4))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
        expected, _ = generate(model, inputs)
        mask = inputs["attention_mask"]
        tokens = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(tokens, expected)


def test_turns_of_a_conversation_over_one_cache():
    """Each generate has its own last prompt token, also when it goes on with the cache of the one before."""
    model, first, second = tiny("llama"), prompts((5,))["input_ids"], prompts((3,), seed=4)["input_ids"]
    edit = HookedEdit(MAPS, 0.5, where=last_column_of_prompts)

    def converse():
        out = model.generate(first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, second], dim=1)
        return model.generate(ids, past_key_values=out.past_key_values, max_new_tokens=3, do_sample=False)

    with edit.on(model):
        expected = converse()
    with intervene(model, ALIGNMENT, alpha=0.5):
        assert torch.equal(converse(), expected)


@pytest.mark.parametrize("positions", ["last", "generated", "all"])
def test_bos_is_never_edited(positions):
    model, inputs = tiny("llama"), prompts((6, 4, 1))
    first = inputs["attention_mask"].argmax(1)
    inputs["input_ids"][torch.arange(3), first] = BOS
    plain = model(**inputs)
    with intervene(model, ALIGNMENT, alpha=0.6, positions=positions):
        edited = model(**inputs)
    for a, b in zip(cache_tensors(edited.past_key_values), cache_tensors(plain.past_key_values), strict=True):
        rows = torch.arange(3)
        assert torch.equal(a[rows, :, first], b[rows, :, first])
    assert torch.equal(edited.logits[2], plain.logits[2]), "a prompt of BOS alone has nothing to edit"
    assert not torch.equal(edited.logits[0, -1], plain.logits[0, -1])


def test_low_rank_maps_of_any_dtype():
    generator = torch.Generator().manual_seed(3)
    down = {site: torch.randn(5, HIDDEN, generator=generator) / HIDDEN**0.5 for site in MAPS}
    up = {site: torch.randn(HIDDEN, 5, generator=generator) / 5**0.5 for site in MAPS}
    dense = {site: up[site] @ down[site] for site in MAPS}
    model, inputs = tiny("llama"), prompts()
    edit = HookedEdit(dense, 0.6, where=last_tokens(inputs["attention_mask"]))
    with edit.on(model):
        expected = model(**inputs).logits
    for dtype in (torch.float32, torch.float64):
        maps = {site: AffineMap.low_rank(down[site], up[site]).to(dtype) for site in MAPS}
        with intervene(model, Alignment.from_maps(maps), alpha=0.6):
            torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)


# RMSNorms of transformers compute in fp32 even in a model of fp64; the edited rows do not.
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("gpt2", torch.float64, 1e-12),
        ("llama", torch.float64, 1e-6),
        ("opt-post", torch.float64, 1e-12),
        ("gpt2", torch.bfloat16, 6e-2),
        ("llama", torch.bfloat16, 6e-2),
        ("gemma3", torch.bfloat16, 6e-2),
    ],
)
def test_other_dtypes_of_the_model(name, dtype, tolerance):
    model, inputs = tiny(name).to(dtype), prompts((7, 5))
    edit = HookedEdit(MAPS, 0.4, where=last_tokens(inputs["attention_mask"]))
    with edit.on(model):
        expected = model(**inputs).logits[:, -1]
    with intervene(model, ALIGNMENT, alpha=0.4):
        actual = model(**inputs).logits[:, -1]
    assert actual.dtype == dtype
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < tolerance


@pytest.mark.parametrize("mode", MODES)
def test_hidden_states_are_those_of_the_edited_run(mode):
    model, inputs = tiny("llama"), prompts((6, 4))
    edit = HookedEdit(MAPS, 0.6, where=last_tokens(inputs["attention_mask"]))
    if mode == "clean":
        edit.recorded = record(model, LAYERS + 1, **inputs)
    with edit.on(model):
        last = model.model(**inputs).last_hidden_state
    with intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
        actual = model(**inputs, output_hidden_states=True).hidden_states
    real = inputs["attention_mask"].bool()
    assert len(actual) == LAYERS + 1
    for site in range(LAYERS):
        torch.testing.assert_close(actual[site][real], edit.seen[site][real], **CLOSE)
    torch.testing.assert_close(actual[-1][real], last[real], **CLOSE)


def test_the_backbone_can_be_called_alone_or_edited_alone():
    model, inputs = tiny("llama"), prompts()
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected = model(**inputs).logits
        states = model.model(**inputs).last_hidden_state
    torch.testing.assert_close(model.lm_head(states), expected, rtol=0, atol=0)
    with intervene(model.model, ALIGNMENT, alpha=0.6):
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)


def test_positional_arguments_and_tuples():
    model, inputs = tiny("llama"), prompts()
    for mode in MODES:
        with intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
            expected = model(**inputs).logits
            actual = model(inputs["input_ids"], inputs["attention_mask"], return_dict=False)
            states = model.model(inputs["input_ids"], inputs["attention_mask"], return_dict=False)
        assert torch.equal(actual[0], expected)
        assert torch.equal(model.lm_head(states[0]), expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_clean_mode_returns_a_cache_only_when_asked(use_cache):
    model, inputs = tiny("llama"), prompts()
    with intervene(model, ALIGNMENT, alpha=0.6, mode="clean"):
        out = model(**inputs, use_cache=use_cache)
    assert (out.past_key_values is not None) == use_cache


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_clean_mode_leaves_one_entry_per_token_in_a_cache_passed_in(cache):
    model, inputs = tiny("llama"), prompts((7, 7))
    given = cache(config=model.config, **({"max_cache_len": 12} if cache is StaticCache else {}))
    with intervene(model, ALIGNMENT, alpha=0.6, mode="clean"):
        expected = model(**inputs)
        actual = model(**inputs, past_key_values=given)
    assert int(given.get_seq_length()) == 7
    torch.testing.assert_close(actual.logits, expected.logits, **CLOSE)
    for a, b in zip(cache_tensors(given), cache_tensors(expected.past_key_values), strict=True):
        torch.testing.assert_close(a[:, :, :7], b, **CLOSE)


def test_inference_mode():
    model, inputs = tiny("llama"), prompts()
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected = model(**inputs).logits
        with torch.inference_mode():
            assert torch.equal(model(**inputs).logits, expected)


def test_padding_alone_is_a_row_without_edit():
    model = tiny("llama")
    ids = torch.randint(3, VOCAB, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 5, [0] * 5])
    plain = model(input_ids=ids, attention_mask=mask).past_key_values
    with intervene(model, ALIGNMENT, alpha=0.6):
        edited = model(input_ids=ids, attention_mask=mask).past_key_values
    for a, b in zip(cache_tensors(edited), cache_tensors(plain), strict=True):
        assert torch.equal(a[1], b[1])
