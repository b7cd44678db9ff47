"""Which rows of a forward pass are edited: never padding, never BOS, and of the rest what ``positions`` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from incline_fast.text.prompts import leading_bos

__all__ = ["Call", "Positions", "Rows", "read_call", "select"]

Positions = Literal["last", "generated", "all"]


@dataclass(frozen=True)
class Rows:
    """Rows of states ``[B, T, d]``; ``batch`` and ``time`` None: the last column of every batch row.

    The last column is the common case (decode steps, prompts without right padding) and needs no index tensors: it is
    a view, so an in-place op on it edits the states without a gather and a scatter.
    """

    batch: Tensor | None = None
    time: Tensor | None = None

    def take(self, states: Tensor) -> Tensor:
        """The rows ``[N, d]``: a view of the last column, or a copy of scattered rows."""
        return states[:, -1] if self.batch is None else states[self.batch, self.time]

    def put(self, states: Tensor, values: Tensor) -> None:
        """Write ``values [N, d]`` to these rows."""
        if self.batch is None:
            states[:, -1] = values
        else:
            states[self.batch, self.time] = values.to(states.dtype)

    def as_only_column(self) -> Rows:
        """These rows of states that were cut down to their last column."""
        return self if self.time is None else Rows(self.batch, torch.zeros_like(self.time))

    def of_batch(self, per_row: Tensor) -> Tensor:
        """The entries ``[N]`` of a tensor ``[B]`` that belong to these rows."""
        return per_row if self.batch is None else per_row[self.batch]

    def in_last_column(self, length: int) -> bool:
        """Whether every row lies in the last of ``length`` columns."""
        return self.time is None or bool((self.time == length - 1).all())


@dataclass(frozen=True)
class Call:
    """What one forward pass reads.

    Attributes:
        batch, length: B and T.
        past: tokens in the cache before this pass.
        mask: the attention mask: None, ``[B, past + T]``, 4-D, or one 4-D mask per attention type.
        input_ids: ``[B, T]``, None for a pass over embeddings.
    """

    batch: int
    length: int
    past: int
    mask: Any
    input_ids: Tensor | None

    def real(self) -> Tensor | None:
        """``[B, T]``, False for padding; None: no padding.

        Raises:
            ValueError: a mask that does not fit the inputs.
        """
        # Every attention type knows the padding.
        mask = next(iter(self.mask.values())) if isinstance(self.mask, Mapping) else self.mask
        if mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"attention_mask is a {type(mask).__name__}; expected a tensor or tensors by attention type"
            )
        if mask.dim() == 4 and mask.shape[-2] == self.length <= mask.shape[-1]:
            real = self._diagonal(mask)
        elif mask.dim() == 2 and mask.shape[0] == self.batch and mask.shape[1] >= self.length:
            real = mask[:, mask.shape[1] - self.length :] != 0
        else:
            expected = [self.batch, self.past + self.length]
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; expected {expected} for this forward pass")
        return None if bool(real.all()) else real

    def _diagonal(self, mask: Tensor) -> Tensor:
        """Whether each token sees itself: real tokens do, under every window; padding does not."""
        # Static caches are wider than their contents; a full window has slid, so that the new tokens are at its end.
        start = min(self.past, mask.shape[-1] - self.length)
        itself = mask[:, 0].diagonal(start, dim1=-2, dim2=-1)
        return (itself if itself.dtype == torch.bool else itself == 0).expand(self.batch, self.length)


def read_call(arguments: Mapping[str, Any]) -> Call:
    """Describe a forward pass from the arguments of a causal LM or its backbone.

    Raises:
        ValueError: neither ids nor embeddings, or packed sequences.
    """
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    source = ids if ids is not None else embeds
    if source is None:
        raise ValueError("input_ids and inputs_embeds are both None; one of them is needed to know what to edit")
    for name in ("cu_seq_lens_q", "block_table"):
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is given: packed sequences have no row per prompt and cannot be edited")
    cache = arguments.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    return Call(int(source.shape[0]), int(source.shape[1]), past, arguments.get("attention_mask"), ids)


def select(
    call: Call,
    positions: Positions,
    prompt_length: int,
    *,
    bos_token_ids: tuple[int, ...] = (),
    active: Tensor | None = None,
) -> Rows | None:
    """The rows to edit, None if there are none.

    Args:
        call: the forward pass.
        positions: ``"last"`` - the last real token of each prompt; ``"generated"`` - it and every token after the
            prompt; ``"all"`` - every real token.
        prompt_length: how many leading columns of this pass belong to the prompt: T for a prompt, 0 for a decode step,
            in between for passes without a cache, which repeat the prompt before what was generated.
        bos_token_ids: tokens that are not edited at the beginning of a row.
        active: ``[B]``, False for rows with alpha = 0, which keep their bits.
    """
    if positions == "last" and prompt_length == 0:
        return None
    given = call.real()
    real = _everything(call) if given is None else given
    chosen = _asked_for(positions, real, prompt_length)
    if prompt_length and call.past == 0 and call.input_ids is not None and bos_token_ids:
        chosen = chosen & ~_bos(call.input_ids, real, bos_token_ids)
    if active is not None:
        chosen = chosen & active.to(chosen.device)[:, None]
    if not bool(chosen.any()):
        return None
    if bool(chosen[:, -1].all()) and not bool(chosen[:, :-1].any()):
        return Rows()
    batch, time = chosen.nonzero(as_tuple=True)
    return Rows(batch, time)


def _everything(call: Call) -> Tensor:
    device = None if call.input_ids is None else call.input_ids.device
    return torch.ones(call.batch, call.length, dtype=torch.bool, device=device)


def _asked_for(positions: Positions, real: Tensor, prompt_length: int) -> Tensor:
    """``[B, T]`` bool, before BOS and alpha are looked at."""
    if positions == "all":
        return real
    column = torch.arange(real.shape[1], device=real.device)
    # Column numbers from 1, so that a row of padding alone has its last token at 0, which no column matches.
    last = ((column + 1) * (real & (column < prompt_length))).amax(dim=1, keepdim=True)
    chosen = column + 1 == last
    return chosen if positions == "last" else chosen | (real & (column >= prompt_length))


def _bos(input_ids: Tensor, real: Tensor, bos_token_ids: tuple[int, ...]) -> Tensor:
    """``[B, T]`` bool: the BOS at the beginning of each row, one or several."""
    is_bos = torch.isin(input_ids, torch.tensor(bos_token_ids, device=input_ids.device))
    return leading_bos(is_bos.to(real.device), real)
