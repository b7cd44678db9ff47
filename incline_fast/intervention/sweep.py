"""Choose alpha: KL divergence to the target prompt's next-token distribution over a grid of strengths.

For parallel prompts s (source language) and t (target language), over the full vocabulary, in fp32:

    KL(alpha) = sum_v p(v | t) (log p(v | t) - log p_alpha(v | s))

with ``p_alpha`` the model under ``intervene(..., alpha=alpha, positions="last")``. Everything before the last prompt
token is untouched by such an edit, so the prefix of a prompt runs once; its cache is repeated, and one decode-shaped
step over the last token, with one alpha per row, gives all strengths. Several alignments share the prefixes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from incline_fast.alignment.alignment import Alignment
from incline_fast.arguments import numbers, whole, wholes
from incline_fast.intervention.intervene import intervene
from incline_fast.intervention.sweep_result import SweepResult
from incline_fast.models.sites import evaluated
from incline_fast.states.prompt_runner import PromptRunner, Step, like_batches

__all__ = ["DEFAULT_ALPHAS", "SweepResult", "compare", "sweep"]

DEFAULT_ALPHAS = tuple(step / 20 for step in range(21))

# The target distributions of this many pairs are in memory at once: 256 rows of 262144 tokens are 268 MB.
_PAIRS_AT_ONCE = 256


def sweep(
    model: nn.Module,
    tokenizer: Any,
    alignment: Alignment,
    source: Iterable[str],
    target: Iterable[str],
    *,
    alphas: Iterable[float] = DEFAULT_ALPHAS,
    template: str | None = None,
    layers: Iterable[int] | None = None,
    batch_rows: int = 128,
    progress: bool = True,
) -> SweepResult:
    """Measure ``KL(target prompt || source prompt)`` of the next token for every alpha of a grid.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.
        alignment: the maps.
        source: n sentences. Development pairs, if alpha is chosen from the result; held-out pairs to report it.
        target: their n translations.
        alphas: the grid; 0 is added if it is not there, because results are relative to it.
        template: prompt around each sentence, by default the one that the alignment was fitted with;
            ``"{sentence}"`` for bare sentences.
        layers: sites to edit; None: all that the alignment has.
        batch_rows: bound on prompts times alphas of one step (one prompt with all its alphas is the least).
        progress: show a progress bar.

    Returns:
        Every prompt's divergence at every alpha; ``best_alpha``, intervals, and which alphas blew up.

    Raises:
        TypeError, ValueError: unequal numbers of sentences, no sentence, a bad grid, layers without a map, a model
            without an LM head.
        PromptError: a sentence cannot be used.
        AlignmentError: the alignment was made for another model.
    """
    results = compare(
        model,
        tokenizer,
        {"alignment": alignment},
        source,
        target,
        alphas=alphas,
        template=alignment.metadata.template if template is None else template,
        layers=layers,
        batch_rows=batch_rows,
        progress=progress,
    )
    return results["alignment"]


def compare(
    model: nn.Module,
    tokenizer: Any,
    alignments: Mapping[str, Alignment],
    source: Iterable[str],
    target: Iterable[str],
    *,
    alphas: Iterable[float] | Mapping[str, Iterable[float]] = DEFAULT_ALPHAS,
    template: str | None = None,
    layers: Iterable[int] | None = None,
    batch_rows: int = 128,
    progress: bool = True,
) -> dict[str, SweepResult]:
    """:func:`sweep` for several alignments on the same prompts, with the prefixes and the targets computed once.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.
        alignments: name -> alignment: estimators, values of lambda, controls.
        source: n sentences.
        target: their n translations.
        alphas: one grid for all, or name -> grid.
        template: prompt around each sentence; None for bare sentences. The same for all, whatever each was fitted with.
        layers: sites to edit; None: all that an alignment has.
        batch_rows: bound on prompts times alphas of one step (one prompt with all its alphas is the least).
        progress: show a progress bar.

    Returns:
        name -> result.

    Raises:
        ValueError: there is no alignment; the other errors are those of :func:`sweep`.
    """
    if not alignments:
        raise ValueError("alignments is empty; expected at least one")
    if whole("batch_rows", batch_rows) < 1:
        raise ValueError(f"batch_rows is {batch_rows}; expected at least 1")
    grids = {name: _grid(alphas[name] if isinstance(alphas, Mapping) else alphas) for name in alignments}
    layers = None if layers is None else wholes("layers", layers)
    for alignment in alignments.values():
        intervene(model, alignment, alpha=1.0, layers=layers)  # refuses what cannot be applied, and edits nothing
    prompts = PromptRunner(model, tokenizer)
    source_ids, target_ids = (prompts.ids(texts, template) for texts in (source, target))
    if len(source_ids) != len(target_ids):
        raise ValueError(
            f"source has {len(source_ids)} sentences, target {len(target_ids)}; sentence i must match sentence i"
        )

    base = _Measures(1, len(source_ids))
    edited = {name: _Measures(len(grid), len(source_ids)) for name, grid in grids.items()}
    width = max(map(len, grids.values()))
    bar = tqdm(total=len(source_ids) * len(alignments), desc="sweep", unit="prompt", disable=not progress)
    with bar, evaluated(model), torch.inference_mode():
        shared = prompts.share([*source_ids, *target_ids])
        for start in range(0, len(source_ids), _PAIRS_AT_ONCE):
            pairs = range(start, min(start + _PAIRS_AT_ONCE, len(source_ids)))
            wanted = dict(prompts.distributions(target_ids, pairs, batch_rows, shared))
            for batch in like_batches(source_ids, pairs, max(1, batch_rows // width)):
                prefix = prompts.prefill([source_ids[i] for i in batch], shared)
                base.keep(batch, prompts.step(prefix, 1), wanted)
                for name, alignment in alignments.items():
                    strengths = torch.tensor(grids[name], dtype=torch.float32, device="cpu").repeat(len(batch))
                    with intervene(model, alignment, alpha=strengths, layers=layers) as run:
                        edited[name].keep(batch, prompts.step(prefix, len(grids[name]), run), wanted)
                    bar.update(len(batch))
    return {name: _result(grids[name], base, measures) for name, measures in edited.items()}


class _Measures:
    """The divergence and the norm of the last state, per alpha and prompt."""

    def __init__(self, alphas: int, prompts: int) -> None:
        self.kl = torch.full((alphas, prompts), torch.nan, dtype=torch.float32, device="cpu")
        self.norm = torch.full((alphas, prompts), torch.nan, dtype=torch.float32, device="cpu")

    def keep(self, batch: Sequence[int], step: Step, wanted: Mapping[int, Tensor]) -> None:
        self.norm[:, batch] = step.norms.view(len(batch), -1).T.cpu()
        for i, alphas_logits in zip(batch, step.logits.view(len(batch), len(self.kl), -1), strict=True):
            self.kl[:, i] = divergence(wanted[i], alphas_logits).cpu()


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL in nats from log-probabilities ``[V]`` to the softmax of logits ``[A, V]``: ``[A]``, fp32, to about 1e-5.

    ``sum p log p + logsumexp(logits) - p @ logits``: two passes over the logits and nothing of their size in between.
    Infinite where a logit is not finite: such a state has no distribution.
    """
    logits, p = logits.float(), target.exp()
    kl = (p * target).sum() + logits.logsumexp(-1) - logits @ p
    return torch.where(kl.isfinite(), kl, torch.inf)


def _grid(alphas: Iterable[float]) -> list[float]:
    """The strengths other than 0, ascending; 0 is measured apart, once for all alignments."""
    grid = sorted(set(numbers("alphas", alphas)) - {0.0})
    if not grid:
        raise ValueError("alphas has no strength other than 0; expected at least one")
    return grid


def _result(grid: list[float], base: _Measures, edited: _Measures) -> SweepResult:
    order = sorted(range(len(grid) + 1), key=[0.0, *grid].__getitem__)
    return SweepResult(
        alphas=[[0.0, *grid][i] for i in order],
        kl=torch.cat([base.kl, edited.kl])[order],
        growth=torch.cat([base.norm, edited.norm])[order] / base.norm,
    )
