"""One experiment from rows to a table: settings chosen for several languages together, then scored once on test rows.

Nothing is tuned to a language: estimator, lambda, sites and alpha are chosen on the pooled development rows, once by a
metric of answers and once without them, by KL to the English prompt over the label words. Controls are given their best
alpha on the test rows themselves, which flatters them. Intervals are 95% paired bootstrap intervals; where languages
are pooled, the translations of a sentence are drawn together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from incline_fast.evaluation.bootstrap import Difference, mcnemar, paired_bootstrap
from incline_fast.evaluation.calibration import CALIBRATIONS
from incline_fast.evaluation.candidates import Setting, Trials
from incline_fast.evaluation.controls import fit_controls
from incline_fast.evaluation.metrics import label_kl
from incline_fast.evaluation.report import result_row
from incline_fast.evaluation.scoring import PLAIN, LabelScorer, LabelScores, Variant
from incline_fast.evaluation.sites import last_third, worthwhile
from incline_fast.evaluation.tasks import Development, LabelTask, TaskError
from incline_fast.evaluation.tune import DEFAULT_LAMS, Tuner
from incline_fast.models.identity import identify, weights_hash

__all__ = ["COLUMNS", "INCLINE", "OVER_CONTROL", "TARGET", "UNLABELLED", "Comparison", "Parts", "compare_languages"]

INCLINE, UNLABELLED, TARGET = "INCLINE", "INCLINE, chosen without labels", "English prompt"
OVER_CONTROL = "INCLINE over the best control"

COLUMNS = (
    "language", "line", "calibration", "accuracy", "difference", "low", "high", "p_mcnemar", "cpc", "kl", "n",
    "setting", "pairs", "development_rows", "settings_tried", "seed", "dtype", "weights_hash", "data_hash",
)  # fmt: skip

ALPHAS = tuple(step / 10 for step in range(1, 11))


@dataclass(frozen=True)
class Parts:
    """Rows of one language: to fit, to choose on, and to report on."""

    fit: LabelTask
    development: LabelTask
    test: LabelTask

    @classmethod
    def drawn(cls, task: LabelTask, *, development: int, test: int, seed: int = 0) -> Parts:
        """A seeded division of the rows of one set, the same for every language of the set.

        Args:
            task: all rows.
            development: number of rows to choose on.
            test: number of rows to report on; the others are fitted.
            seed: of the division.
        """
        if development + test >= len(task):
            raise TaskError(
                f"{task.name} has {len(task)} rows; development={development}, test={test} leave none to fit"
            )
        order = torch.randperm(len(task), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
        held = development + test
        return cls(task.select(order[held:]), task.select(order[:development]), task.select(order[development:held]))


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare_languages` found.

    Attributes:
        rows: with the columns :data:`COLUMNS`, per language and for all, line and calibration.
        chosen: by the metric of answers, and by KL.
        oracle: language -> site -> what the true English state gains there on the development rows.
        scores: language -> scores of the test rows; variants 0 and 1 are plain and INCLINE.
        english: scores of the English test rows.
    """

    rows: list[dict[str, Any]]
    chosen: tuple[Setting, Setting]
    oracle: dict[str, dict[int, Difference]]
    scores: dict[str, LabelScores]
    english: LabelScores

    def row(self, language: str, line: str, calibration: str = "raw") -> dict[str, Any]:
        """One row of the table."""
        wanted = {"language": language, "line": line, "calibration": calibration}
        return next(row for row in self.rows if wanted.items() <= row.items())


def compare_languages(
    model: nn.Module,
    tokenizer: Any,
    rows: Mapping[str, Parts],
    english: Parts,
    *,
    sites: Sequence[int] | None = None,
    lams: Sequence[float] = DEFAULT_LAMS,
    alphas: Sequence[float] = ALPHAS,
    metric: str = "accuracy",
    resume: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Fit, choose on the development rows of all languages, refit, and score the test rows once.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.
        rows: language -> rows; answers are used to choose and to score, never to fit.
        english: the same rows in English, in the same order.
        sites: at which the oracle is measured, the model's last site among them; None: the last third.
        lams: ridge parameters to try.
        alphas: strengths to try, for the maps and for every control.
        metric: of answers, by which settings are chosen: ``"accuracy"``, ``"calibrated_accuracy"`` or
            ``"log_likelihood"``.
        resume: folder that keeps states and prompts.
        seed: of the bootstrap and of the control with wrong pairs.
        progress: show progress bars.

    Raises:
        TaskError: the rows of a language are not those of the English ones.
        ValueError: no setting is better than the plain prompt on the development rows.
    """
    for language, parts in rows.items():
        for part in ("fit", "development", "test"):
            if getattr(parts, part).ids != getattr(english, part).ids:
                raise TaskError(f"the {part} rows of {language} are not those of the English text")
    count = identify(model).num_layers
    watched = last_third(count) if sites is None else sorted(sites)
    tuners = {
        language: Tuner(
            model,
            tokenizer,
            parts.fit.sentences,
            english.fit.sentences,
            Development(parts.development, english.development.sentences),
            sites=watched,
            metric=metric,
            source_language=language,
            target_language="en",
            resume=resume,
            progress=progress,
        )
        for language, parts in rows.items()
    }
    by_metric, by_kl, tried = _choose(list(tuners.values()), lams, alphas, metric)

    def scorer(task: LabelTask, first: int) -> LabelScorer:
        folder = None if resume is None else Path(resume) / f"test-{task.language}-{first}-{task.data_hash}"
        return LabelScorer(model, tokenizer, task, sites=range(first, count + 1), folder=folder, progress=progress)

    in_english = scorer(english.test, count).score([PLAIN])
    scores = {
        language: scorer(rows[language].test, watched[0]).score(_variants(tuner, by_metric, by_kl, alphas, seed))
        for language, tuner in tuners.items()
    }
    fixed = {
        "pairs": len(english.fit) + len(english.development),
        "development_rows": len(english.development) * len(rows),
        "settings_tried": tried,
        "seed": seed,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "weights_hash": weights_hash(model),
        "data_hash": english.test.data_hash,
    }
    table = [row | fixed for row in _table(scores, in_english, by_metric, by_kl, seed)]
    oracle = {language: tuner.oracle for language, tuner in tuners.items()}
    return Comparison(table, (by_metric, by_kl), oracle, scores, in_english)


def _choose(
    tuners: Sequence[Tuner], lams: Sequence[float], alphas: Sequence[float], metric: str
) -> tuple[Setting, Setting, int]:
    """The settings of the best pooled metric and of the smallest pooled KL, and how many were tried."""
    gains = {site: [tuner.oracle[site].mean for tuner in tuners] for site in tuners[0].oracle}
    pooled = {site: Difference(sum(values) / len(values), min(values), max(values)) for site, values in gains.items()}
    candidates = worthwhile(pooled)
    best, tried = [], 0
    for name in (metric, "kl"):
        trials = Trials.joined([t.trials(candidates, lams=lams, alphas=alphas, metric=name) for t in tuners])
        setting = trials.best()
        if setting is None:
            raise ValueError(f"by {name}, none of {len(trials.settings)} settings is better than the plain prompt")
        best.append(setting)
        tried = len(trials.settings)
    return best[0], best[1], tried


def _variants(tuner: Tuner, setting: Setting, by_kl: Setting, alphas: Sequence[float], seed: int) -> list[Variant]:
    """Plain, the chosen settings, and every control at every alpha."""
    chosen = [Variant(name, tuner.fit(at), at.alpha) for name, at in ((INCLINE, setting), (UNLABELLED, by_kl))]
    pairs = {site: tuner.states(site) for site in setting.sites}
    controls = fit_controls(
        {site: pair[0] for site, pair in pairs.items()},
        {site: pair[1] for site, pair in pairs.items()},
        estimator=setting.estimator,
        lam=setting.lam,
        seed=seed,
        metadata=tuner.metadata,
    )
    tried = [Variant(f"{name} @ {alpha:g}", maps, alpha) for name, maps in controls.items() for alpha in alphas]
    return [PLAIN, *chosen, *tried]


def _table(
    scores: Mapping[str, LabelScores], english: LabelScores, setting: Setting, by_kl: Setting, seed: int
) -> list[dict[str, Any]]:
    """The rows of :class:`Comparison`, without the columns that are the same in all of them.

    Args:
        scores: language -> scores of the test rows, with the variants of :func:`_variants`.
        english: scores of the plain English prompts, the same rows.
        setting: chosen by the metric of answers.
        by_kl: chosen by KL.
        seed: of the bootstrap.
    """
    names = [variant.name for variant in next(iter(scores.values())).variants]
    settings = {INCLINE: str(setting), UNLABELLED: str(by_kl)}
    ids = english.task.ids
    divergence = {language: -label_kl(found.logits, english.logits[0], None) for language, found in scores.items()}
    rows: list[dict[str, Any]] = []
    for calibration in CALIBRATIONS:
        right = {language: found.correct(calibration) for language, found in scores.items()}
        pooled = torch.cat(list(right.values()), 1)
        controls = _best_controls(pooled, names)
        lines = {"plain": 0, INCLINE: 1, UNLABELLED: 2, **controls}
        everything = {"all": (pooled, torch.cat(list(divergence.values()), 1))}
        for language, (correct, kl) in (everything | {k: (right[k], divergence[k]) for k in right}).items():
            repeats = correct.shape[1] // len(ids)
            target, groups = english.correct(calibration)[0].repeat(repeats), ids * repeats
            for line, number in lines.items():
                at = names[number].partition(" @ ")[2]
                what = settings.get(line, f"alpha {at}, best on test" if at else "")
                row = result_row(correct[number], correct[0], target, groups, seed)
                row |= {"kl": round(float(kl[number].mean()), 4), "setting": what}
                rows.append({"language": language, "line": line, "calibration": calibration} | row)
            row = result_row(target, correct[0], target, groups, seed) | {"kl": 0.0, "setting": ""}
            rows.append({"language": language, "line": TARGET, "calibration": calibration} | row)
        best = max(controls.values(), key=lambda number: float(pooled[number].float().mean()))
        over = paired_bootstrap(pooled[1].float(), pooled[best].float(), groups=ids * len(right), seed=seed)
        rows.append(
            {
                "language": "all",
                "line": OVER_CONTROL,
                "calibration": calibration,
                "difference": round(over.mean, 4),
                "low": round(over.low, 4),
                "high": round(over.high, 4),
                "p_mcnemar": float(f"{mcnemar(pooled[1], pooled[best]):.3g}"),
                "n": pooled.shape[1],
                "setting": names[best],
            }
        )
    return rows


def _best_controls(correct: Tensor, names: Sequence[str]) -> dict[str, int]:
    """Control -> the number of the variant with its best alpha."""
    found: dict[str, int] = {}
    means = correct.float().mean(1)
    for number, name in enumerate(names):
        control, at, _ = name.partition(" @ ")
        if at and (control not in found or means[number] > means[found[control]]):
            found[control] = number
    return found
