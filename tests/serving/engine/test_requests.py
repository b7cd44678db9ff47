"""Requests of every kind beside each other in one engine, maps that come and go, and bad input."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_engine import asks

TOKENS = 8


@pytest.fixture(scope="module")
def requests() -> list[Any]:
    return asks(8, seed=1)


@pytest.fixture(scope="module")
def folder(maps, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("served")
    shutil.copytree(maps, made, dirs_exist_ok=True)
    return made


@pytest.fixture(scope="module")
def without_plugin(model, requests) -> list[Any]:
    """Plain results of an engine that was started without maps."""
    from benchmarks.serving.workload import ask_engine, engine

    with engine(model, None, enforce_eager=True) as llm:
        return ask_engine(llm, [replace(ask, map=None) for ask in requests], TOKENS)


@pytest.fixture(scope="module")
def llm(model, folder, without_plugin):
    from benchmarks.serving.workload import engine

    with engine(model, folder, enforce_eager=True) as started:
        yield started


def test_plain_requests_keep_their_bits_beside_edited_ones(llm, requests, without_plugin):
    from benchmarks.serving.workload import ask_engine

    plain = [replace(ask, map=None) for ask in requests]
    assert ask_engine(llm, plain, TOKENS) == without_plugin
    mixed = [ask if i % 2 else replace(ask, map=None) for i, ask in enumerate(requests)]
    for i, result in enumerate(ask_engine(llm, mixed, TOKENS)):
        if mixed[i].map is None:
            assert result.tokens == without_plugin[i].tokens
            assert result.logprobs == pytest.approx(without_plugin[i].logprobs, abs=1e-4)


@pytest.mark.parametrize("positions", ["generated", "all"])
def test_positions(llm, model, folder, requests, positions):
    from benchmarks.serving.workload import ask_engine, reference

    asked = [replace(ask, positions=positions) for ask in requests]
    expected = reference(model, folder, asked, TOKENS)
    # The second time, beginnings whose every token was edited come from the prefix cache.
    for _ in range(2):
        for ours, theirs in zip(ask_engine(llm, asked, TOKENS), expected, strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


def test_several_completions_and_prompt_log_probabilities(llm, requests):
    from vllm import SamplingParams

    from benchmarks.serving.workload import ask_engine, parameters, result_of

    edited = next(ask for ask in requests if ask.map is not None)
    (alone,) = ask_engine(llm, [edited], TOKENS)
    (output,) = llm.generate([edited.prompt], parameters(edited, TOKENS, n=1, prompt_logprobs=0), use_tqdm=False)
    assert result_of(output.outputs[0]).tokens == alone.tokens
    plain = replace(edited, map=None)
    (without,) = llm.generate([plain.prompt], parameters(plain, TOKENS, prompt_logprobs=0), use_tqdm=False)
    ours, theirs = ([*map(_score, o.prompt_logprobs[1:])] for o in (output, without))
    assert ours == pytest.approx(theirs, abs=1e-5), "tokens before the edited one are predicted as ever"
    extra = parameters(edited, 1).extra_args
    (likely,) = llm.generate(
        [edited.prompt], SamplingParams(max_tokens=1, logprobs=20, extra_args=extra), use_tqdm=False
    )
    expected = {token: score.logprob for token, score in likely.outputs[0].logprobs[0].items()}
    sampled = SamplingParams(max_tokens=TOKENS, logprobs=0, n=4, seed=0, extra_args=extra)
    (several,) = llm.generate([edited.prompt], sampled, use_tqdm=False)
    assert len({tuple(completion.token_ids) for completion in several.outputs}) > 1
    first = [result_of(completion) for completion in several.outputs]
    seen = [result for result in first if result.tokens[0] in expected]
    assert seen
    for result in seen:
        assert result.logprobs[0] == pytest.approx(expected[result.tokens[0]], abs=1e-4), "every completion is edited"


def _score(scores: Any) -> float:
    return next(iter(scores.values())).logprob


def test_bad_requests_are_refused_and_the_engine_lives(llm, requests, without_plugin):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from benchmarks.serving.workload import ask_engine

    for extra_args, message in (
        ({"incline": "xx-en"}, "not a loaded map"),
        ({"incline": "fr-en", "incline_alpha": 7}, "allowed: -1 to 1"),
        ({"incline_fast": {"content": "0"}}, "is not known"),
    ):
        with pytest.raises(VLLMValidationError, match=message):
            llm.generate(["w5 w6"], SamplingParams(max_tokens=4, extra_args=extra_args), use_tqdm=False)
    plain = replace(requests[0], map=None)
    assert ask_engine(llm, [plain], TOKENS)[0].tokens == without_plugin[0].tokens


def test_maps_come_and_go(llm, model, folder, requests):
    from benchmarks.serving.workload import ask_engine, reference
    from incline_fast.serving import list_maps, load_map, unload_map
    from incline_fast.serving.errors import RequestError

    french = next(ask for ask in requests if ask.map == "fr-en")
    (before,) = ask_engine(llm, [french], TOKENS)
    # The name is given another content: what its prompts left in the prefix cache must not be met again.
    load_map(llm, "fr-en", folder / "de-en.safetensors")
    (after,) = ask_engine(llm, [french], TOKENS)
    german = replace(french, map="de-en")
    assert [after.tokens] == [result.tokens for result in reference(model, folder, [german], TOKENS)]
    assert after.tokens != before.tokens
    load_map(llm, "fr-en", folder / "fr-en.safetensors")
    assert ask_engine(llm, [french], TOKENS)[0].tokens == before.tokens
    unload_map(llm, "tr-en")
    assert list(list_maps(llm)) == ["de-en", "fr-en"]
    with pytest.raises(RequestError, match="not a loaded map"):
        unload_map(llm, "tr-en")
    with pytest.raises(RequestError, match="there is no alignment"):
        load_map(llm, "xx-en", folder / "xx-en.safetensors")
    load_map(llm, "tr-en", folder / "tr-en.safetensors")
