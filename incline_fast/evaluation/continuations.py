"""Log-likelihood of continuations after prompts whose last token is edited; the continuation is not.

All tokens of a prompt but the last run once. Then the last token runs once per variant of the intervention, all
variants in one pass, and each continuation runs after it. With several variants these passes start at the first edited
site, from the plain states there, which are computed once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from incline_fast.evaluation.scoring import Variant, chunks, grouped, places_of, strengths_of
from incline_fast.evaluation.tasks import ContinuationTask, TaskError
from incline_fast.intervention.intervene import intervene
from incline_fast.models.sites import evaluated
from incline_fast.states.prompt_runner import PromptBatch, PromptRunner, Step, like_batches

__all__ = ["score_continuations", "score_tokens"]


def score_continuations(
    model: nn.Module,
    tokenizer: Any,
    task: ContinuationTask,
    variants: Sequence[Variant],
    *,
    batch: int = 8,
    batch_rows: int = 64,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every continuation of a task.

    Args:
        model, tokenizer: the model.
        task: prompts and continuations.
        variants: V of them.
        batch: prompts of one prefill.
        batch_rows: bound on prompts times variants of one step.
        progress: show a progress bar.

    Returns:
        fp32 ``[V, n, K]`` in nats, and the number of tokens of every continuation ``[n, K]``.

    Raises:
        TaskError: a continuation adds no token to its prompt.
    """
    runner = PromptRunner(model, tokenizer)
    pairs = [pair for row in zip(task.prompts, task.continuations, strict=True) for pair in zip(*row, strict=True)]
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    ids = dict(zip(prompts, runner.ids(prompts, None), strict=True))
    wholes = runner.ids([prompt + end for prompt, end in pairs], None)
    ends = [whole[len(ids[prompt]) :] for (prompt, _), whole in zip(pairs, wholes, strict=True)]
    for (prompt, end), tokens in zip(pairs, ends, strict=True):
        if not tokens:
            raise TaskError(f"{task.name}: continuation {end!r} of {prompt!r} has no token of its own")
    requests = [(ids[prompt], end) for (prompt, _), end in zip(pairs, ends, strict=True)]
    what = f"{task.name} {task.language}".strip()
    found, _ = score_tokens(
        runner, requests, variants, batch=batch, batch_rows=batch_rows, progress=progress, what=what
    )
    choices = len(task.prompts[0])
    counts = torch.tensor([float(len(end)) for end in ends], dtype=torch.float32, device="cpu")
    return found.view(len(found), -1, choices), counts.view(-1, choices)


def score_tokens(
    runner: PromptRunner,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    variants: Sequence[Variant],
    *,
    batch: int = 8,
    batch_rows: int = 64,
    progress: bool = True,
    what: str = "score",
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of every continuation, given as tokens, and whether greedy decoding would give it.

    Prompts that several requests share run once, and so do tokens that all prompts begin with.

    Args:
        runner: of the model.
        requests: N pairs of prompt and continuation, at least one token each.
        variants: V of them.
        batch: prompts of one prefill.
        batch_rows: bound on prompts times variants of one step.
        progress: show a progress bar.
        what: its label.

    Returns:
        fp32 ``[V, N]`` in nats, and bool ``[V, N]``.
    """
    variants = list(variants)
    found = torch.zeros(len(variants), len(requests), dtype=torch.float32, device="cpu")
    greedy = torch.zeros(len(variants), len(requests), dtype=torch.bool, device="cpu")
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (prompt, _) in enumerate(requests):
        places.setdefault(tuple(prompt), []).append(place)
    ids = list(places)
    groups = grouped(variants)
    # From two edited variants on, keeping the plain states, at which passes can start, saves time.
    # A pass that starts at site l does not run block l, whose attention or FFN some maps edit.
    count = runner.architecture.num_layers
    edited = [variant.alignment for variant in variants if variant.sites and variant.alignment is not None]
    late = len(edited) > 1 and all(alignment.metadata.site == "hidden" for alignment in edited)
    starts = sorted({sites[0] if sites else count for sites, _ in groups}) if late else []
    bar = tqdm(total=len(ids) * len(variants), desc=what, unit="row", disable=not progress)
    with evaluated(runner.architecture.model), torch.inference_mode(), bar:
        shared = runner.share(ids)
        for indices in like_batches(ids, range(len(ids)), batch):
            prefilled = runner.prefill([ids[i] for i in indices], shared, sites=starts)
            turns = _turns(runner, prefilled, [places[ids[i]] for i in indices], requests, starts)
            for sites, numbers in groups:
                start = (sites[0] if sites else count) if late else 0
                for part in chunks(numbers, max(1, batch_rows // len(prefilled))):
                    step = _edited_step(runner, prefilled, [variants[i] for i in part], sites, start)
                    for turn in turns:
                        scores, chosen = turn.scored(runner, prefilled, step, len(part), start)
                        where = places_of(part)[:, None], places_of(turn.places)[None]
                        found[where] = scores.view(len(indices), -1).T.cpu()
                        greedy[where] = chosen.view(len(indices), -1).T.cpu()
                    bar.update(len(indices) * len(part))
    return found, greedy


def _edited_step(
    runner: PromptRunner, batch: PromptBatch, variants: Sequence[Variant], sites: tuple[int, ...], start: int
) -> Step:
    """The last tokens of a batch under variants of one alignment, all with the same sites, from site ``start`` on."""
    entering = batch.states[start].repeat_interleave(len(variants), 0) if start else None
    alignment = variants[0].alignment
    if not sites or alignment is None:
        return runner.step(batch, len(variants), start=start, states=entering)
    strengths = strengths_of(variants).repeat(len(batch))
    with intervene(runner.model, alignment, alpha=strengths, layers=sites) as run:
        return runner.step(batch, len(variants), run, start=start, states=entering)


@dataclass(frozen=True, eq=False)
class _Turn:
    """One continuation of each prompt of a batch.

    Attributes:
        places: numbers of the requests.
        opening: ``[B]``, the first token of each continuation, which the prompt's last token predicts.
        fed, wanted, real: ``[B, t]``, the tokens that are fed, what each is to predict, 0 for padding.
        states: site -> plain states ``[B, t, d]`` of the tokens that are fed.
    """

    places: list[int]
    opening: Tensor
    fed: Tensor
    wanted: Tensor
    real: Tensor
    states: dict[int, Tensor]

    def scored(
        self, runner: PromptRunner, batch: PromptBatch, step: Step, repeats: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the continuations, and whether greedy decoding gives them: ``[B * repeats]`` each.

        Args:
            runner: of the model.
            batch: the prompts.
            step: the (edited) pass over their last tokens.
            repeats: its rows of each prompt.
            start: the site at which it began.
        """
        first = step.logits.float().log_softmax(-1)
        opening = self.opening.repeat_interleave(repeats)
        total, greedy = first.gather(-1, opening[:, None]).squeeze(-1), first.argmax(-1) == opening
        if self.fed.shape[1] == 0:
            return total, greedy
        rows = (t.repeat_interleave(repeats, 0) for t in (self.fed, self.wanted, self.real, batch.mask))
        fed, wanted, real, before = rows
        entering = self.states[start].repeat_interleave(repeats, 0) if start else None
        cache = copy.deepcopy(step.cache)
        logits = runner.continue_from(cache, before, fed, real, start=start, states=entering)
        log_p = logits.float().log_softmax(-1).gather(-1, wanted[..., None]).squeeze(-1)
        as_wanted = (logits.argmax(-1) == wanted) | (real == 0)
        return total + (log_p * real).sum(-1), greedy & as_wanted.all(-1)


def _turns(
    runner: PromptRunner,
    batch: PromptBatch,
    places: Sequence[Sequence[int]],
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    starts: Sequence[int],
) -> list[_Turn]:
    """The continuations of a batch's prompts: turn k has the k-th of every prompt, or its last where it has fewer.

    Args:
        runner: of the model.
        batch: B prompts.
        places: per prompt, the numbers of its requests.
        requests: all pairs of prompt and continuation.
        starts: sites at which passes over continuations may start; their plain states are computed here.
    """
    plain = runner.step(batch, 1) if starts else None
    turns = []
    for number in range(max(map(len, places))):
        rows = [several[min(number, len(several) - 1)] for several in places]
        ends = [requests[place][1] for place in rows]
        opening = torch.tensor([end[0] for end in ends], device=runner.device)
        fed, wanted, real = torch.zeros(3, len(ends), max(map(len, ends)) - 1, dtype=torch.long, device="cpu")
        for row, end in enumerate(ends):
            fed[row, : len(end) - 1] = places_of(end[:-1])
            wanted[row, : len(end) - 1] = places_of(end[1:])
            real[row, : len(end) - 1] = 1
        fed, wanted, real = (t.to(runner.device) for t in (fed, wanted, real))
        states: dict[int, Tensor] = {}
        if plain is not None and fed.shape[1]:
            states = runner.continuation_states(copy.deepcopy(plain.cache), batch.mask, fed, real, starts)
        turns.append(_Turn(rows, opening, fed, wanted, real, states))
    return turns
