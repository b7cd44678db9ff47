"""A strength of its own for every row at every site: each row as it would be alone with its numbers."""

from __future__ import annotations

import pytest
import torch
from hook_reference import cache_tensors
from interventions import CLOSE, STEPS, generate, random_bias, random_maps
from tiny_models import prompts, tiny

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import NonFiniteStateError, intervene

MAPS = Alignment.from_maps(random_maps(1), bias=random_bias(), form="interpolate")
ADDED = Alignment.from_maps(random_maps(2))
ALPHA = {0: [0.0, 0.2, 0.3], 1: 0.4, 3: torch.tensor([0.5, 0.0, 0.1])}


def of_row(row):
    return {site: value if isinstance(value, float) else float(value[row]) for site, value in ALPHA.items()}


def alone(inputs, row):
    real = inputs["attention_mask"][row].bool()
    return {"input_ids": inputs["input_ids"][row][real][None], "attention_mask": real[real].long()[None]}


@pytest.mark.parametrize(("positions", "mode"), [("last", "online"), ("generated", "online"), ("last", "clean")])
@pytest.mark.parametrize("alignment", [MAPS, ADDED], ids=["interpolate", "add"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
def test_every_row_is_edited_as_alone(name, alignment, positions, mode):
    model, inputs = tiny(name), prompts((7, 4, 2))
    found = []
    for row in range(3):
        with intervene(model, alignment, alpha=of_row(row), positions=positions, mode=mode):
            found.append(generate(model, alone(inputs, row)))
    with intervene(model, alignment, alpha=ALPHA, positions=positions, mode=mode) as run:
        together, out = generate(model, inputs)
        assert run.layers == [0, 1, 3]
        assert "alpha=per row" in run.describe()
    assert torch.equal(together, torch.cat([tokens for tokens, _ in found]))
    torch.testing.assert_close(out.logits[0], torch.cat([one.logits[0] for _, one in found]), **CLOSE)


@pytest.mark.parametrize("shape", [(5, 5, 5), (1, 1, 1), (6, 3, 5)], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_one_pass_with_padding_on_either_side(side, shape):
    model, inputs = tiny("llama"), prompts(shape)
    if side == "right":
        real = [alone(inputs, row)["input_ids"][0] for row in range(3)]
        ids = torch.nn.utils.rnn.pad_sequence(real, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in real], batch_first=True)
        inputs = {"input_ids": ids, "attention_mask": mask}
    else:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    last = [int(one.nonzero().max()) for one in inputs["attention_mask"]]
    with torch.no_grad():
        with intervene(model, MAPS, alpha=ALPHA):
            together = model(**inputs).logits
        for row in range(3):
            with intervene(model, MAPS, alpha=of_row(row)):
                expected = model(**alone(inputs, row)).logits[0, -1]
            torch.testing.assert_close(together[row, last[row]], expected, **CLOSE)


def test_a_row_without_any_strength_keeps_its_bits():
    model, inputs = tiny("llama"), prompts((5, 4, 3))
    _, plain = generate(model, inputs)
    with intervene(model, MAPS, alpha={1: [0.3, 0.0, 0.0], 2: [0.0, 0.0, 0.4]}):
        _, out = generate(model, inputs)
    for own, without in zip(cache_tensors(out.past_key_values), cache_tensors(plain.past_key_values), strict=True):
        assert torch.equal(own[1, :, :5], without[1, :, :5])
    assert torch.equal(out.logits[0][1], plain.logits[0][1])
    assert not torch.equal(out.logits[0][0], plain.logits[0][0])
    assert not torch.equal(out.logits[0][2], plain.logits[0][2])


def test_several_sequences_repeat_rows():
    model, inputs = tiny("gpt2"), prompts((4, 4))
    alpha = {1: [0.3, 0.0], 3: [0.0, 0.6]}
    with intervene(model, MAPS, alpha=alpha):
        once, _ = generate(model, inputs)
        beams = model.generate(**inputs, max_new_tokens=STEPS, num_beams=2, num_return_sequences=2, do_sample=False)
    repeated = {name: value.repeat_interleave(2, 0) for name, value in inputs.items()}
    with intervene(model, MAPS, alpha={1: [0.3, 0.3, 0.0, 0.0], 3: [0.0, 0.0, 0.6, 0.6]}):
        twice, _ = generate(model, repeated)
    assert torch.equal(twice, once.repeat_interleave(2, 0))
    assert beams.shape[0] == 4


def test_a_state_that_is_not_finite_names_its_row_and_its_own_strength():
    model, inputs = tiny("llama"), prompts((4, 4, 4))
    with (
        pytest.raises(NonFiniteStateError, match=r"site 2 .* in row 1 at alpha=8.507059173023462e\+37"),
        intervene(model, ADDED, alpha={1: 0.1, 2: [0.5, 2.0**126, 0.5]}, check_finite=True),
    ):
        generate(model, {**inputs, "input_ids": inputs["input_ids"]})


def test_a_compiled_model():
    model, inputs = tiny("llama"), prompts((5, 5, 5))
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad(), intervene(compiled, MAPS, alpha=ALPHA):
        found = compiled(**inputs, use_cache=False).logits
    with torch.no_grad(), intervene(model, MAPS, alpha=ALPHA):
        expected = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        ({1: [0.1, 0.2], 2: [0.1, 0.2, 0.3]}, r"alpha has by site so many values: \{1: 2, 2: 3\}"),
        ({1: [0.1, float("nan")]}, r"alpha\[1\] is \[0.1.*, nan\]"),
        ({1: [[0.1]]}, r"alpha\[1\] has shape \(1, 1\)"),
        ({1: []}, r"alpha\[1\] has shape \(0,\)"),
        ({9: [0.1]}, r"layers \[9\] have no map"),
    ],
    ids=str,
)
def test_strengths_that_do_not_fit(alpha, message):
    with pytest.raises(ValueError, match=message):
        intervene(tiny("llama"), MAPS, alpha=alpha)


def test_another_number_of_rows():
    model = tiny("llama")
    with (
        intervene(model, MAPS, alpha={1: [0.1, 0.2]}),
        torch.no_grad(),
        pytest.raises(ValueError, match="alpha has 2 values; this forward pass has 3 rows"),
    ):
        model(**prompts((4, 4, 4)))
