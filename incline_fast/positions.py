"""Which rows of a forward pass are edited: never padding, never BOS, and of the rest what ``positions`` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

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
        real: ``[B, T]``, False for padding; None: no padding.
        input_ids: ``[B, T]``, None for a pass over embeddings.
    """

    batch: int
    length: int
    past: int
    real: Tensor | None
    input_ids: Tensor | None


def read_call(arguments: Mapping[str, Any], *, windowed: bool) -> Call:
    """Describe a forward pass from the arguments of a causal LM or its backbone.

    Args:
        windowed: some layer attends to a sliding window only; a prepared 4-D mask may then hide real tokens.

    Raises:
        ValueError: neither ids nor embeddings, packed sequences, or a mask that does not fit the inputs.
    """
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    source = ids if ids is not None else embeds
    if source is None:
        raise ValueError("input_ids and inputs_embeds are both None; one of them is needed to know what to edit")
    for name in ("cu_seq_lens_q", "block_table", "cu_seqlens"):
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is given: packed sequences have no row per prompt and cannot be edited")
    batch, length = int(source.shape[0]), int(source.shape[1])
    cache = arguments.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    real = _real_tokens(arguments.get("attention_mask"), batch, length, past, windowed)
    return Call(batch, length, past, real, ids)


def _real_tokens(mask: Any, batch: int, length: int, past: int, windowed: bool) -> Tensor | None:
    if isinstance(mask, Mapping):  # one prepared mask per attention type
        mask, windowed = mask.get("full_attention", next(iter(mask.values()))), "full_attention" not in mask
    if mask is None:
        return None
    if mask.dim() == 4:
        # The last token attends to every real token before it. A static cache is wider than what it holds.
        seen = mask[:, 0, -1, past : past + length]
        real = (seen if seen.dtype == torch.bool else seen == 0).expand(batch, length)
        if windowed and not bool(real.all()):
            # What lies before the window is real, but looks like padding; only its end is known to be right.
            first = real.long().argmax(dim=1, keepdim=True)
            real = real | (torch.arange(length, device=real.device) < first)
        return _or_none(real)
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < length:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; expected [{batch}, {past + length}] for this forward pass"
        )
    return _or_none(mask[:, mask.shape[1] - length :] != 0)


def _or_none(real: Tensor) -> Tensor | None:
    return None if bool(real.all()) else real


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
        bos_token_ids: a row's first real token is not edited if it is one of these.
        active: ``[B]``, False for rows with alpha = 0, which keep their bits.
    """
    if positions == "last" and prompt_length == 0:
        return None
    simple = call.real is None and active is None and call.length == 1
    if simple and (prompt_length == 0 or not _may_hold_bos(call, bos_token_ids)):
        return Rows()
    chosen = _grid(call, positions, prompt_length) & ~_bos(call, bos_token_ids, prompt_length)
    if active is not None:
        chosen = chosen & active.to(chosen.device)[:, None]
    if not bool(chosen.any()):
        return None
    if bool(chosen[:, -1].all()) and not bool(chosen[:, :-1].any()):
        return Rows()
    batch, time = chosen.nonzero(as_tuple=True)
    return Rows(batch, time)


def _may_hold_bos(call: Call, bos_token_ids: tuple[int, ...]) -> bool:
    return bool(bos_token_ids) and call.past == 0 and call.input_ids is not None


def _device(call: Call) -> torch.device | None:
    known = call.real if call.real is not None else call.input_ids
    return None if known is None else known.device


def _grid(call: Call, positions: Positions, prompt_length: int) -> Tensor:
    """``[B, T]`` bool, before BOS and alpha are looked at."""
    shape = (call.batch, call.length)
    real = torch.ones(shape, dtype=torch.bool, device=_device(call)) if call.real is None else call.real
    if positions == "all":
        return real
    column = torch.arange(call.length, device=real.device)
    # Column numbers from 1, so that a row of padding alone has its last token at 0, which no column matches.
    last = ((column + 1) * (real & (column < prompt_length))).amax(dim=1, keepdim=True)
    chosen = column + 1 == last
    return chosen if positions == "last" else chosen | (real & (column >= prompt_length))


def _bos(call: Call, bos_token_ids: tuple[int, ...], prompt_length: int) -> Tensor:
    """``[B, T]`` bool: the first real token of a text that starts in this pass, where it is BOS."""
    chosen = torch.zeros(call.batch, call.length, dtype=torch.bool, device=_device(call))
    if prompt_length == 0 or call.input_ids is None or not _may_hold_bos(call, bos_token_ids):
        return chosen
    real = torch.ones_like(chosen) if call.real is None else call.real
    rows = torch.arange(call.batch, device=chosen.device)
    first = real.long().argmax(dim=1)
    is_bos = torch.isin(call.input_ids[rows, first], torch.tensor(bos_token_ids, device=chosen.device))
    chosen[rows, first] = is_bos
    return chosen
