"""Options of a fit: one list of them, checked before anything runs, by keyword or as one object."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields, replace
from typing import get_type_hints

import pytest
import torch
from tiny_models import tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast import FitOptions, fit, fit_states
from incline_fast.cli import app
from incline_fast.fitting.options import FitKeywords, SolveKeywords, SolveOptions


@pytest.mark.parametrize(("keywords", "options"), [(SolveKeywords, SolveOptions), (FitKeywords, FitOptions)])
def test_keywords_are_the_fields(keywords, options):
    hints = get_type_hints(options)
    assert get_type_hints(keywords) == {field.name: hints[field.name] for field in fields(options)}
    for name in hints:
        assert f"{name}: " in (options.__doc__ or "") + (SolveOptions.__doc__ or "")
        assert f"``{name}``" in ((fit if options is FitOptions else fit_states).__doc__ or "")


def test_the_command_offers_options_under_their_names():
    command = set(inspect.signature(app.fit).parameters)
    left_out = {"seed", "progress", "batch_tokens", "site", "source_language", "target_language", "distributed"}
    assert {field.name for field in fields(FitOptions)} - left_out <= command


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "best"}, "preset is 'best'; allowed: robust, paper, official"),
        ({"estimator": "lasso"}, "estimator is 'lasso'"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"lam": {1: 0.5, 2: "gcv"}}, "lam is 'gcv'"),
        ({"estimator": "min_norm", "lam": 0.5}, "has no ridge parameter"),
        ({"form": "replace"}, "form is 'replace'; allowed: add, interpolate"),
        ({"estimator": "mean_difference", "form": "interpolate"}, "makes sense as 'add' only"),
        ({"memory_budget": "much"}, "memory_budget is 'much'"),
        ({"solve_device": "abacus"}, "solve_device is 'abacus'"),
    ],
)
def test_what_is_wrong_whatever_the_data_is_refused_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**wrong)


def test_unknown_keywords_and_assignments_are_refused():
    for call in (lambda: FitOptions(lambda_=1.0), lambda: fit(None, None, [], [], lambda_=1.0)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'lambda_'"):
            call()
    with pytest.raises(FrozenInstanceError):
        FitOptions().lam = 1.0


def test_one_object_and_keywords_give_the_same_alignment():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    pairs = sentences(8, 0, 20), sentences(8, 1, 20)
    options = FitOptions(lam=0.5, holdout=2, layers=[1, 2], progress=False)
    by_object = fit(model, tokenizer, *pairs, options)
    by_keyword = fit(model, tokenizer, *pairs, lam=0.5, holdout=2, layers=[1, 2], progress=False)
    over = fit(model, tokenizer, *pairs, replace(options, lam=3.0), lam=0.5)
    assert by_object.metadata == by_keyword.metadata == over.metadata
    for site in (1, 2):
        assert torch.equal(by_object.maps[site].as_dense(), by_keyword.maps[site].as_dense())
        assert torch.equal(by_object.maps[site].as_dense(), over.maps[site].as_dense())
