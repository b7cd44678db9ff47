"""Score label words under many variants of an intervention.

All tokens of a prompt but the last run once. Then the last token runs once per variant, several variants in one pass; a
pass whose first edited site is l starts there, from the plain state, which is computed once. The LM head computes the
logits of the label words only, each of which is one token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from incline_fast.alignment import Alignment
from incline_fast.evaluation.calibration import CONTENT_FREE, batch_calibrated, contextual_calibrated, prior_matched
from incline_fast.evaluation.checks import check_late_entry, warn_of_template
from incline_fast.evaluation.kept_prompts import KeptPrompts
from incline_fast.evaluation.tasks import LabelTask, TaskError
from incline_fast.intervention.intervene import intervene
from incline_fast.models.label_head import head_of_tokens
from incline_fast.models.sites import evaluated
from incline_fast.states.prompt_runner import PromptBatch, PromptRunner, Step

__all__ = ["PLAIN", "LabelScorer", "LabelScores", "Variant", "chunks", "grouped", "places_of", "strengths_of"]


@dataclass(frozen=True)
class Variant:
    """One way to run the last token of the prompts.

    Attributes:
        name: for tables.
        alignment: the maps; None for the plain model.
        alpha: strength.
        layers: sites to edit; None: all of the alignment's.
    """

    name: str
    alignment: Alignment | None = None
    alpha: float = 0.0
    layers: tuple[int, ...] | None = None

    @property
    def sites(self) -> tuple[int, ...]:
        """The edited sites."""
        if self.alignment is None or self.alpha == 0:
            return ()
        return tuple(sorted(self.layers or self.alignment.layers))


PLAIN = Variant("plain")


@dataclass(frozen=True, eq=False)
class LabelScores:
    """Logits of the labels under V variants.

    Attributes:
        task: what was scored.
        variants: V of them.
        logits: fp32 ``[V, n, K]``.
        content_free: fp32 ``[V, F, K]`` after content-free sentences, for contextual calibration.
        growth: fp32 ``[V, n]``: norm of the state before the final norm over the plain one's. Above 10 the edit has
            blown up.
    """

    task: LabelTask
    variants: list[Variant]
    logits: Tensor
    content_free: Tensor
    growth: Tensor

    def calibrated(self, calibration: str = "raw", prior: Sequence[float] | None = None) -> Tensor:
        """Scores ``[V, n, K]``: ``"raw"``, ``"contextual"``, ``"batch"`` or ``"prior"`` (see ``calibration``)."""
        if calibration == "raw":
            return self.logits
        if calibration == "contextual":
            return contextual_calibrated(self.logits, self.content_free)
        if calibration == "batch":
            return batch_calibrated(self.logits)
        if calibration == "prior":
            return prior_matched(self.logits, prior)
        raise ValueError(f"calibration is {calibration!r}; allowed: raw, contextual, batch, prior")

    @property
    def answers(self) -> Tensor | None:
        """``[n]``, None where the answers are not known."""
        return None if self.task.answers is None else torch.tensor(self.task.answers, device="cpu")

    def correct(self, calibration: str = "raw", prior: Sequence[float] | None = None) -> Tensor:
        """``[V, n]`` bool: whether the highest score is the answer's.

        Raises:
            TaskError: the answers are not known.
        """
        if self.answers is None:
            raise TaskError(f"{self.task.name} has no answers")
        return self.calibrated(calibration, prior).argmax(-1) == self.answers

    def of(self, name: str) -> int:
        """The number of a variant."""
        return [variant.name for variant in self.variants].index(name)


class LabelScorer:
    """Scores the labels of one task; the prompts run once, however often :meth:`score` is called."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        task: LabelTask,
        *,
        sites: Sequence[int] | None = None,
        folder: Path | None = None,
        batch_rows: int = 512,
        content_free: bool = True,
        progress: bool = True,
    ) -> None:
        """Run the prompts.

        Args:
            model: a causal LM of transformers, not compiled.
            tokenizer: its tokenizer.
            task: sentences, template and labels; every label is one token after a space.
            sites: where edits may begin; all by default. Fewer late sites keep fewer keys and values.
            folder: keeps the prompts, see :class:`KeptPrompts`.
            batch_rows: bound on prompts times variants of one step.
            content_free: also run content-free sentences, for contextual calibration.
            progress: show progress bars.

        Raises:
            TaskError: a label is not a single token, or two labels are the same one.
        """
        self.task = task
        self.runner = PromptRunner(model, tokenizer)
        self._tokenizer = tokenizer
        self._batch_rows = batch_rows
        self._progress = progress
        self.tokens = label_tokens(tokenizer, task.labels)
        count = self.runner.architecture.num_layers
        self.sites = list(range(1, count + 1)) if sites is None else sorted(sites)
        nothing = list(CONTENT_FREE) if content_free else []
        self.kept = KeptPrompts(
            self.runner,
            self.runner.ids([*task.sentences, *nothing], task.template),
            sites=sorted({*self.sites, count}),
            first_block=self.sites[0],
            folder=folder,
            progress=progress,
            what=f"{task.name} {task.language}".strip(),
        )

    @property
    def states(self) -> dict[int, Tensor]:
        """Site -> fp32 ``[n, d]``, the plain states of the task's prompts."""
        return {site: states[: len(self.task)] for site, states in self.kept.states.items()}

    def score(self, variants: Sequence[Variant]) -> LabelScores:
        """The labels' logits under every variant, in one step per alignment and set of sites.

        Raises:
            ValueError: a variant edits a site before those that the prompts were kept for.
        """
        variants = list(variants)
        for variant in variants:
            self._check(variant)
        logits = torch.zeros(len(variants), len(self.kept), len(self.tokens), dtype=torch.float32, device="cpu")
        norms = torch.zeros(len(variants), len(self.kept), dtype=torch.float32, device="cpu")
        groups = grouped(variants)
        bar = tqdm(total=len(self.kept) * len(variants), desc="score", unit="row", disable=not self._progress)
        with bar, self._running():
            for indices, batch in self.kept:
                for sites, numbers in groups:
                    for part in chunks(numbers, max(1, self._batch_rows // len(batch))):
                        step = self._step(batch, [variants[i] for i in part], sites)
                        shape = len(batch), len(part), -1
                        rows = places_of(part)[:, None], places_of(indices)[None]
                        logits[rows] = step.logits.float().view(shape).transpose(0, 1).cpu()
                        norms[rows] = step.norms.view(shape[:2]).T.cpu()
                        bar.update(len(batch) * len(part))
        n = len(self.task)
        plain = torch.linalg.vector_norm(self.kept.states[self.runner.architecture.num_layers], dim=-1)
        return LabelScores(self.task, variants, logits[:, :n], logits[:, n:], (norms / plain)[:, :n])

    def oracle(self, target: Mapping[int, Tensor], sites: Sequence[int] | None = None) -> Tensor:
        """Logits ``[S, n, K]`` with the true target state in the place of the source state, at one site at a time.

        No map can be expected to gain more: where the true target state gains nothing, no edit at that site can help.

        Args:
            target: site -> ``[n, d]``, the states of the target prompts.
            sites: S of the scorer's sites, all of them by default.
        """
        chosen = self.sites if sites is None else list(sites)
        logits = torch.zeros(len(chosen), len(self.task), len(self.tokens), dtype=torch.float32, device="cpu")
        with self._running():
            for indices, batch in self.kept:
                real = [place for place, i in enumerate(indices) if i < len(self.task)]
                for row, site in enumerate(chosen):
                    entering = self.kept.states[site][indices].clone()
                    entering[real] = target[site][[indices[place] for place in real]]
                    step = self.runner.step(batch, 1, start=site, states=entering)
                    logits[row, [indices[place] for place in real]] = step.logits.float().cpu()[real]
        return logits

    def _running(self) -> Any:
        return _Stack(
            evaluated(self.runner.architecture.model),
            torch.inference_mode(),
            head_of_tokens(self.runner.model, self.tokens),
        )

    def _check(self, variant: Variant) -> None:
        if variant.sites and variant.sites[0] < self.sites[0]:
            raise ValueError(
                f"variant {variant.name!r} edits site {variant.sites[0]}; the prompts were kept for sites from "
                f"{self.sites[0]} on"
            )
        if variant.alignment is not None:
            check_late_entry(variant.alignment)
            warn_of_template(variant.alignment, self.task.template)

    def _step(self, batch: PromptBatch, variants: Sequence[Variant], sites: tuple[int, ...]) -> Step:
        """The last tokens of a batch under variants of one alignment, each editing these sites."""
        start = sites[0] if sites else self.runner.architecture.num_layers
        entering = batch.states[start].repeat_interleave(len(variants), 0)
        alignment = variants[0].alignment
        if not sites or alignment is None:
            return self.runner.step(batch, len(variants), start=start, states=entering)
        strengths = strengths_of(variants).repeat(len(batch))
        with intervene(self.runner.model, alignment, alpha=strengths, layers=sites) as run:
            return self.runner.step(batch, len(variants), run, start=start, states=entering)


def label_tokens(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """The token of every label after a space.

    Raises:
        TaskError: a label is several tokens, or two labels are one.
    """
    ids = [tokenizer(" " + label, add_special_tokens=False).input_ids for label in labels]
    several = {label: len(tokens) for label, tokens in zip(labels, ids, strict=True) if len(tokens) != 1}
    if several:
        raise TaskError(
            f"labels of more than one token: {several}. A sum over tokens handicaps long labels: choose words of one "
            "token ('science' for 'science/technology'), or score them as continuations"
        )
    tokens = [token for (token,) in ids]
    if len(set(tokens)) != len(tokens):
        raise TaskError(f"labels {', '.join(labels)} have the tokens {tokens}; two of them are the same")
    return tokens


def places_of(numbers: Sequence[int]) -> Tensor:
    """Indices or token ids as a tensor, whatever device surrounds the call."""
    return torch.tensor(numbers, dtype=torch.long, device="cpu")


def strengths_of(variants: Sequence[Variant]) -> Tensor:
    """fp32 ``[V]``."""
    return torch.tensor([variant.alpha for variant in variants], dtype=torch.float32, device="cpu")


def grouped(variants: Sequence[Variant]) -> list[tuple[tuple[int, ...], list[int]]]:
    """Variants of one alignment at the same sites share a step: ``(sites, numbers)``."""
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for number, variant in enumerate(variants):
        key = (id(variant.alignment) if variant.sites else 0, variant.sites)
        groups.setdefault(key, []).append(number)
    return [(sites, numbers) for (_, sites), numbers in groups.items()]


def chunks(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Parts of at most ``size`` numbers."""
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])


class _Stack:
    """Several contexts as one."""

    def __init__(self, *contexts: Any) -> None:
        self._contexts = contexts

    def __enter__(self) -> None:
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*exception)
