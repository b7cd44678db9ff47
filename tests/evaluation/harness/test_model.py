"""The harness's model: equal to edited passes one by one, to the library's own scores, and to ``hf`` at alpha = 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast import Alignment, intervene
from incline_fast.evaluation import ContinuationTask, Variant, score_continuations

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install incline-fast[lm-eval]")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from incline_fast.evaluation.harness.model import InclineLM

ALPHA = 0.4


def maps() -> Alignment:
    generator = torch.Generator().manual_seed(0)
    found = {site: 0.3 * torch.randn(HIDDEN, HIDDEN, generator=generator) for site in range(1, LAYERS + 1)}
    bias = {site: torch.randn(HIDDEN, generator=generator) for site in found}
    return Alignment.from_maps(found, bias=bias, form="interpolate")


def ours(name: str = "llama", alpha: float | None = ALPHA, **options: Any) -> InclineLM:
    options = {"tokenizer": tiny_tokenizer(), "batch_size": 3, **options}
    return InclineLM(tiny(name), maps(), alpha, **options)


def theirs(name: str = "llama", **options: Any) -> HFLM:
    return HFLM(tiny(name), tokenizer=tiny_tokenizer(), batch_size=3, **options)


def asked(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def questions() -> list[Instance]:
    """Contexts of unequal lengths, two with several continuations, one empty, continuations of 1 to 5 words."""
    contexts = [*sentences(5, seed=3), "w9", ""]
    ends = [" w5", " w6 w7", " w8 w9 w10 w11 w12"]
    pairs = [(context, end) for i, context in enumerate(contexts) for end in ends[: 1 + i % 3]]
    return asked("loglikelihood", pairs)


def one_by_one(name: str, context: str, end: str) -> tuple[float, bool]:
    """The context alone under the intervention, its continuation behind it without."""
    model, tokenizer = tiny(name), tiny_tokenizer()
    ids = tokenizer(context, return_tensors="pt").input_ids
    tail = tokenizer(end, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.inference_mode():
        with intervene(model, maps(), alpha=ALPHA):
            prompt = model(ids, use_cache=True)
        rest = model(tail, past_key_values=prompt.past_key_values).logits
    logits = torch.cat([prompt.logits[0, -1:], rest[0, :-1]]).log_softmax(-1)
    return float(logits.gather(-1, tail[0, :, None]).sum()), bool((logits.argmax(-1) == tail[0]).all())


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_loglikelihood_edits_the_last_context_token_alone(name: str) -> None:
    found = ours(name).loglikelihood(questions(), disable_tqdm=True)
    for request, (log_p, greedy) in zip(questions(), found, strict=True):
        expected, as_greedy = one_by_one(name, *request.args)
        assert log_p == pytest.approx(expected, abs=2e-4), request.args
        assert greedy == as_greedy
    plain = theirs(name).loglikelihood(questions(), disable_tqdm=True)
    changed = [abs(a[0] - b[0]) > 1e-3 for a, b in zip(found, plain, strict=True)]
    assert changed == [request.args[0] != "" for request in questions()]  # BOS alone has nothing to edit


def test_equal_to_the_librarys_own_scores() -> None:
    rows = [(context, [" w5 w6", " w7"]) for context in sentences(6, seed=4)]
    task = ContinuationTask(
        "tiny", "", [[c] * 2 for c, _ in rows], [e for _, e in rows], [0] * 6, [str(i) for i in range(6)]
    )
    variant = Variant("edited", maps(), ALPHA)
    expected, _ = score_continuations(tiny("llama"), tiny_tokenizer(), task, [variant], progress=False)
    requests = asked("loglikelihood", [(context, end) for context, ends in rows for end in ends])
    found = ours().loglikelihood(requests, disable_tqdm=True)
    torch.testing.assert_close(torch.tensor([log_p for log_p, _ in found]), expected.flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_without_strength_it_is_hf(name: str) -> None:
    texts = asked("loglikelihood_rolling", [(text,) for text in sentences(4, seed=5, longest=30)])
    until = {"until": ["w4"], "max_gen_toks": 6, "do_sample": False}
    prompts = asked("generate_until", [(text, dict(until)) for text in sentences(5, seed=6)])
    plain, edited = theirs(name, max_length=16), ours(name, alpha=0.0, max_length=16)
    for mine, hf in zip(
        edited.loglikelihood(questions(), disable_tqdm=True),
        plain.loglikelihood(questions(), disable_tqdm=True),
        strict=True,
    ):
        assert mine[0] == pytest.approx(hf[0], abs=2e-4)
        assert mine[1] == hf[1]
    rolling = [model.loglikelihood_rolling(texts, disable_tqdm=True) for model in (edited, plain)]
    assert rolling[0] == pytest.approx(rolling[1], abs=2e-4)
    generated = [model.generate_until(prompts, disable_tqdm=True) for model in (edited, plain)]
    assert generated[0] == generated[1]
    # With strength, texts that need a second window and answers differ.
    strong = ours(name, max_length=16)
    long = [len(request.args[0].split()) > 16 for request in texts]
    assert any(long)
    again = strong.loglikelihood_rolling(texts, disable_tqdm=True)
    assert [abs(a - b) > 1e-3 for a, b in zip(again, rolling[1], strict=True)] == long
    assert strong.generate_until(prompts, disable_tqdm=True) != generated[1]


def test_generation_equals_generate_under_intervene() -> None:
    prompts = sentences(3, seed=7)
    requests = asked("generate_until", [(text, {"until": ["w60"], "max_gen_toks": 5}) for text in prompts])
    found = ours(alpha=1.0).generate_until(requests, disable_tqdm=True)
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    for text, answer in zip(prompts, found, strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with intervene(model, maps(), alpha=1.0):
            ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs.input_ids.shape[1] :]
        assert answer == tokenizer.decode(ids, skip_special_tokens=True).split("w60")[0]


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    context = " ".join(f"w{i}" for i in range(4, 30))
    (short,) = ours(max_length=8).loglikelihood(asked("loglikelihood", [(context, " w5 w6")]), disable_tqdm=True)
    (hf,) = theirs(max_length=8).loglikelihood(asked("loglikelihood", [(context, " w5 w6")]), disable_tqdm=True)
    (mine,) = ours(alpha=0.0, max_length=8).loglikelihood(
        asked("loglikelihood", [(context, " w5 w6")]), disable_tqdm=True
    )
    assert mine[0] == pytest.approx(hf[0], abs=2e-4)
    assert short[0] != pytest.approx(hf[0], abs=1e-3)


def test_from_the_commands_arguments(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    maps().with_metadata(recommended_alpha=ALPHA).save(tmp_path / "maps.safetensors")
    text = f"pretrained={tmp_path}/model,alignment={tmp_path}/maps.safetensors"
    loaded = get_model("incline").create_from_arg_string(text, {"batch_size": 2, "device": "cpu"})
    found = loaded.loglikelihood(questions(), disable_tqdm=True)
    expected = ours().loglikelihood(questions(), disable_tqdm=True)
    assert [a for a, _ in found] == pytest.approx([a for a, _ in expected], abs=1e-4)
    assert loaded.get_model_info()["incline_alpha"] == ALPHA
    assert loaded.get_model_info()["incline_sites"] == [1, 2, 3]


def test_no_alpha_and_another_model() -> None:
    with pytest.raises(ValueError, match="alpha is not given and the alignment recommends none"):
        ours(alpha=None)
    with pytest.raises(ValueError, match="hidden"):
        InclineLM(tiny("llama", hidden_size=48), maps(), 1.0, tokenizer=tiny_tokenizer())
