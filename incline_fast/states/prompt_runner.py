"""Run prompts up to their last token once, and the last token once for every variant of an intervention.

An edit of the last token changes nothing before it. So all tokens of a prompt but the last run once, and their keys and
values are kept. Then the last token runs on them: one pass computes it with every strength, each in a row of its own,
and a pass whose first edit is at site l starts at site l.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from incline_fast.models.architectures import describe
from incline_fast.models.inputs import input_device, token_limits
from incline_fast.models.late_entry import blocks_return_tuples, entered_at
from incline_fast.states.shared_prefix import (
    KeysValues,
    SharedPrefix,
    common_prefix,
    fill_skipped,
    key_value_cache,
    own_part,
    run_shared_prefix,
)
from incline_fast.text.prompts import left_padded, render, tokenize

__all__ = ["NOTHING_SHARED", "PromptBatch", "PromptRunner", "Step", "like_batches"]

# Prompts share a batch if the shortest has at least this share of the longest's tokens: padding costs as much as text.
_LIKE = 0.8

NOTHING_SHARED = SharedPrefix((), {})


class Edit(Protocol):
    """What a step needs of an intervention that is active on the model."""

    def expect_prompt(self) -> None:
        """The next forward pass ends a prompt."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts after all tokens but the last, padded on the left.

    Attributes:
        last: the last tokens ``[B, 1]``.
        mask: ``[B, T]`` over the whole prompts, 0 for padding.
        shared: the tokens that all prompts begin with.
        own: keys and values of the tokens between those and the last, of the blocks from ``first_block`` on.
        first_block: a step cannot start before it.
        states: site -> ``[B, d]``, the plain states of the last token; empty if they were not asked for.
    """

    last: Tensor
    mask: Tensor
    shared: SharedPrefix
    own: KeysValues
    first_block: int = 0
    states: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.last)

    @property
    def own_tokens(self) -> int:
        """Tokens of each row between the shared prefix and the last token, padding included."""
        return self.mask.shape[1] - 1 - len(self.shared)


@dataclass(frozen=True)
class Step:
    """What came out of one decode-shaped step.

    Attributes:
        logits: ``[B * repeats, V]``.
        norms: fp32 ``[B * repeats]``, the norm of the state before the final norm.
        cache: keys and values, the last token's included.
    """

    logits: Tensor
    norms: Tensor
    cache: Any


class PromptRunner:
    """Runs prompts through a causal LM; the model stays as it is."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        """Prepare.

        Raises:
            ValueError: the model has no LM head.
        """
        self.model = model
        self._tokenizer = tokenizer
        self.architecture = describe(model)
        if self.architecture.model.get_output_embeddings() is None:  # type: ignore[operator]
            raise ValueError(f"{type(model).__name__} has no LM head; next-token distributions cannot be compared")
        self._limits = token_limits(self.architecture)
        self.device = input_device(self.architecture)
        # Architectures without this argument take the positions from the mask.
        self._takes_positions = "position_ids" in inspect.signature(self.architecture.backbone.forward).parameters
        self._tuples = blocks_return_tuples(self.architecture)
        self._norms = torch.empty(0, device="cpu")

    def ids(self, sentences: Iterable[str], template: str | None) -> list[list[int]]:
        """Token ids of every prompt up to its last real token."""
        return [p.up_to_last for p in tokenize(self._tokenizer, render(sentences, template), self._limits)]

    def share(self, ids: Sequence[Sequence[int]]) -> SharedPrefix:
        """Run what all these prompts begin with; nothing where that is too short to be worth it."""
        return run_shared_prefix(self.architecture, ids[0][: common_prefix(ids)])

    def prefill(
        self,
        ids: Sequence[Sequence[int]],
        shared: SharedPrefix = NOTHING_SHARED,
        *,
        sites: Sequence[int] = (),
        first_block: int = 0,
    ) -> PromptBatch:
        """Run all tokens but the last, and with ``sites`` the last one too, for its plain states.

        Args:
            ids: prompts, all of which begin with ``shared``.
            shared: tokens that have run already.
            sites: whose plain states to keep.
            first_block: keys and values of earlier blocks are not kept.
        """
        skip = len(shared)
        tokens, mask = left_padded([prompt[skip:] for prompt in ids])
        width = tokens.shape[1]
        mask = torch.cat([torch.ones(len(ids), skip, dtype=torch.long, device="cpu"), mask], 1)
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        batch = PromptBatch(tokens[:, -1:], mask, shared, {})
        cache = None
        if width > 1:
            cache = self._cache(batch, 1, 0, own_tokens=0) if skip else None
            cache = self.architecture.backbone(
                input_ids=tokens[:, :-1],
                attention_mask=mask[:, :-1],
                past_key_values=cache,
                use_cache=True,
                **self._positions(mask, slice(skip, -1)),
            ).past_key_values
            batch = PromptBatch(batch.last, mask, shared, own_part(cache, shared, width - 1))
        states = self._states(batch, sites) if sites else {}
        kept = {block: pair for block, pair in batch.own.items() if block >= first_block}
        return PromptBatch(batch.last, mask, shared, kept, first_block, states)

    def step(
        self,
        batch: PromptBatch,
        repeats: int,
        run: Edit | None = None,
        *,
        start: int = 0,
        states: Tensor | None = None,
    ) -> Step:
        """Run the last token of every prompt ``repeats`` times; rows of one prompt are neighbours.

        Args:
            batch: of :meth:`prefill`.
            repeats: rows of each prompt.
            run: an intervention that is active on the model; it edits these tokens.
            start: the site at which the pass begins, 0 for the embedding.
            states: ``[B * repeats, d]``, what enters there if ``start`` is not 0.

        Raises:
            ValueError: the batch has no keys and values for ``start``, or states are missing.
        """
        if start < batch.first_block:
            raise ValueError(f"start is {start}; this batch was kept for steps from site {batch.first_block} on")
        if (states is None) != (start == 0):
            raise ValueError(f"start is {start} and states is {type(states).__name__}; a late start needs its states")
        cache = self._cache(batch, repeats, start) if batch.mask.shape[1] > 1 else None
        if run is not None:
            run.expect_prompt()
        tokens, mask = (part.repeat_interleave(repeats, 0) for part in (batch.last, batch.mask))
        with ExitStack() as stack:
            stack.enter_context(self._entry(start, states))
            # Described again, because an intervention replaces the module that reads the last state.
            handle = describe(self.model).sites[-1].observe(self._observe)
            stack.callback(handle.remove)
            output = self.model(
                input_ids=tokens,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **self._positions(mask, slice(-1, None)),
            )
        return Step(output.logits[:, -1], self._norms, output.past_key_values)

    def continue_from(
        self,
        cache: Any,
        before: Tensor,
        tokens: Tensor,
        real: Tensor,
        *,
        start: int = 0,
        states: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[B, t, V]`` after each of the tokens that follow prompts.

        Args:
            cache: of the :class:`Step` over the prompts' last tokens; it is written to.
            before: ``[B, T]``, the mask of the prompts.
            tokens: ``[B, t]``, padded on the right.
            real: ``[B, t]``, 0 for padding.
            start: the site at which the pass begins, that of the step or earlier.
            states: ``[B, t, d]``, what enters there if ``start`` is not 0.
        """
        fill_skipped(cache, start, before.shape[1])
        with self._entry(start, states):
            logits: Tensor = self.model(**self._continuation(cache, before, tokens, real)).logits
        return logits

    def continuation_states(
        self, cache: Any, before: Tensor, tokens: Tensor, real: Tensor, sites: Sequence[int]
    ) -> dict[int, Tensor]:
        """Site -> plain states ``[B, t, d]`` of tokens that follow prompts; arguments as in :meth:`continue_from`."""
        with self._observed(sites, slice(None)) as found:
            self.architecture.backbone(**self._continuation(cache, before, tokens, real))
        return found

    def _continuation(self, cache: Any, before: Tensor, tokens: Tensor, real: Tensor) -> dict[str, Any]:
        """The model's arguments for tokens that follow prompts; arguments as in :meth:`continue_from`."""
        mask = torch.cat([before, real], 1)
        about = {"input_ids": tokens, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        return about | self._positions(mask, slice(before.shape[1], None))

    def distributions(
        self, ids: Sequence[Sequence[int]], pairs: Sequence[int], rows: int, shared: SharedPrefix = NOTHING_SHARED
    ) -> Iterator[tuple[int, Tensor]]:
        """Index and fp32 log-probabilities ``[V]`` of the next token of each prompt.

        Args:
            ids: token ids of the prompts.
            pairs: indices of those that run.
            rows: the most prompts in a batch.
            shared: tokens that all of ``ids`` begin with and that have run already.
        """
        for batch in like_batches(ids, pairs, rows):
            logits = self.step(self.prefill([ids[i] for i in batch], shared), 1).logits
            yield from zip(batch, logits.float().log_softmax(-1), strict=True)

    def _cache(self, batch: PromptBatch, repeats: int, start: int, own_tokens: int | None = None) -> Any:
        return key_value_cache(
            self.architecture,
            batch.shared,
            batch.own,
            own_tokens=batch.own_tokens if own_tokens is None else own_tokens,
            rows=len(batch),
            repeats=repeats,
            first_block=start,
        )

    def _entry(self, start: int, states: Tensor | None) -> Any:
        if states is None:
            return nullcontext()
        states = states.to(self.device, self.architecture.sites[start].dtype)
        # [B, d] of one token, or [B, t, d].
        states = states[:, None] if states.dim() == 2 else states
        return entered_at(self.architecture, start, states, tuples=self._tuples)

    def _states(self, batch: PromptBatch, sites: Sequence[int]) -> dict[int, Tensor]:
        """Site -> plain states ``[B, d]`` of the last tokens."""
        with self._observed(sites, -1) as found:
            self.architecture.backbone(
                input_ids=batch.last,
                attention_mask=batch.mask,
                past_key_values=self._cache(batch, 1, 0) if batch.mask.shape[1] > 1 else None,
                use_cache=True,
                **self._positions(batch.mask, slice(-1, None)),
            )
        return found

    @contextmanager
    def _observed(self, sites: Sequence[int], columns: slice | int) -> Iterator[dict[int, Tensor]]:
        """Inside, a pass puts the states of ``sites`` at these tokens into the mapping: fp32, ``[B, t, d]``, or
        ``[B, d]`` for one column."""
        found: dict[int, Tensor] = {}

        def keep(site: int, h: Tensor) -> None:
            # fp32, and a copy: a later edit of the residual stream is in place.
            found[site] = h[:, columns].to(torch.float32, copy=True)

        handles = [self.architecture.sites[site].observe(partial(keep, site)) for site in sites]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _positions(self, mask: Tensor, columns: slice) -> dict[str, Tensor]:
        """The argument ``position_ids`` for these columns of ``mask [B, T]``, where the model has it."""
        return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, columns]} if self._takes_positions else {}

    def _observe(self, states: Tensor) -> None:
        self._norms = torch.linalg.vector_norm(states[:, -1], dim=-1, dtype=torch.float32)


def like_batches(ids: Sequence[Sequence[int]], indices: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Batches of at most ``limit`` indices of prompts of like length, the longest first.

    Prompts of one token share no batch with longer ones (1 < _LIKE * 2): they have no prefix, and a row of padding
    alone has no defined attention.
    """
    batch: list[int] = []
    for i in sorted(indices, key=lambda i: -len(ids[i])):
        if batch and (len(batch) == limit or len(ids[i]) < _LIKE * len(ids[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
