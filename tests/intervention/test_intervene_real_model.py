"""Interventions on the downloaded model, one dimension of which holds most of the energy of its states."""

from __future__ import annotations

import pytest
import torch
from hook_reference import HookedEdit, greedy
from torch import Tensor

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import intervene
from incline_fast.maps import AffineMap
from incline_fast.models.architectures import describe

pytestmark = pytest.mark.model

TEXTS = [
    "La mer est calme ce matin.\nThe topic of this text is",
    "Bonjour",
    "Der Zug nach Berlin hat heute Verspätung,",
]
STEPS = 8


@pytest.fixture(scope="module")
def model(real_model):
    return real_model[0].eval()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def inputs(real_model):
    batch = real_model[1](TEXTS, padding=True, padding_side="left", return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@pytest.fixture(scope="module")
def maps(model) -> dict[int, Tensor]:
    """At every site, strong enough to change what is generated."""
    return contractions(model, 0)


def contractions(model, seed: int) -> dict[int, Tensor]:
    """Contractions of rank 16 in an orthonormal basis."""
    generator = torch.Generator().manual_seed(seed)
    architecture = describe(model)
    made = {}
    for site in range(architecture.num_layers + 1):
        basis = torch.linalg.qr(torch.randn(architecture.hidden_size, 16, generator=generator)).Q
        made[site] = -basis @ basis.T
    return made


def generated(model, inputs, **settings):
    out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, **settings)
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("mode", ["online", "clean"])
def test_equals_output_hooks(model, inputs, maps, mode):
    edit = HookedEdit(maps, 0.8, recorded={} if mode == "clean" else None)
    expected, expected_logits, _ = greedy(model, edit, inputs, STEPS)
    with intervene(model, Alignment.from_maps(maps), alpha=0.8, mode=mode, check_finite=True) as run:
        tokens = generated(model, inputs)
        logits = model(**inputs).logits[:, -1]
    plain = model(**inputs).logits[:, -1]
    scale = expected_logits[:, -1].abs().max()
    assert (logits - expected_logits[:, -1]).abs().max() < 1e-4 * scale
    assert (logits - plain).abs().max() > 1e-2 * scale
    assert torch.equal(tokens, expected)
    assert max(run.max_abs.values()) > 1e3, "this model's massive activations are gone; the test has lost its point"


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_a_prompt_gives_the_same_tokens_alone_and_in_a_batch(model, inputs, maps, positions):
    with intervene(model, Alignment.from_maps(maps), alpha=0.5, positions=positions):
        together = generated(model, inputs)
        for row in range(len(TEXTS)):
            real = inputs["attention_mask"][row].bool()
            alone = {key: value[row : row + 1, real] for key, value in inputs.items()}
            assert torch.equal(generated(model, alone)[0], together[row])


def test_factors_and_their_product_generate_the_same(model, inputs, maps):
    factors = {}
    for site, W in maps.items():
        U, S, Vh = torch.linalg.svd(W)
        factors[site] = AffineMap.low_rank(Vh[:16], U[:, :16] * S[:16])
    with intervene(model, Alignment.from_maps(maps), alpha=0.5):
        expected = generated(model, inputs)
    with intervene(model, Alignment.from_maps(factors), alpha=0.5):
        assert torch.equal(generated(model, inputs), expected)


def test_alpha_zero_and_leaving_give_back_the_plain_model(model, inputs, maps):
    plain = model(**inputs).logits
    with intervene(model, Alignment.from_maps(maps), alpha=0.0):
        assert torch.equal(model(**inputs).logits, plain)
    with intervene(model, Alignment.from_maps(maps), alpha=0.5):
        assert not torch.equal(model(**inputs).logits, plain)
    assert torch.equal(model(**inputs).logits, plain)


def test_rows_of_several_languages_give_the_tokens_that_each_gives_alone(model, real_model):
    texts = ["La mer est calme ce matin.", "Bu sabah deniz sakin ve hava", "The sea is calm this"]
    batch = real_model[1](texts, padding=True, padding_side="left", return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    both = {"fr": Alignment.from_maps(contractions(model, 1)), "tr": Alignment.from_maps(contractions(model, 2))}
    languages, alpha = ["fr", "tr", None], {"fr": 0.5, "tr": 0.8}
    with intervene(model, both, languages=languages, alpha=alpha):
        together = generated(model, inputs)
    plain = generated(model, inputs)
    assert torch.equal(together[2], plain[2])
    assert not torch.equal(together, plain)
    for row, language in enumerate(languages):
        real = inputs["attention_mask"][row].bool()
        alone = {key: value[row : row + 1, real] for key, value in inputs.items()}
        if language is None:
            assert torch.equal(generated(model, alone)[0], together[row])
            continue
        with intervene(model, both[language], alpha=alpha[language]):
            assert torch.equal(generated(model, alone)[0], together[row])
