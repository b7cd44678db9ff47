"""Tune finds what was planted, resumes, leaves out sites that cannot help, and says what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_tokenizer import WORDS, sentences, tiny_tokenizer

from incline_fast import Alignment, intervene
from incline_fast.evaluation import (
    Development,
    LabelScorer,
    LabelTask,
    TaskError,
    Trials,
    Tuned,
    Variant,
    fit_controls,
    tune,
)
from incline_fast.evaluation.bootstrap import Difference
from incline_fast.evaluation.candidates import Setting
from incline_fast.evaluation.controls import CONTROLS
from incline_fast.evaluation.sites import last_third, worthwhile
from incline_fast.evaluation.tune import warn_of_other_text

LABELS = ("w50", "w51", "w52")
TEMPLATE = "{sentence} w7 w8"
FIT, DEV = 40, 12
LAMS, ALPHAS = (0.1, 1.0), (0.0, 0.5, 1.0)

pytestmark = pytest.mark.filterwarnings("ignore:there are 40 pairs")


def translated(texts: list[str]) -> list[str]:
    """A made-up language: every word is the next one of the vocabulary."""
    following = dict(zip(WORDS, [*WORDS[1:], WORDS[0]], strict=True))
    return [" ".join(following[word] for word in text.split()) for text in texts]


def texts() -> tuple[list[str], list[str]]:
    found = sentences(FIT + DEV, seed=5)
    return found[:FIT], found[FIT:]


def development(answers: bool = True) -> Development:
    """Answers are those of the target prompts: a map to them is right by construction."""
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    dev = texts()[1]
    known = None
    if answers:
        columns = tokenizer(" ".join(LABELS), add_special_tokens=False).input_ids
        known = []
        with torch.inference_mode():
            for text in translated(dev):
                ids = tokenizer(TEMPLATE.replace("{sentence}", text), return_tensors="pt").input_ids
                known.append(int(model(ids).logits[0, -1, columns].argmax()))
    names = [str(i) for i in range(DEV)]
    return Development(LabelTask("tiny", "xx", dev, TEMPLATE, LABELS, known, names), translated(dev))


def run(answers: bool = True, **options: Any) -> Tuned:
    fit_on = texts()[0]
    options = {"lams": LAMS, "alphas": ALPHAS, "progress": False} | options
    return tune(tiny("llama"), tiny_tokenizer(), fit_on, translated(fit_on), development(answers), **options)


def test_by_answers_and_by_kl() -> None:
    by_answers, by_kl = run(), run(answers=False)
    assert by_answers.trials.metric == "accuracy"
    assert by_kl.trials.metric == "kl"
    # The true state at the last site gives the target's answers, which are right: the oracle reaches everything.
    plain = float(by_answers.trials.plain.mean())
    assert by_answers.oracle[LAYERS].mean == pytest.approx(1 - plain, abs=1e-6)
    assert by_kl.oracle[LAYERS].mean == pytest.approx(-float(by_kl.trials.plain.mean()), abs=1e-5)
    assert by_kl.setting is not None
    best = by_kl.trials.scores[by_kl.trials.settings.index(by_kl.setting)].mean()
    assert float(best) == float(by_kl.trials.scores.mean(1).max()) > float(by_kl.trials.plain.mean())
    assert f"chosen  {by_kl.setting}" in by_kl.table()


def test_scores_of_a_setting_are_those_of_the_maps_applied() -> None:
    found = run(answers=False, sites=[2, 3])
    assert [setting.sites for setting in found.trials.settings[:6:2]] == [(2,), (3,), (2, 3)]
    assert found.alignment is not None
    assert found.setting is not None
    # The artifact is fitted on all pairs; on the development rows it must then be at least near what was measured.
    assert found.alignment.layers == list(found.setting.sites)
    assert found.alignment.metadata.n == FIT + DEV
    assert found.alignment.metadata.recommended_alpha == found.setting.alpha
    metrics = found.alignment.metadata.metrics
    assert metrics["settings_tried"] == 2 * 2 * 3 == len(found.trials.settings)
    assert metrics["plain"] < metrics["tuned"]


def test_the_artifact_keeps_its_metrics(tmp_path: Path) -> None:
    found = run(answers=False)
    assert found.alignment is not None
    found.alignment.save(tmp_path / "tuned.safetensors")
    again = Alignment.load(tmp_path / "tuned.safetensors", tiny("llama"))
    assert again.metadata == found.alignment.metadata
    found.trials.to_csv(tmp_path / "trials.csv")
    assert (tmp_path / "trials.csv").read_text().count("\n") == len(found.trials.settings) + 1


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(answers=False)
    real, calls = LabelScorer.score, []

    def stops(self: LabelScorer, variants: list[Variant]) -> object:
        calls.append(len(variants))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, variants)

    with monkeypatch.context() as patched:
        patched.setattr(LabelScorer, "score", stops)
        with pytest.raises(KeyboardInterrupt):
            run(answers=False, resume=tmp_path / "run")
    calls.clear()

    def counts(self: LabelScorer, variants: list[Variant]) -> object:
        calls.append(len(variants))
        return real(self, variants)

    monkeypatch.setattr(LabelScorer, "score", counts)
    monkeypatch.setattr("incline_fast.states.prompt_runner.PromptRunner.prefill", None)
    again = run(answers=False, resume=tmp_path / "run")
    assert len(calls) == 1  # one of the two lambdas was there
    assert again.setting == whole.setting
    torch.testing.assert_close(again.trials.scores, whole.trials.scores, rtol=1e-5, atol=1e-6)


def test_sites_that_cannot_help_are_left_out() -> None:
    def gain(value: float) -> Difference:
        return Difference(value, value, value)

    assert last_third(18) == [13, 14, 15, 16, 17, 18]
    assert last_third(30) == list(range(21, 31))
    assert last_third(2) == [2]
    oracle = {site: gain(0.0) for site in range(1, 15)} | {15: gain(0.1), 16: gain(0.12), 17: gain(0.2), 18: gain(0.2)}
    assert worthwhile(oracle) == [16, 17, 18] or worthwhile(oracle) == [15, 16, 17, 18]
    assert worthwhile({site: gain(-0.1) for site in range(1, 19)}) == [18]


def test_warnings() -> None:
    with pytest.warns(UserWarning, match="there are 40 pairs to fit; with fewer than 200"):
        run(answers=False, sites=[3], lams=(1.0,))
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 300, 8, generator=generator)
    warn_of_other_text(one, two)  # the same kind: no warning, which would be an error here
    with pytest.warns(UserWarning, match="another kind of text"):
        warn_of_other_text(one, two + 0.6)


def test_errors() -> None:
    with pytest.raises(ValueError, match="expected one that is not 0"):
        run(answers=False, alphas=(0.0,), sites=[3])
    with pytest.raises(ValueError, match="metric is 'accuracy', which needs answers"):
        run(answers=False, metric="accuracy")
    with pytest.raises(TaskError, match="12 sentences and 1 translations"):
        Development(development(False).task, ["w5"])


class TestTrials:
    settings = (Setting("r", 1.0, (3,), 0.5), Setting("r", 1.0, (3,), 1.0), Setting("r", 3.0, (3,), 0.5))

    def trials(self, scores: list[list[float]], growth: float = 1.0) -> Trials:
        table = torch.tensor(scores)
        grown = torch.ones_like(table)
        grown[1] = growth
        return Trials(
            "accuracy", list(self.settings), table, grown, torch.tensor([0.0, 1.0]), torch.ones(2), ["0", "1"]
        )

    def test_the_best_does_not_blow_up_and_beats_plain(self) -> None:
        assert self.trials([[0, 1], [1, 1], [1, 0]]).best() == self.settings[1]
        assert self.trials([[0, 1], [1, 1], [0, 0]], growth=11.0).best() is None
        # Equal means: the smaller alpha, then the larger lambda.
        assert self.trials([[1, 1], [1, 1], [1, 1]]).best() == self.settings[2]

    def test_joined(self) -> None:
        a, b = self.trials([[1, 1], [0, 1], [0, 1]]), self.trials([[0, 0], [1, 1], [0, 1]])
        both = Trials.joined([a, b])
        assert both.scores.shape == (3, 4)
        assert both.best() == self.settings[1]
        assert both.groups == ["0", "1", "0", "1"]


def test_controls() -> None:
    generator = torch.Generator().manual_seed(0)
    x = {3: torch.randn(50, HIDDEN, generator=generator)}
    y = {3: x[3] @ torch.randn(HIDDEN, HIDDEN, generator=generator) * 0.2 + 1}
    found = fit_controls(x, y, lam=0.1)
    assert tuple(found) == CONTROLS
    assert found["mean difference"].form == found["minimum norm, added"].form == "add"
    assert found["source to itself"].form == "interpolate"
    torch.testing.assert_close(found["constant mean"].bias[3], y[3].mean(0))
    image = found["source to itself"].maps[3].apply(x[3]) + found["source to itself"].bias[3]
    assert float((image - x[3]).norm() / x[3].norm()) < 0.3
    expected = torch.linalg.lstsq(x[3].double(), y[3].double()).solution.float()
    torch.testing.assert_close(found["minimum norm, added"].maps[3].as_dense()[0].T, expected, rtol=1e-3, atol=1e-4)
    model = tiny("llama")
    for alignment in found.values():
        with intervene(model, alignment, alpha=0.5):
            assert bool(model(torch.tensor([[5, 6]])).logits.isfinite().all())
