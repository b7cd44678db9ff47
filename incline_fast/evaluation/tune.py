"""Tune: from parallel prompts and a development set to maps whose estimator, lambda, sites and alpha were chosen.

First the oracle: what each site could gain at most, with the true target state in place. Sites that gain little are
left out. Then every estimator and lambda is fitted, every set of sites and alpha is scored on the development rows,
whose prompts run once but for their last token, and the best setting is fitted again on all pairs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from incline_fast.alignment import Alignment, AlignmentMetadata
from incline_fast.alignment.metadata import Form
from incline_fast.evaluation.bootstrap import Difference, paired_bootstrap
from incline_fast.evaluation.candidates import Setting, Trials, variants_of
from incline_fast.evaluation.metrics import Metric, metric_named
from incline_fast.evaluation.scoring import LabelScorer, label_tokens
from incline_fast.evaluation.sites import logits_of_states, worthwhile
from incline_fast.evaluation.tasks import Development
from incline_fast.fitting.estimators import get_estimator
from incline_fast.fitting.fit import fit_states
from incline_fast.intervention.sweep import DEFAULT_ALPHAS
from incline_fast.models.identity import identify, weights_hash
from incline_fast.states import HiddenStates, collect
from incline_fast.states.hidden_states import BATCH_TOKENS
from incline_fast.states.shards import Shards, text_hash

__all__ = [
    "DEFAULT_LAMS",
    "FEW_PAIRS",
    "Tuned",
    "Tuner",
    "tune",
    "warn_of_other_text",
]

DEFAULT_LAMS = (0.1, 0.3, 1.0, 3.0, 10.0)

FEW_PAIRS = 200
"""Fewer parallel sentences than this gain little (docs/benchmarks/accuracy.md)."""

# Sentences whose states are collected and kept together.
_PART = 100

# Squared distance of two sets' mean states, in units of the total variance of one; above it, the kinds of text differ.
_OTHER_TEXT = 0.15


@dataclass(frozen=True, eq=False)
class Tuned:
    """What :func:`tune` returns.

    Attributes:
        alignment: maps of the chosen sites, fitted on all pairs, with ``recommended_alpha`` and ``metrics`` in its
            metadata; None where no setting was better than the plain model.
        setting: what was chosen.
        trials: every setting that was tried.
        oracle: site -> what the true target state gains there over the plain model, with its interval.
        candidates: the sites that were tried.
    """

    alignment: Alignment | None
    setting: Setting | None
    trials: Trials
    oracle: dict[int, Difference]
    candidates: list[int]

    def table(self) -> str:
        """The oracle, then the choice, as text."""
        trials = self.trials
        lines = [f"{'site':>6}  what the true target state gains there ({trials.metric}), 95% interval"]
        for site, gain in self.oracle.items():
            lines.append(f"{site:>6}  {_shown(gain)}{'' if site in self.candidates else '   left out'}")
        plain, target = float(trials.plain.double().mean()), float(trials.target.double().mean())
        lines += ["", f"plain   {plain:.4f}", f"target  {target:.4f}"]
        if self.setting is None:
            lines.append(f"none of {len(trials.settings)} settings is better than the plain model")
            return "\n".join(lines)
        score = float(trials.scores[trials.settings.index(self.setting)].double().mean())
        lines.append(f"tuned   {score:.4f}, {_shown(trials.difference(self.setting))} over plain on the same rows")
        lines.append(f"chosen  {self.setting}; best of {len(trials.settings)} settings, so this gain is optimistic")
        return "\n".join(lines)


class Tuner:
    """One language: its states, its development prompts, and the fits and scores of settings.

    Most callers need :func:`tune` instead. Several tuners share a choice by ``Trials.joined``: settings are then chosen
    for all languages together, and nothing is fitted to one of them.

    Attributes:
        scorer: of the development prompts.
        plain_logits: ``[n, K]`` of the source prompts.
        target_logits: ``[n, K]`` of the target prompts.
        oracle: site -> what the true target state gains there over the plain model, with its interval.
        metadata: recorded in every fit.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        source: Sequence[str],
        target: Sequence[str],
        development: Development,
        *,
        sites: Sequence[int] | None = None,
        metric: str | Metric | None = None,
        form: Form | None = None,
        source_language: str | None = None,
        target_language: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        resume: str | PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        """Run all prompts once and measure the oracle; arguments as in :func:`tune`."""
        if len(source) != len(target):
            raise ValueError(
                f"source has {len(source)} sentences, target {len(target)}; sentence i must match sentence i"
            )
        self.task = task = development.task
        self._metric = metric
        metric_named(metric, task.answers is not None)
        label_tokens(tokenizer, task.labels)
        if len(source) < FEW_PAIRS:
            warnings.warn(
                f"there are {len(source)} pairs to fit; with fewer than {FEW_PAIRS} the maps gain little", stacklevel=3
            )
        self._folder = None if resume is None else Path(resume)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._form = form
        self._progress = progress
        identity = identify(model)
        count = identity.num_layers
        chosen = list(range(1, count + 1)) if sites is None else sorted(set(sites))

        layers = sorted({*chosen, count})

        def states(sentences: Sequence[str]) -> HiddenStates:
            # In parts, each kept in its own folder: a later run with more pairs reuses the parts that are there.
            parts = []
            for start in range(0, len(sentences), _PART):
                part = sentences[start : start + _PART]
                key = text_hash([str(task.template), str(layers), *part])
                options: dict[str, Any] = {"layers": layers, "batch_tokens": batch_tokens, "progress": progress}
                where = self._place("states", key)
                parts.append(collect(model, tokenizer, part, template=task.template, resume=where, **options))
            return {site: torch.cat([part[site] for part in parts]) for site in layers}

        self._x, self._y = states(source), states(target)
        self._dev_y = states(development.target)
        self.scorer = LabelScorer(
            model,
            tokenizer,
            task,
            sites=chosen,
            folder=self._place("prompts", text_hash([task.data_hash, str(chosen)])),
            content_free=False,
            progress=progress,
        )
        self._dev_x = self.scorer.states
        warn_of_other_text(self._x[count], self._dev_x[count])
        runner, tokens = self.scorer.runner, self.scorer.tokens
        self.target_logits = logits_of_states(runner, self._dev_y[count], tokens)
        self.plain_logits = logits_of_states(runner, self._dev_x[count], tokens)
        self._scores: dict[str, dict[str, Tensor]] = {}
        _, measured = self._measure(metric)
        plain, ceilings = measured(self.plain_logits), measured(self.scorer.oracle(self._dev_y))
        self.oracle = {site: paired_bootstrap(ceilings[i], plain, groups=task.ids) for i, site in enumerate(chosen)}
        self.metadata = AlignmentMetadata(
            model_id=identity.model_id,
            config_hash=identity.config_hash,
            num_layers=count,
            source_language=source_language,
            target_language=target_language,
            template=task.template,
            pooling="last",
            preset="tuned",
        )
        self._hashes: dict[str, str | float] = {
            "labels": ",".join(task.labels),
            "development_rows": len(task),
            "development_hash": task.data_hash,
            "text_hash": text_hash([*source, *target]),
            "weights_hash": weights_hash(model),
        }

    def trials(
        self,
        candidates: Sequence[int],
        *,
        estimators: Sequence[str] = ("affine_ridge",),
        lams: Sequence[float] = DEFAULT_LAMS,
        alphas: Sequence[float] = DEFAULT_ALPHAS,
        metric: str | Metric | None = None,
    ) -> Trials:
        """Fit every estimator with every lambda, and score each candidate site alone and all together at every alpha.

        A second call with another metric and the same settings runs no model and no fit.

        Args:
            candidates: sites to try.
            estimators, lams, alphas: what to try at them; see :func:`tune`.
            metric: see :func:`tune`; None for that of the tuner.

        Raises:
            ValueError: no alpha other than 0, an unknown estimator.
        """
        strengths = sorted({float(alpha) for alpha in alphas} - {0.0})
        if not strengths:
            raise ValueError(f"alphas is {list(alphas)}; expected one that is not 0")
        together = [tuple(candidates)] if len(candidates) > 1 else []
        site_sets = [*((site,) for site in candidates), *together]
        fits = [(name, lam) for name in estimators for lam in (lams if get_estimator(name).uses_lam else (0.0,))]
        settings: list[Setting] = []
        logits, growths = [], []
        for name, lam in tqdm(fits, desc="settings", unit="fit", disable=not self._progress):
            found = self._scored(name, lam, site_sets, strengths)
            settings += [Setting(name, lam, sites, alpha) for sites in site_sets for alpha in strengths]
            logits.append(found["logits"])
            growths.append(found["growth"])
        called, measured = self._measure(metric or self._metric)
        scores, plain, target = map(measured, (torch.cat(logits), self.plain_logits, self.target_logits))
        return Trials(called, settings, scores, torch.cat(growths), plain, target, self.task.ids)

    def states(self, site: int) -> tuple[Tensor, Tensor]:
        """Source and target states ``[n, d]`` of all pairs, those of the development set among them."""
        x, y = (self._x, self._dev_x), (self._y, self._dev_y)
        return torch.cat([part[site] for part in x]), torch.cat([part[site] for part in y])

    def fit(self, setting: Setting, metrics: Mapping[str, str | float] | None = None) -> Alignment:
        """The chosen maps, fitted on all pairs, with ``setting.alpha`` and ``metrics`` in the metadata."""
        pairs = {site: self.states(site) for site in setting.sites}
        alignment = fit_states(
            {site: pair[0] for site, pair in pairs.items()},
            {site: pair[1] for site, pair in pairs.items()},
            estimator=setting.estimator,
            lam=setting.lam or None,
            form=self._form,
            metadata=self.metadata,
            progress=False,
        )
        return alignment.with_metadata(recommended_alpha=setting.alpha, metrics={**self._hashes, **(metrics or {})})

    def _measure(self, metric: str | Metric | None) -> tuple[str, Callable[[Tensor], Tensor]]:
        """Name of a metric, and the function from logits of the development rows to its value per row."""
        answers = None if self.task.answers is None else torch.tensor(self.task.answers, device="cpu")
        name, function = metric_named(metric, answers is not None)
        return name, lambda logits: function(logits, self.target_logits, answers)

    def _scored(
        self, name: str, lam: float, site_sets: Sequence[tuple[int, ...]], alphas: Sequence[float]
    ) -> dict[str, Tensor]:
        """``logits [S, n, K]`` and ``growth [S, n]`` of the settings of one fit, from the folder if they are there.

        Args:
            name: of the estimator.
            lam: relative; 0 for the estimator's own.
            site_sets: sites that are edited together.
            alphas: strengths, tried with every one of these sets.
        """
        sites = sorted({site for several in site_sets for site in several})
        sides = [{site: side[site] for site in sites} for side in (self._x, self._y)]
        sums = [str(float(side[site].double().sum())) for side in sides for site in sites]
        key = text_hash([self.task.data_hash, name, str(lam), str(site_sets), str(alphas), str(self._form), *sums])
        if key in self._scores:
            return self._scores[key]
        folder = self._place("scores", key)
        shards = None if folder is None else Shards(folder, dict(self._hashes))
        found = None if shards is None else shards.find("scores")
        if found is None:
            maps = fit_states(
                *sides, estimator=name, lam=lam or None, form=self._form, metadata=self.metadata, progress=False
            )
            variants = variants_of(maps, lam, site_sets, alphas)
            scored = self.scorer.score(list(variants.values()))
            found = {"logits": scored.logits, "growth": scored.growth}
            if shards is not None:
                shards.keep("scores", found)
        self._scores[key] = found
        return found

    def _place(self, what: str, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{what}-{key}"


def tune(
    model: nn.Module,
    tokenizer: Any,
    source: Sequence[str],
    target: Sequence[str],
    development: Development,
    *,
    estimators: Sequence[str] = ("affine_ridge",),
    lams: Sequence[float] = DEFAULT_LAMS,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    sites: Sequence[int] | None = None,
    metric: str | Metric | None = None,
    form: Form | None = None,
    source_language: str | None = None,
    target_language: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    resume: str | PathLike[str] | None = None,
    progress: bool = True,
) -> Tuned:
    """Choose estimator, lambda, sites and alpha on development data, and fit the choice on all pairs.

    Fit on at least 200 parallel sentences like the inputs. They are put into the task's own prompt, the one in which
    the maps will be used: maps from other text or from another prompt may do harm.

    Args:
        model: a causal LM of transformers, not compiled.
        tokenizer: its tokenizer.
        source: n sentences, not those of the development set.
        target: their n translations.
        development: the rows to choose on, with the prompt template and the label words.
        estimators: names to try.
        lams: relative ridge parameters to try, for estimators that have one.
        alphas: strengths to try.
        sites: candidate sites; None: those of the last third at which the oracle gains at least half of what it gains
            at its best site. Every candidate is tried alone, and all together.
        metric: ``"accuracy"``, ``"calibrated_accuracy"``, ``"log_likelihood"``, ``"kl"`` or a
            :data:`~incline_fast.evaluation.metrics.Metric`;
            None: accuracy where answers are known, otherwise KL to the target prompt over the label words.
        form: of the maps, see ``fit``.
        source_language: recorded.
        target_language: recorded.
        batch_tokens: see ``collect``.
        resume: folder that keeps states, prompts and scores: a run that was stopped goes on there.
        progress: show progress bars.

    Returns:
        The alignment with its metrics inside, every setting that was tried, and the oracle.

    Raises:
        ValueError: an argument is not allowed.
        TaskError: the development set cannot be used.
        StatesError: a sentence or the folder cannot be used.
    """
    tuner = Tuner(
        model,
        tokenizer,
        source,
        target,
        development,
        sites=sites,
        metric=metric,
        form=form,
        source_language=source_language,
        target_language=target_language,
        batch_tokens=batch_tokens,
        resume=resume,
        progress=progress,
    )
    candidates = worthwhile(tuner.oracle) if sites is None else list(tuner.oracle)
    trials = tuner.trials(candidates, estimators=estimators, lams=lams, alphas=alphas)
    setting = trials.best()
    alignment = None
    if setting is not None:
        chosen = trials.scores[trials.settings.index(setting)]
        metrics: dict[str, str | float] = {
            "metric": trials.metric,
            "plain": float(trials.plain.double().mean()),
            "tuned": float(chosen.double().mean()),
            "target": float(trials.target.double().mean()),
            "oracle_gain": max(gain.mean for gain in tuner.oracle.values()),
            "settings_tried": len(trials.settings),
        }
        alignment = tuner.fit(setting, metrics)
    return Tuned(alignment, setting, trials, tuner.oracle, candidates)


def warn_of_other_text(fitted: Tensor, applied: Tensor) -> None:
    """Warn where the sentences to fit are another kind of text than those that the maps will be applied to.

    The squared distance of their mean states, over the total variance of the fitted ones, is about ``1/n + 1/m`` for
    two samples of one kind of text.
    """
    distance = float((fitted.double().mean(0) - applied.double().mean(0)).square().sum())
    shift = distance / float(fitted.double().var(0).sum())
    if shift > _OTHER_TEXT + 1 / len(fitted) + 1 / len(applied):
        warnings.warn(
            f"the sentences to fit are another kind of text than the development set (their mean states differ by "
            f"{shift:.2f} of a variance); maps from other text may do harm: fit on sentences like the inputs",
            stacklevel=3,
        )


def _shown(gain: Difference) -> str:
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
