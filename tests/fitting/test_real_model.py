"""States and maps of the downloaded model, whose residual stream is nothing like that of a random one."""

from __future__ import annotations

import pytest
import torch

from incline_fast.fitting.estimators import ESTIMATORS, shuffled
from incline_fast.fitting.fit import fit_states
from incline_fast.models.architectures import describe
from incline_fast.states.hidden_states import collect
from incline_fast.text.prompts import DEFAULT_TEMPLATE, fill

pytestmark = pytest.mark.model

PAIRS = [
    ("Le mot de passe est trop court.", "The password is too short."),
    ("Il pleut depuis ce matin.", "It has been raining since this morning."),
    ("Cette page n'existe plus.", "This page no longer exists."),
    ("Nous partirons en vacances demain.", "We are leaving on holiday tomorrow."),
    ("Les élections auront lieu en mai.", "The elections will take place in May."),
    ("Ajoutez une pincée de sel.", "Add a pinch of salt."),
    ("Le match s'est terminé sans but.", "The match ended without a goal."),
    ("Son nouveau roman paraît lundi.", "Her new novel comes out on Monday."),
    ("Le train a deux heures de retard.", "The train is two hours late."),
    ("Cliquez ici pour enregistrer le fichier.", "Click here to save the file."),
    ("La banque a relevé ses taux.", "The bank has raised its rates."),
    ("Ce vaccin protège contre la grippe.", "This vaccine protects against the flu."),
    ("Chut !", "Hush!"),
    ("Oui", "Yes"),
]


@pytest.fixture(scope="module")
def states(real_model):
    model, tokenizer = real_model
    return [
        collect(model, tokenizer, [pair[side] for pair in PAIRS], template=DEFAULT_TEMPLATE, progress=False)
        for side in (0, 1)
    ]


def test_batched_states_are_those_of_hooks_on_single_sentences(real_model, states):
    model, tokenizer = real_model
    architecture = describe(model)
    blocks = [site.owner for site in architecture.sites[:-1]]
    seen: dict[int, torch.Tensor] = {}

    def hook(site):
        return lambda m, args, out: seen.__setitem__(site, out[0] if isinstance(out, tuple) else out)

    for row in (0, 12):
        handles = [block.register_forward_hook(hook(site)) for site, block in enumerate(blocks, 1)]
        prompt = fill(DEFAULT_TEMPLATE, PAIRS[row][0])
        with torch.no_grad():
            model(**tokenizer(prompt, return_tensors="pt"))
        for handle in handles:
            handle.remove()
        for site, output in seen.items():
            expected = output.reshape(-1, architecture.hidden_size)[-1]
            assert float((states[0][site][row] - expected).norm() / expected.norm()) < 1e-4


def test_bos_is_not_in_the_mean(real_model):
    """Its state is larger than any other by far; one BOS in the mean would be seen at once."""
    model, tokenizer = real_model
    if tokenizer("x")["input_ids"][0] != tokenizer.bos_token_id:
        pytest.skip(f"{type(tokenizer).__name__} adds no BOS")
    site = describe(model).num_layers // 2
    text = PAIRS[0][0]
    kept = []
    handle = describe(model).sites[site].observe(lambda h: kept.append(h[0]))
    mean = collect(model, tokenizer, [text], pooling="mean", layers=[site], progress=False)[site][0]
    handle.remove()
    bos, rest = kept[0][0], kept[0][1:]
    assert bos.norm() > 3 * rest.norm(dim=1).max()
    assert float((mean - rest.mean(0)).norm() / mean.norm()) < 1e-4


@pytest.mark.parametrize("name", ["affine_ridge", "procrustes"])
def test_fp32_application_is_exact_in_every_dimension(states, name):
    """Against fp64 with the same map, in units of each dimension's spread: the massive dimensions cost nothing."""
    X, Y = states
    for site in (1, max(X) // 2, max(X)):
        fitted = ESTIMATORS[name](X[site][:10], Y[site][:10])
        held_out = X[site][10:]
        exact = fitted.map.to(torch.float64).apply(held_out) + fitted.bias.double()
        error = (fitted.predict(held_out) - exact).abs().amax(0) / Y[site].double().std(0)
        assert error.max() < 1e-3


def test_right_pairs_beat_shuffled_pairs_on_pairs_that_were_not_fitted(states):
    """Ten pairs are few, but which sentence belongs to which is information that a held-out error must show."""
    X, Y = states

    def mean_error(estimator) -> float:
        alignments = [fit_states(X, Y, estimator=estimator, holdout=4, seed=s, progress=False) for s in range(3)]
        errors = [error for alignment in alignments for error in alignment.metadata.fit_error.values()]
        assert len(errors) == 3 * (len(X) - 1)  # at site 0 the template's last token has one embedding
        return sum(errors) / len(errors)

    right = mean_error("affine_ridge")
    for seed in range(3):
        assert right < 0.9 * mean_error(shuffled("affine_ridge", seed))
