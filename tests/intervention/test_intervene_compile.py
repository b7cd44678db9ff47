"""torch.compile around and inside an intervention: the bookkeeping stays outside the graph, the edits inside."""

from __future__ import annotations

import pytest
import torch
from interventions import CLOSE, generate, random_maps
from tiny_models import prompts, tiny
from torch._dynamo.testing import CompileCounterWithBackend

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import intervene

ALIGNMENT = Alignment.from_maps({site: random_maps()[site] for site in (0, 1)})


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def shallow(name="llama"):
    """One block: an embedding, a block and a final norm compile quickly and hold every kind of site."""
    return tiny(name, num_hidden_layers=1)


def eager(model, inputs, **settings):
    with intervene(model, ALIGNMENT, **settings):
        return model(**inputs).logits


PER_ROW = torch.tensor([0.6, 0.0, -0.2])


@pytest.mark.parametrize(
    ("name", "alpha", "side"), [("llama", 0.6, "left"), ("llama", PER_ROW, "right"), ("olmo2", 0.6, "right")]
)
def test_a_compiled_model_is_one_graph(name, alpha, side):
    model, inputs = shallow(name), prompts(side=side)
    expected, plain = eager(model, inputs, alpha=alpha), model(**inputs).logits
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with intervene(compiled, ALIGNMENT, alpha=alpha):
        torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)
        torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)
    assert counter.frame_count == 1
    torch.testing.assert_close(compiled(**inputs).logits, plain, **CLOSE)


def test_inductor():
    model, inputs = shallow(), prompts()
    expected = eager(model, inputs, alpha=0.6)
    compiled = torch.compile(model, fullgraph=True)
    with intervene(compiled, ALIGNMENT, alpha=0.6):
        torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def test_prompts_and_decode_steps_of_a_compiled_model():
    model, inputs = shallow(), prompts((6, 6))
    ids = inputs["input_ids"]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with intervene(model, ALIGNMENT, alpha=0.6, positions="generated"):
        first = model(ids)
        expected = model(ids[:, :1], past_key_values=first.past_key_values).logits
    with intervene(compiled, ALIGNMENT, alpha=0.6, positions="generated"):
        first = compiled(ids)
        actual = compiled(ids[:, :1], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(actual, expected, **CLOSE)


def test_alpha_of_one_run_does_not_reach_the_next():
    model, inputs = shallow(), prompts()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for alpha in (0.2, -0.3):
        expected = eager(model, inputs, alpha=alpha)
        with intervene(compiled, ALIGNMENT, alpha=alpha):
            torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)


@pytest.mark.parametrize("mode", ["online", "clean"])
def test_compiling_inside_the_intervention(mode):
    model, inputs = shallow(), prompts()
    expected = eager(model, inputs, alpha=0.6, mode=mode)
    with intervene(model, ALIGNMENT, alpha=0.6, mode=mode):
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)


def test_clean_mode_of_a_compiled_model():
    model, inputs = shallow(), prompts()
    expected = eager(model, inputs, alpha=0.6, mode="clean")
    compiled = torch.compile(model, backend="aot_eager")
    with intervene(compiled, ALIGNMENT, alpha=0.6, mode="clean"):
        torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)


def test_clean_mode_of_a_compiled_backbone_runs_the_last_token_twice():
    model, inputs = shallow(), prompts()
    expected = eager(model, inputs, alpha=0.6, mode="clean")
    model.model.compile(backend="aot_eager")
    lengths = []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    with intervene(model, ALIGNMENT, alpha=0.6, mode="clean"):
        torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
    assert lengths == [6, 1, 1]


@pytest.mark.parametrize("where", ["call", "forward", "backbone"])
def test_other_ways_of_compiling(where):
    model, inputs = shallow(), prompts()
    expected = eager(model, inputs, alpha=0.6)
    tokens, _ = generate(model, inputs, steps=2)
    with intervene(model, ALIGNMENT, alpha=0.6):
        edited_tokens, _ = generate(model, inputs, steps=2)
    counter = CompileCounterWithBackend("aot_eager")
    if where == "call":
        model.compile(backend=counter, fullgraph=True)
    elif where == "forward":
        model.forward = torch.compile(model.forward, backend=counter, fullgraph=True)
    else:
        model.model = torch.compile(model.model, backend=counter, fullgraph=True)
    with intervene(model, ALIGNMENT, alpha=0.6):
        torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
        assert torch.equal(generate(model, inputs, steps=2)[0], edited_tokens)
    assert torch.equal(generate(model, inputs, steps=2)[0], tokens)
    assert counter.frame_count > 0


def test_generate_of_a_compiled_model():
    model, inputs = shallow(), prompts()
    with intervene(model, ALIGNMENT, alpha=0.6):
        expected, _ = generate(model, inputs)
    compiled = torch.compile(model, backend="aot_eager")
    with intervene(compiled, ALIGNMENT, alpha=0.6) as run:
        assert torch.equal(generate(compiled, inputs)[0], expected)
        assert torch.equal(run.generate(**inputs, max_new_tokens=5, do_sample=False)[:, 7:], expected)


def test_check_finite_of_a_compiled_model():
    model, inputs = shallow(), prompts()
    with intervene(model, ALIGNMENT, alpha=0.6, check_finite=True) as run:
        model(**inputs)
    expected = run.max_abs
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with intervene(compiled, ALIGNMENT, alpha=0.6, check_finite=True) as run:
        compiled(**inputs)
    assert run.max_abs == pytest.approx(expected, rel=1e-5)


def test_another_strength_or_alignment_compiles_nothing_anew():
    model, inputs = shallow(), prompts()
    other = Alignment.from_maps({site: random_maps(7)[site] for site in (0, 1)})
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for alignment, alpha in ((ALIGNMENT, 0.2), (ALIGNMENT, -0.3), (other, 0.5), (other, 0.7)):
        with intervene(model, alignment, alpha=alpha):
            expected = model(**inputs).logits
        with intervene(compiled, alignment, alpha=alpha):
            torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)
    assert counter.frame_count == 1


def test_other_languages_and_their_strengths_compile_nothing_anew():
    model, inputs = shallow(), prompts()
    other = Alignment.from_maps({site: random_maps(7)[site] for site in (0, 1)}, form="interpolate")
    both = {"fr": ALIGNMENT, "sw": other}
    batches = (["fr", "sw", None], ["sw", "sw", "fr"], [None, None, "fr"])
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for alpha in (0.3, {"fr": 0.2, "sw": 0.6}):
        with intervene(model, both, languages=batches[0], alpha=alpha) as plain:
            expected = []
            for languages in batches:
                plain.languages = languages
                expected.append(model(**inputs).logits)
        with intervene(compiled, both, languages=batches[0], alpha=alpha) as edited:
            for languages, logits in zip(batches, expected, strict=True):
                edited.languages = languages
                torch.testing.assert_close(compiled(**inputs).logits, logits, **CLOSE)
    assert counter.frame_count == 1
