"""Learning and applying maps does not depend on settings that happen to surround it: dtype, device, autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from tiny_models import prompts, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

import incline_fast
from incline_fast import Alignment, intervene
from incline_fast.evaluation import PLAIN, ContinuationTask, LabelScorer, LabelTask, Variant, score_continuations
from incline_fast.evaluation.bootstrap import paired_bootstrap
from incline_fast.intervention.sweep import sweep
from incline_fast.solver.ridge import Ridge
from incline_fast.states import collect


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
# What runs the model itself: autocast is the model's own affair there.
OF_MODELS = [name for name in AMBIENT if name != "autocast"]


def states(n: int = 30, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(0)).unbind(0)


def under(name: str, run):
    with AMBIENT[name]() if name else nullcontext():
        return run()


@pytest.mark.parametrize("name", OF_MODELS)
def test_states(name):
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    expected = collect(model, tokenizer, sentences(8), progress=False)
    actual = under(name, lambda: collect(model, tokenizer, sentences(8), progress=False))
    assert all(torch.equal(actual[site], expected[site]) and actual[site].dtype == torch.float32 for site in expected)


@pytest.mark.parametrize("name", OF_MODELS)
def test_fit_and_sweep(name):
    model, tokenizer, text = tiny("llama"), tiny_tokenizer(), sentences(24)

    def run():
        alignment = incline_fast.fit(model, tokenizer, text[:12], text[12:], progress=False)
        result = sweep(model, tokenizer, alignment, text[:4], text[12:16], alphas=[0, 0.5], progress=False)
        return alignment, result

    (alignment, result), (same, again) = run(), under(name, run)
    assert all(torch.equal(alignment.maps[s].as_dense(), same.maps[s].as_dense()) for s in alignment.maps)
    assert all(torch.equal(alignment.bias[s], same.bias[s]) for s in alignment.bias)
    assert torch.equal(result.kl, again.kl)
    assert result.interval(0.5) == under(name, lambda: again.interval(0.5))


@pytest.mark.parametrize("name", AMBIENT)
@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
@pytest.mark.parametrize("lam", [0.1, [0.1, 1.0, 10.0]])
def test_ridge(name, shape, lam):
    X, Y = states(*shape)

    def run():
        model = Ridge(lam).fit(X, Y)
        return model.predict(X)

    assert torch.equal(run(), under(name, run))


@pytest.mark.parametrize("name", OF_MODELS)
@pytest.mark.parametrize("alpha", [0.5, torch.tensor([0.5, 0.0, 0.2])])
@pytest.mark.parametrize("side", ["left", "right"])
def test_intervention(name, alpha, side):
    model, inputs = tiny("llama"), prompts(side=side)
    maps = {site: torch.randn(32, 32, generator=torch.Generator().manual_seed(site)) / 6 for site in range(4)}
    embeddings = model.get_input_embeddings()(inputs["input_ids"])

    def run():
        with intervene(model, Alignment.from_maps(maps), alpha=alpha, check_finite=True) as edited:
            logits = model(**inputs).logits
            model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
        return logits, edited.growth

    (expected, growth), (actual, same) = run(), under(name, run)
    assert torch.equal(actual, expected)
    assert growth == same


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_batch_of_several_languages(name):
    model, inputs = tiny("llama"), prompts()
    one, two = (
        {site: torch.randn(32, 32, generator=torch.Generator().manual_seed(seed + site)) / 6 for site in range(4)}
        for seed in (0, 10)
    )
    both = {"fr": Alignment.from_maps(one, form="interpolate"), "sw": Alignment.from_maps(two, bias={1: one[1][0]})}

    def run():
        with intervene(model, both, languages=["fr", None, "sw"], alpha={"fr": 0.3, "sw": 0.5}):
            return model(**inputs).logits

    expected, actual = run(), under(name, run)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", OF_MODELS)
def test_evaluation(name):
    texts = sentences(6, seed=1)
    task = LabelTask(
        "tiny", "xx", texts, "{sentence} w7", ("w50", "w51", "w52"), [0, 1, 2, 0, 1, 2], [str(i) for i in range(6)]
    )
    maps = {site: torch.randn(32, 32, generator=torch.Generator().manual_seed(site)) / 6 for site in range(1, 4)}
    alignment = Alignment.from_maps(maps)
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    stories = ContinuationTask("tiny", "xx", [["w1 w2", "w1 w2"]], [[" w5 w6", " w7"]], [0], ["0"])

    def run():
        scorer = LabelScorer(model, tokenizer, task, progress=False)
        variants = [PLAIN, Variant("edited", alignment, 0.4)]
        scores = scorer.score(variants)
        told = score_continuations(model, tokenizer, stories, variants, progress=False)
        calibrated = [scores.calibrated(kind) for kind in ("raw", "contextual", "batch", "prior")]
        right = scores.correct()[0].float()
        spread = paired_bootstrap(right, scores.correct()[1].float())
        oracle = scorer.oracle({3: scorer.states[3]}, [3])
        return [scores.growth, *calibrated, *told, oracle, torch.tensor(spread.low, device="cpu", dtype=torch.float64)]

    for expected, actual in zip(run(), under(name, run), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
