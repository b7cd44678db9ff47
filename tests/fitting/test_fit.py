"""The whole fit against numpy on independently computed states, the presets' parts, and the held-out error."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast.alignment.alignment import Alignment
from incline_fast.fitting.estimators import ESTIMATORS, shuffled
from incline_fast.fitting.fit import fit, fit_states
from incline_fast.fitting.options import PRESETS
from incline_fast.solver.ridge import DEFAULT_LAMS, Ridge
from incline_fast.states.hidden_states import StatesError, collect
from incline_fast.text.prompts import DEFAULT_TEMPLATE, PromptError

N = 20
SOURCE, TARGET = sentences(N, seed=1), sentences(N, seed=2)
TEMPLATE = "w5 {sentence} w6"


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def quiet_fit(model, tokenizer, source=SOURCE, target=TARGET, **options):
    return fit(model, tokenizer, source, target, progress=False, **options)


def hooked_states(model, tokenizer, texts, pooling) -> dict[int, np.ndarray]:
    """Block outputs from hooks, one sentence at a time; shares nothing with the library."""
    seen = {}
    handles = [
        block.register_forward_hook(lambda m, args, out, i=i: seen.setdefault(i, []).append(out[0].reshape(-1, HIDDEN)))
        for i, block in enumerate(model.model.layers, 1)
    ]
    for text in texts:
        with torch.no_grad():
            model(torch.tensor([tokenizer(text)["input_ids"]]))
    for handle in handles:
        handle.remove()
    return {
        i: np.stack([(rows[-1] if pooling == "last" else rows[1:].mean(0)).double().numpy() for rows in every])
        for i, every in seen.items()
    }


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_minimum_norm_is_lstsq_of_hooked_states(model, tokenizer, pooling):
    alignment = quiet_fit(model, tokenizer, preset="paper", pooling=pooling)
    X, Y = (hooked_states(model, tokenizer, texts, pooling) for texts in (SOURCE, TARGET))
    held_out = hooked_states(model, tokenizer, sentences(10, seed=3), pooling)
    assert (alignment.form, alignment.layers, alignment.bias) == ("add", [1, 2, 3], {})
    for layer in alignment.layers:
        W = np.linalg.lstsq(X[layer], Y[layer], rcond=None)[0].T
        predicted = alignment.maps[layer].apply(torch.from_numpy(held_out[layer])).numpy()
        expected = held_out[layer] @ W.T
        assert np.abs(predicted - expected).max() < 1e-4 * np.abs(expected).max()


def test_robust_is_standardised_ridge_on_templated_states(model, tokenizer):
    alignment = quiet_fit(model, tokenizer, template=TEMPLATE)
    framed = [[TEMPLATE.replace("{sentence}", text) for text in texts] for texts in (SOURCE, TARGET)]
    X, Y = (hooked_states(model, tokenizer, texts, "last") for texts in framed)
    assert alignment.form == "interpolate"
    for layer in alignment.layers:
        x, y = X[layer], Y[layer]
        Z = (x - x.mean(0)) / x.std(0)
        lam = Ridge(DEFAULT_LAMS, standardize=True).fit(torch.from_numpy(x), torch.from_numpy(y)).lam_
        assert alignment.metadata.lam[layer] == lam
        A = np.linalg.solve(Z.T @ Z + lam * N * np.eye(HIDDEN), Z.T @ (y - y.mean(0)))
        expected = (A.T / x.std(0)) @ x[0] + y.mean(0) - (A.T / x.std(0)) @ x.mean(0)
        predicted = alignment.maps[layer].apply(torch.from_numpy(x[0])) + alignment.bias[layer]
        np.testing.assert_allclose(predicted.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_table_of_presets():
    assert set(PRESETS) == {"robust", "paper", "official"}
    robust = PRESETS["robust"]
    assert (robust.template, robust.pooling, robust.estimator, robust.lam, robust.form) == (
        DEFAULT_TEMPLATE, "last", "affine_ridge", "loo", "interpolate"
    )  # fmt: skip
    for name, row in PRESETS.items():
        assert row.estimator in ESTIMATORS
        # The table in the docstring is the one that users read.
        assert name in fit.__doc__
        assert row.estimator in fit.__doc__


@pytest.mark.parametrize("preset", PRESETS)
def test_metadata_says_which_preset_and_what_it_was(model, tokenizer, preset):
    alignment = quiet_fit(model, tokenizer, preset=preset, source_language="fr", target_language="en")
    about, row = alignment.metadata, PRESETS[preset]
    assert (about.preset, about.template, about.pooling) == (preset, row.template, row.pooling)
    assert (about.estimator, about.n, about.num_layers, about.hidden_size) == (row.estimator, N, LAYERS, HIDDEN)
    assert (about.source_language, about.target_language, about.recommended_alpha) == ("fr", "en", None)
    if row.lam == "loo":
        assert about.lam_selection == dict.fromkeys([1, 2, 3], "loo")
        assert set(about.lam) == {1, 2, 3}
    else:
        assert about.lam == dict.fromkeys([1, 2, 3], row.lam)
    assert set(about.solver) == {1, 2, 3}
    assert about.fit_error == {}
    alignment.check(model)


def test_every_part_of_a_preset_can_be_overridden(model, tokenizer):
    alignment = quiet_fit(
        model,
        tokenizer,
        preset="paper",
        template=TEMPLATE,
        pooling="mean",
        estimator="ridge",
        lam=0.7,
        form="interpolate",
        layers=[0, 2],
    )
    about = alignment.metadata
    assert (about.template, about.pooling, about.estimator) == (TEMPLATE, "mean", "ridge")
    assert (about.lam, alignment.form, alignment.layers) == ({0: 0.7, 2: 0.7}, "interpolate", [0, 2])


@pytest.mark.parametrize(
    ("estimator", "form", "lam"),
    [
        ("mean_difference", "add", 0.0),
        ("constant_mean", "interpolate", 0.0),
        ("procrustes", "interpolate", 0.0),
        ("ridge", "interpolate", 0.3),
        (shuffled("affine_ridge"), "interpolate", 0.3),
    ],
)
def test_another_estimator_brings_its_own_lam_and_form(model, tokenizer, estimator, form, lam):
    alignment = quiet_fit(model, tokenizer, estimator=estimator, template=TEMPLATE)
    assert alignment.form == form
    assert set(alignment.metadata.lam.values()) == {lam}


def test_parallel_text_objects(model, tokenizer):
    text = SimpleNamespace(source=SOURCE, target=TARGET, source_language="tr", target_language="en")
    alignment = fit(model, tokenizer, text, progress=False, preset="paper")
    by_lists = quiet_fit(model, tokenizer, preset="paper")
    assert torch.equal(alignment.maps[2].up, by_lists.maps[2].up)
    assert (alignment.metadata.source_language, alignment.metadata.target_language) == ("tr", "en")


def test_the_alignment_survives_its_file(model, tokenizer, tmp_path):
    alignment = quiet_fit(model, tokenizer, template=TEMPLATE, holdout=5)
    alignment.save(tmp_path / "a.safetensors")
    loaded = Alignment.load(tmp_path / "a.safetensors", model)
    assert loaded.metadata == alignment.metadata
    assert torch.equal(loaded.maps[1].as_dense(), alignment.maps[1].as_dense())


def test_resume_keeps_both_sides_and_serves_other_estimators(model, tokenizer, tmp_path):
    folder = tmp_path / "states"
    first = quiet_fit(model, tokenizer, resume=folder, template=TEMPLATE)
    ran = []
    handle = model.model.register_forward_pre_hook(lambda *_: ran.append(1))
    again = quiet_fit(model, tokenizer, resume=folder, template=TEMPLATE)
    quiet_fit(model, tokenizer, resume=folder, template=TEMPLATE, estimator="procrustes")
    handle.remove()
    assert ran == []
    assert torch.equal(first.maps[3].up, again.maps[3].up)
    with pytest.raises(StatesError, match="template"):
        quiet_fit(model, tokenizer, resume=folder)


def random_states(n: int, seed: int) -> dict[int, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {site: torch.randn(n, 8, generator=g) + 2 for site in (1, 4)}


def test_fit_error_is_the_error_of_pairs_that_were_not_fitted():
    X, Y = random_states(50, 1), random_states(50, 2)
    Y = {site: 0.5 * X[site] + 0.3 * Y[site] for site in X}
    alignment = fit_states(X, Y, holdout=0.2, seed=4, progress=False)
    assert alignment.metadata.n == 40
    # Held out are the rows whose targets do not change the map.
    held = []
    for row in range(50):
        changed = {site: states.clone() for site, states in Y.items()}
        changed[1][row] += 100
        other = fit_states(X, changed, holdout=0.2, seed=4, progress=False)
        if torch.equal(other.maps[1].up, alignment.maps[1].up):
            held.append(row)
    assert len(held) == 10
    fitted = [row for row in range(50) if row not in held]
    for site in (1, 4):
        W, b = alignment.maps[site].as_dense()[0].double(), alignment.bias[site].double()
        x, y = X[site][held].double(), Y[site][held].double()
        expected = (x @ W.T + b - y).norm() / (y - Y[site][fitted].double().mean(0)).norm()
        assert alignment.metadata.fit_error[site] == pytest.approx(float(expected), rel=1e-5)
        assert alignment.metadata.fit_error[site] < 0.9
    assert fit_states(X, Y, holdout=10, seed=4, progress=False).metadata.fit_error == alignment.metadata.fit_error


def test_constant_mean_has_error_one_and_a_shift_is_added_to_the_state():
    X = random_states(30, 1)
    constant = fit_states(X, random_states(30, 2), estimator="constant_mean", holdout=10, progress=False)
    assert constant.metadata.fit_error == pytest.approx({1: 1.0, 4: 1.0}, abs=1e-6)
    shifted = {site: states + 7 for site, states in X.items()}
    shift = fit_states(X, shifted, estimator="mean_difference", holdout=10, progress=False)
    assert max(shift.metadata.fit_error.values()) < 1e-5
    assert shift.form == "add"


def test_targets_that_do_not_vary_have_no_fit_error():
    """At the embedding every sentence in a template ends in the same token."""
    X, Y = random_states(30, 1), random_states(30, 2)
    X[1], Y[1] = X[1][:1].expand(30, 8), Y[1][:1].expand(30, 8)
    alignment = fit_states(X, Y, holdout=10, progress=False)
    assert list(alignment.metadata.fit_error) == [4]
    assert "no fit error" in alignment.metadata.notes[1][-1]
    torch.testing.assert_close(alignment.bias[1], Y[1][0])


def test_lam_per_site():
    X, Y = random_states(30, 1), random_states(30, 2)
    alignment = fit_states(X, Y, lam={1: 0.1, 4: 5.0}, progress=False)
    assert alignment.metadata.lam == {1: 0.1, 4: 5.0}
    alone = fit_states({4: X[4]}, {4: Y[4]}, lam=5.0, progress=False)
    assert torch.equal(alone.maps[4].up, alignment.maps[4].up)
    with pytest.raises(ValueError, match=r"lam has the sites \[1\]"):
        fit_states(X, Y, lam={1: 0.1}, progress=False)


def test_lam_by_leave_one_out_is_chosen_and_recorded_per_site(tmp_path):
    """Site 1 is nearly noise and wants much lam, site 4 is nearly linear and wants little."""
    X, noise = random_states(30, 1), random_states(30, 2)
    Y = {1: noise[1], 4: 0.5 * X[4] + 1e-3 * noise[4]}
    alignment = fit_states(X, Y, lam="loo", progress=False)
    about = alignment.metadata
    assert about.lam_selection == {1: "loo", 4: "loo"}
    for site in (1, 4):
        chosen = Ridge(DEFAULT_LAMS, standardize=True).fit(X[site].double(), Y[site].double())
        assert about.lam[site] == chosen.lam_
        given = fit_states({site: X[site]}, {site: Y[site]}, lam=about.lam[site], progress=False)
        assert torch.equal(given.maps[site].up, alignment.maps[site].up)
    assert about.lam[1] > 100 * about.lam[4]
    alignment.save(tmp_path / "a.safetensors")
    assert Alignment.load(tmp_path / "a.safetensors").metadata == about
    mixed = fit_states(X, Y, lam={1: "loo", 4: 0.3}, progress=False).metadata
    assert (mixed.lam, mixed.lam_selection) == ({1: about.lam[1], 4: 0.3}, {1: "loo"})


def test_fit_states_equals_fit(model, tokenizer):
    states = [collect(model, tokenizer, texts, template=TEMPLATE, progress=False) for texts in (SOURCE, TARGET)]
    from_states = fit_states(*states, lam="loo", progress=False)
    assert from_states.layers == [0, 1, 2, 3]
    direct = quiet_fit(model, tokenizer, template=TEMPLATE)
    for layer in direct.layers:
        torch.testing.assert_close(from_states.maps[layer].as_dense(), direct.maps[layer].as_dense())


@pytest.mark.parametrize("holdout", [-1, -0.1, 1.5, 20, 0.01, 0.999])
def test_bad_holdout(holdout):
    with pytest.raises(ValueError, match=f"holdout is {holdout} of 20 pairs"):
        fit_states({1: torch.randn(20, 3)}, {1: torch.randn(20, 3)}, holdout=holdout, progress=False)


def test_bad_arguments_are_refused_before_the_model_runs(model, tokenizer):
    handle = model.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    cases = [
        ({"preset": "best"}, ValueError, "'best'; allowed: robust, paper, official"),
        ({"estimator": "lasso"}, ValueError, "estimator is 'lasso'"),
        ({"form": "subtract"}, ValueError, "'subtract'; allowed: add, interpolate"),
        ({"estimator": "mean_difference", "form": "interpolate"}, ValueError, "makes sense as 'add' only"),
        ({"template": "no place"}, ValueError, "expected exactly one"),
        ({"holdout": 20}, ValueError, "holdout is 20"),
        ({"layers": [4]}, ValueError, "layers is"),
        ({"pooling": "max"}, ValueError, "pooling is 'max'"),
        ({"target": TARGET[:-1]}, ValueError, "source has 20 sentences, target 19"),
        ({"target": None}, TypeError, "target is missing and source is a list"),
        ({"source": ["", *SOURCE[1:]]}, PromptError, "source: sentence 0 is empty"),
        ({"target": [*TARGET[1:], " "]}, PromptError, "target: sentence 19 is empty"),
        ({"target": "x" * N}, TypeError, "target: sentences is a str"),
        ({"target": [*TARGET[1:], " ".join(["w5"] * 70)]}, PromptError, "target: sentence 19 has 7. tokens"),
        (
            {"target": [*TARGET[1:], "<s>"], "template": "{sentence}"},
            PromptError,
            "target: sentence 19 has no real token",
        ),
        ({"target": [*TARGET[1:], 5]}, TypeError, "target: sentence 19 is 5"),
        ({"lam": float("nan")}, ValueError, "lam is nan"),
        ({"lam": "LOO"}, ValueError, "lam is 'LOO'"),
        ({"lam": {1: 0.5, 2: -1.0, 3: 0.5}}, ValueError, "lam is -1"),
        ({"lam": {1: 0.5}}, ValueError, r"lam has the sites \[1\]"),
        ({"estimator": "procrustes", "lam": 0.5}, ValueError, "procrustes has no ridge parameter"),
        ({"source": SOURCE[:1], "target": TARGET[:1]}, ValueError, "choosing lam needs at least 2"),
        ({"source": SOURCE[:1], "target": TARGET[:1], "estimator": shuffled("min_norm")}, ValueError, "at least 2"),
        ({"holdout": float("nan")}, ValueError, "holdout is nan"),
        ({"seed": 1.5}, TypeError, "seed is 1.5"),
        ({"solve_device": "cuda:77"}, ValueError, "solve_device is 'cuda:77'"),
        ({"memory_budget": "1 B"}, ValueError, "memory_budget is"),
        ({"batch_tokens": 0}, ValueError, "batch_tokens is 0"),
        ({"source_language": 5}, ValueError, r"metadata\.source_language is 5"),
        ({"source": {"a": "b"}, "target": TARGET[:1]}, TypeError, "source: sentences is a dict"),
    ]
    for options, error, reason in cases:
        with pytest.raises(error, match=reason):
            quiet_fit(model, tokenizer, **options)
    handle.remove()


def test_kept_states_of_both_sides_are_looked_at_before_the_model_runs(model, tokenizer, tmp_path):
    quiet_fit(model, tokenizer, resume=tmp_path)
    handle = model.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    for shard in (tmp_path / "source").glob("shard-*"):
        shard.unlink()  # so that the first side would have to run
    with pytest.raises(StatesError, match=r"target: resume is .* states of other input"):
        quiet_fit(model, tokenizer, target=TARGET[::-1], resume=tmp_path)
    shard = next((tmp_path / "target").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StatesError, match=f"target: .*{shard.name} is damaged"):
        quiet_fit(model, tokenizer, resume=tmp_path)
    handle.remove()


def test_bad_states_name_the_site():
    X, Y = random_states(10, 1), random_states(10, 2)
    with pytest.raises(ValueError, match=r"X has the sites \[1, 4\], Y \[1\]"):
        fit_states(X, {1: Y[1]}, progress=False)
    with pytest.raises(ValueError, match="expected the same, at least one"):
        fit_states({}, {}, progress=False)
    with pytest.raises(ValueError, match=r"have \[9, 10\] rows"):
        fit_states(X, {1: Y[1], 4: Y[4][:9]}, progress=False)
    Y[4][3, 2] = float("inf")
    with pytest.raises(ValueError, match="site 4: Y has 1 rows with NaN or infinite values, the first is row 3"):
        fit_states(X, Y, progress=False)


def test_progress_can_be_switched_off(model, tokenizer, capsys):
    quiet_fit(model, tokenizer, preset="paper")
    assert capsys.readouterr() == ("", "")
    fit(model, tokenizer, SOURCE, TARGET, preset="paper")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "hidden states" in shown.err
    assert "fit min_norm" in shown.err
