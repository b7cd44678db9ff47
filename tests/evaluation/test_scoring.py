"""Label and continuation scores equal whole forward passes, one per prompt and variant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_tokenizer import WORDS, sentences, tiny_tokenizer
from torch import Tensor

from incline_fast import Alignment, intervene
from incline_fast.evaluation import (
    PLAIN,
    ContinuationTask,
    LabelScorer,
    LabelTask,
    Variant,
    score_continuations,
)
from incline_fast.evaluation.calibration import CONTENT_FREE
from incline_fast.evaluation.report import evaluate
from incline_fast.evaluation.sites import logits_of_states
from incline_fast.evaluation.tasks import TaskError
from incline_fast.states import collect

LABELS = ("w50", "w51", "w52")
TEMPLATE = "{sentence} w7 w8"


def task(n: int = 6, template: str = TEMPLATE, seed: int = 1) -> LabelTask:
    texts = sentences(n, seed=seed)
    return LabelTask("tiny", "xx", texts, template, LABELS, [i % 3 for i in range(n)], [str(i) for i in range(n)])


def maps(seed: int = 0, form: str = "interpolate") -> Alignment:
    generator = torch.Generator().manual_seed(seed)
    found = {site: 0.3 * torch.randn(HIDDEN, HIDDEN, generator=generator) for site in range(1, LAYERS + 1)}
    bias = {site: torch.randn(HIDDEN, generator=generator) for site in found}
    return Alignment.from_maps(found, bias=bias, form=form)  # type: ignore[arg-type]


def variants() -> list[Variant]:
    first, second = maps(0), maps(1, "add")
    return [
        PLAIN,
        Variant("late", first, 0.5, (LAYERS,)),
        Variant("middle", first, 0.4, (2,)),
        Variant("middle, stronger", first, 0.8, (2,)),
        Variant("all", first, 0.3),
        Variant("other maps", second, -0.2, (1, 3)),
        Variant("nothing", second, 0.0, (1,)),
    ]


def one_by_one(name: str, texts: list[str], variant: Variant, template: str) -> Tensor:
    model, tokenizer = tiny(name), tiny_tokenizer()
    columns = tokenizer(" ".join(LABELS), add_special_tokens=False).input_ids
    rows = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(template.replace("{sentence}", text), return_tensors="pt").input_ids
            if variant.sites:
                with intervene(model, variant.alignment, alpha=variant.alpha, layers=variant.sites):  # type: ignore[arg-type]
                    rows.append(model(ids).logits[0, -1, columns])
            else:
                rows.append(model(ids).logits[0, -1, columns])
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
@pytest.mark.parametrize("template", [TEMPLATE, " ".join(WORDS[:20]) + " {sentence} w7"])
def test_label_scores_equal_whole_passes(name: str, template: str) -> None:
    scorer = LabelScorer(tiny(name), tiny_tokenizer(), task(template=template), progress=False, batch_rows=7)
    scores = scorer.score(variants())
    for row, variant in enumerate(variants()):
        expected = one_by_one(name, scorer.task.sentences, variant, template)
        torch.testing.assert_close(scores.logits[row], expected, rtol=1e-4, atol=1e-4)
        free = one_by_one(name, list(CONTENT_FREE), variant, template)
        torch.testing.assert_close(scores.content_free[row], free, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores.logits[0], scores.logits[1], atol=1e-2)
    torch.testing.assert_close(scores.growth[0], torch.ones(6))


def test_kept_in_a_folder_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = LabelScorer(tiny("llama"), tiny_tokenizer(), task(), progress=False).score(variants())
    first = LabelScorer(tiny("llama"), tiny_tokenizer(), task(), folder=tmp_path / "kept", progress=False)
    assert torch.equal(first.score(variants()).logits, in_memory.logits)

    def no_prefill(*args: object, **kwargs: object) -> None:
        raise AssertionError("a prompt ran twice")

    monkeypatch.setattr("incline_fast.states.prompt_runner.PromptRunner.prefill", no_prefill)
    again = LabelScorer(tiny("llama"), tiny_tokenizer(), task(), folder=tmp_path / "kept", progress=False)
    assert torch.equal(again.score(variants()).logits, in_memory.logits)
    with pytest.raises(ValueError, match="states of other input"):
        LabelScorer(tiny("llama"), tiny_tokenizer(), task(seed=2), folder=tmp_path / "kept", progress=False)


def test_states_and_oracle() -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    scorer = LabelScorer(model, tokenizer, task(), progress=False)
    other = task(seed=2)
    target = collect(model, tokenizer, other.sentences, template=TEMPLATE, progress=False)
    own = collect(model, tokenizer, scorer.task.sentences, template=TEMPLATE, progress=False)
    for site in range(1, LAYERS + 1):
        torch.testing.assert_close(scorer.states[site], own[site], rtol=1e-4, atol=1e-4)
    # With the target's state at the last site, the scores are the target's; with one's own, they are the plain ones.
    wanted = one_by_one("llama", other.sentences, PLAIN, TEMPLATE)
    torch.testing.assert_close(scorer.oracle(target)[-1], wanted, rtol=1e-4, atol=1e-4)
    plain = one_by_one("llama", scorer.task.sentences, PLAIN, TEMPLATE)
    for logits in scorer.oracle(scorer.states):
        torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    found = logits_of_states(scorer.runner, own[LAYERS], scorer.tokens)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_few_sites_and_what_they_refuse() -> None:
    scorer = LabelScorer(tiny("llama"), tiny_tokenizer(), task(), sites=[2, 3], progress=False)
    late = [PLAIN, Variant("middle", maps(), 0.4, (2,))]
    expected = one_by_one("llama", scorer.task.sentences, late[1], TEMPLATE)
    torch.testing.assert_close(scorer.score(late).logits[1], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="edits site 1; the prompts were kept for sites from 2 on"):
        scorer.score([Variant("all", maps(), 0.4)])


def test_a_warning_about_another_prompt() -> None:
    scorer = LabelScorer(tiny("llama"), tiny_tokenizer(), task(), progress=False)
    with pytest.warns(UserWarning, match=r"fitted in the prompt '\{sentence\} w9'"):
        scorer.score([Variant("x", maps().with_metadata(template="{sentence} w9"), 0.4)])


def test_labels_of_several_tokens_or_the_same_one() -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    wrong = LabelTask("tiny", "", ["w5"], TEMPLATE, ("w50 w51", "w52"), None, ["0"])
    with pytest.raises(TaskError, match=r"labels of more than one token: \{'w50 w51': 2\}"):
        LabelScorer(model, tokenizer, wrong)
    with pytest.raises(TaskError, match="two of them are the same"):
        LabelScorer(model, tokenizer, LabelTask("tiny", "", ["w5"], TEMPLATE, ("unknown", "also"), None, ["0"]))


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "bloom", "gpt2", "falcon-rw", "gpt_neox-parallel"])
def test_continuations_equal_whole_passes(name: str) -> None:
    starts = sentences(4, seed=3)
    prompts = [[starts[0]] * 2, [starts[1]] * 2, [starts[2], starts[3]]]
    ends = [[" w20", " w21 w22 w23"], [" w24 w25", " w26"], [" w30 w31", " w30 w31"]]
    rows = ContinuationTask("tiny", "", prompts, ends, [0, 1, 0], ["a", "b", "c"])
    tried = [PLAIN, Variant("late", maps(), 0.5, (3,)), Variant("all", maps(), 0.3)]
    model, tokenizer = tiny(name), tiny_tokenizer()
    found, counts = score_continuations(model, tokenizer, rows, tried, progress=False, batch_rows=3)
    assert counts.tolist() == [[1, 3], [2, 1], [2, 2]]
    for v, variant in enumerate(tried):
        for i, k in ((i, k) for i in range(3) for k in range(2)):
            ids = tokenizer(prompts[i][k]).input_ids
            whole = torch.tensor([tokenizer(prompts[i][k] + ends[i][k]).input_ids])
            with torch.inference_mode():
                if variant.sites:
                    with intervene(model, variant.alignment, alpha=variant.alpha, layers=variant.sites):  # type: ignore[arg-type]
                        prompt = model(whole[:, : len(ids)], use_cache=True)
                else:
                    prompt = model(whole[:, : len(ids)], use_cache=True)
                rest = model(whole[:, len(ids) :], past_key_values=prompt.past_key_values).logits
            logits = torch.cat([prompt.logits[0, -1:], rest[0, :-1]]).log_softmax(-1)
            expected = logits.gather(-1, whole[0, len(ids) :, None]).sum()
            torch.testing.assert_close(found[v, i, k], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ["ffn", "attention"])
def test_maps_of_parts_of_a_block_are_refused_before_anything_runs(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that begins behind block l never runs what they edit."""
    alignment = maps().with_metadata(site=site, recommended_alpha=0.4)
    scorer = LabelScorer(tiny("llama"), tiny_tokenizer(), task(), progress=False)
    with pytest.raises(ValueError, match=f"site='{site}'; label scores enter the model behind block l"):
        scorer.score([Variant("x", alignment, 0.4)])

    def no_pass(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(torch.nn.Linear, "forward", no_pass)
    with pytest.raises(ValueError, match="label scores enter"):
        evaluate(tiny("llama"), tiny_tokenizer(), alignment, task(), progress=False)


def test_continuations_under_maps_of_the_ffn_are_the_same_alone_and_together() -> None:
    """Several variants at hidden sites start late; these must not."""
    words = [" w5 w6", " w9"]
    stories = ContinuationTask("tiny", "xx", [["w1 w2 w3"] * 2, ["w4 w2"] * 2], [words, words], [0, 1], ["0", "1"])
    both = [Variant(str(seed), maps(seed, "add").with_metadata(site="ffn"), 0.4, (2, 3)) for seed in (0, 1)]
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    together, _ = score_continuations(model, tokenizer, stories, both, progress=False)
    for row, variant in enumerate(both):
        alone, _ = score_continuations(model, tokenizer, stories, [variant], progress=False)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
    plain, _ = score_continuations(model, tokenizer, stories, [PLAIN], progress=False)
    assert not torch.allclose(together[0], plain[0], atol=1e-2)
