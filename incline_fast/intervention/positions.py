"""Which rows of a forward pass are edited: never padding or BOS, and of the others those that ``positions`` selects.

A row of the batch holds one text, or several one behind the other (packed): a text begins where ``position_ids`` do not
continue counting, or where ``cu_seq_lens_q`` or ``seq_idx`` say so. Padding is what the attention mask hides; without a
mask it is a run of pad tokens at either end of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from incline_fast.models.architectures import Architecture
from incline_fast.text.prompts import leading_bos

__all__ = ["Call", "EditedTokens", "Positions", "SpecialTokens", "read_call", "rows_where", "select"]

Positions = Literal["last", "generated", "all"]


# Arguments in which models take the cache of earlier passes.
_CACHES = ("past_key_values", "cache_params", "state")


@dataclass(frozen=True)
class EditedTokens:
    """Tokens of states ``[B, T, d]``: a block of rows and columns, or single (row, column) pairs.

    The last column is the common case (decode steps, prompts without right padding). A block is a view, so an in-place
    op on it edits the states without a gather and a scatter.

    Attributes:
        batch, time: the pairs ``[N]``; None: the block.
        top, bottom, left, right: bounds of the block as in a slice; the last column of all rows by default.
    """

    batch: Tensor | None = None
    time: Tensor | None = None
    top: int | None = None
    bottom: int | None = None
    left: int | None = -1
    right: int | None = None

    def take(self, states: Tensor) -> Tensor:
        """The rows ``[N, d]`` or ``[rows, columns, d]``: a view of the block, or a copy of pairs."""
        if self.batch is not None:
            return states[self.batch, self.time]
        if self.top is None and self.bottom is None and self.right is None and self.left == -1:
            return states.select(1, -1)  # a third cheaper than [:, -1], at every site
        return states[self.top : self.bottom, self.left : self.right]

    def put(self, states: Tensor, values: Tensor) -> None:
        """Write ``values``, shaped as :meth:`take` returns them, to these rows."""
        if self.batch is not None:
            states[self.batch, self.time] = values.to(states.dtype)
        else:
            self.take(states).copy_(values)

    @cached_property
    def sparse(self) -> bool:
        """Whether they are single tokens among others: pairs, or one column of a prompt."""
        one_column = self.left is not None and len(range(self.left, 0 if self.right is None else self.right)) == 1
        return self.batch is not None or one_column

    def spread(self, values: Tensor, batch: int, length: int, rest: int) -> Tensor:
        """``[B T]``: one of ``values [N]`` (or the only one, without a dimension) at each token, ``rest`` elsewhere."""
        everywhere = torch.full((batch, length), rest, dtype=values.dtype, device=values.device)
        if self.batch is not None:
            everywhere[self.batch, self.time] = values
        else:
            block = self.take(everywhere)
            block.copy_(values.view(block.shape) if values.dim() else values)
        return everywhere.view(-1)

    def as_only_column(self) -> EditedTokens:
        """These rows of states that were cut down to their last column."""
        if self.time is not None:
            return EditedTokens(self.batch, torch.zeros_like(self.time))
        return EditedTokens(top=self.top, bottom=self.bottom)

    def per_token(self, per_row: Tensor, length: int) -> Tensor:
        """For each of these tokens the entry of a tensor ``[B]`` that belongs to its row, in states of ``length``."""
        if self.batch is not None:
            return per_row[self.batch]
        columns = len(range(length)[self.left : self.right])
        values = per_row[self.top : self.bottom]
        return values if columns == 1 else values.repeat_interleave(columns)

    def in_last_column(self, length: int) -> bool:
        """Whether every row lies in the last of ``length`` columns."""
        if self.time is None:
            return self.left in (-1, length - 1) and self.right in (None, length)
        return bool((self.time == length - 1).all())

    def batch_row(self, index: int) -> int:
        """The row of the batch of the ``index``-th of these rows."""
        return (self.top or 0) + index if self.batch is None else int(self.batch[index])


_LAST_COLUMN = EditedTokens()


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens that are no text: ``bos`` begins one, ``pad`` fills a row up, ``eos`` ends a text."""

    bos: tuple[int, ...] = ()
    pad: tuple[int, ...] = ()
    eos: tuple[int, ...] = ()

    @classmethod
    def of(cls, architecture: Architecture) -> SpecialTokens:
        """Those of a model, from its configuration and its generation config."""
        model = architecture.model
        known = (architecture.config, getattr(model, "config", None), getattr(model, "generation_config", None))
        configs = {id(config): config for config in known}.values()

        def ids(name: str) -> tuple[int, ...]:
            found: set[int] = set()
            for config in configs:
                value = getattr(config, name, None)
                found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
            return tuple(sorted(found))

        return cls(architecture.bos_token_ids, ids("pad_token_id"), ids("eos_token_id"))


@dataclass(frozen=True)
class Call:
    """What one forward pass reads.

    Attributes:
        batch, length: B and T.
        past: tokens in the cache before this pass.
        mask: the attention mask: None, ``[B, past + T]``, 4-D, or one 4-D mask per attention type.
        input_ids: ``[B, T]``, None for a pass over embeddings.
        texts: ``[B, T]`` or ``[1, T]``, True where a token does not go on with the text of the one before it; None: one
            text per row.
        device: of the inputs.
    """

    batch: int
    length: int
    past: int
    mask: Any
    input_ids: Tensor | None
    texts: Tensor | None = None
    device: torch.device | None = None

    def real(self, tokens: SpecialTokens | None = None) -> Tensor | None:
        """``[B, T]``, False for padding; None: no padding.

        Args:
            tokens: of the model, where padding is to be recognised without a mask.

        Raises:
            ValueError: a mask that does not fit the inputs; no mask, and a pad token that may also end a text.
        """
        # The masks of all attention types hide the same padding.
        mask = next(iter(self.mask.values())) if isinstance(self.mask, Mapping) else self.mask
        if mask is None:
            real = None if tokens is None else self._without_mask(tokens)
            return None if real is None or bool(real.all()) else real
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

    def _without_mask(self, tokens: SpecialTokens) -> Tensor | None:
        """Runs of pad tokens at both ends of a row are padding."""
        ids = self.input_ids
        if ids is None or not tokens.pad or self.length == 0:
            return None
        pad = torch.isin(ids, torch.tensor(tokens.pad, device=ids.device, dtype=ids.dtype))
        if not bool((pad[:, 0] | pad[:, -1]).any()):
            return None
        at_end = pad.flip(1).cumprod(1).flip(1).bool()
        doubtful = set(tokens.pad) & set(tokens.eos)
        if doubtful and bool(at_end.any()):
            raise ValueError(
                f"attention_mask is None, and a row ends in token {min(doubtful)}, which is both padding and the end "
                "of a text of this model; pass attention_mask to say which tokens are real"
            )
        return ~(at_end | pad.cumprod(1).bool())


def read_call(arguments: Mapping[str, Any]) -> Call:
    """Describe a forward pass from the arguments of a causal LM or its backbone.

    Raises:
        ValueError: neither ids nor embeddings; a paged cache; packing that does not show where each text begins.
    """
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    source = ids if ids is not None else embeds
    if source is None:
        raise ValueError("input_ids and inputs_embeds are both None; one of them is needed to know what to edit")
    for name in ("block_table", "read_index", "write_index", "logits_indices"):
        if arguments.get(name) is not None:
            raise ValueError(
                f"{name} is given: continuous batching packs prompts and decoded tokens into one row, and the requests "
                "that say which of them end a prompt are those of a manager that was made outside the intervention; "
                "use generate_batch inside"
            )
    past = _cached_tokens(arguments)
    batch, length = int(source.shape[0]), int(source.shape[1])
    texts = _beginnings(arguments, batch, length) if length > 1 else None
    return Call(batch, length, past, arguments.get("attention_mask"), ids, texts, source.device)


def _cached_tokens(arguments: Mapping[str, Any]) -> int:
    """Tokens before this pass. Recurrent states do not count theirs: 1 if there are any."""
    cache = next((arguments[name] for name in _CACHES if arguments.get(name) is not None), None)
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):  # a cache of recurrent states alone
        layers = getattr(cache, "layers", None)
        if layers is None:
            return 1
        return int(any(any(getattr(layer, "has_previous_state", {}).values()) for layer in layers))


def _beginnings(arguments: Mapping[str, Any], batch: int, length: int) -> Tensor | None:
    """See ``Call.texts``; where several arguments describe packing, the first one given is read."""
    ends = next(
        (arguments[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k") if arguments.get(name) is not None), None
    )
    if ends is not None:
        if batch != 1 or ends.dim() != 1 or int(ends[0]) != 0 or int(ends[-1]) != length:
            raise ValueError(
                f"cu_seq_lens_q is {ends.tolist()}, the input has shape {(batch, length)}; packed texts lie in one "
                "row, and the cumulative lengths go from 0 to its length"
            )
        texts = torch.zeros(1, length, dtype=torch.bool, device=ends.device)
        texts[0, ends[:-1].long()] = True
        return texts
    of_text = arguments.get("seq_idx")
    if of_text is not None:
        return _differs(of_text[:, 1:] != of_text[:, :-1])
    positions = arguments.get("position_ids")
    if positions is None or positions.shape[-1] != length:
        return None
    step = positions.diff(dim=-1)
    if positions.dim() == 3:  # one axis per kind of position; the temporal one is constant within an image
        return _differs_somewhere(step[0] < 0)
    # Without a mask and a cache, transformers keeps texts apart wherever positions do not go up by one.
    apart = arguments.get("attention_mask") is None and arguments.get("past_key_values") is None
    alone = apart and arguments.get("use_cache") is False
    return _differs_somewhere(step != 1 if alone else step <= 0)


def _differs(from_the_one_before: Tensor) -> Tensor:
    first = from_the_one_before.new_zeros(from_the_one_before.shape[0], 1)
    return torch.cat([first, from_the_one_before], dim=1)


def _differs_somewhere(from_the_one_before: Tensor) -> Tensor | None:
    return _differs(from_the_one_before) if bool(from_the_one_before.any()) else None


def _some(texts: Tensor) -> Tensor | None:
    return texts if bool(texts.any()) else None


def select(
    call: Call,
    positions: Positions,
    prompt_length: int,
    *,
    tokens: SpecialTokens | None = None,
    active: Tensor | None = None,
) -> EditedTokens | None:
    """The rows to edit, None if there are none.

    Args:
        call: the forward pass.
        positions: ``"last"`` - the last real token of each text of the prompt; ``"generated"`` - it and every token
            after the prompt; ``"all"`` - every real token.
        prompt_length: how many leading columns of this pass belong to the prompt: T for a prompt, 0 for a decode step,
            in between for passes without a cache, which repeat the prompt before what was generated.
        tokens: BOS at the beginning of a text is not edited, nor is padding.
        active: ``[B]``, False for rows with alpha = 0, which keep their bits.
    """
    if positions == "last" and prompt_length == 0:
        return None
    tokens = tokens or SpecialTokens()
    if positions == "last" and active is None and prompt_length == call.length and _ends_in_text(call, tokens):
        return _LAST_COLUMN
    given = call.real(tokens if prompt_length else None)
    if given is None and prompt_length == 0 and call.length == 1 and active is None and call.batch:
        return _LAST_COLUMN  # a decode step without padding
    real = torch.ones(call.batch, call.length, dtype=torch.bool, device=call.device) if given is None else given
    begins = _texts(call, real)
    chosen = _asked_for(positions, real, prompt_length, begins)
    if prompt_length and call.past == 0 and call.input_ids is not None and tokens.bos:
        chosen = chosen & ~_leading_bos(call.input_ids.to(real.device), real, begins, tokens.bos)
    if active is not None:
        chosen = chosen & active.to(chosen.device)[:, None]
    return rows_where(chosen)


def _ends_in_text(call: Call, tokens: SpecialTokens) -> bool:
    """Whether one look at the last column shows that it holds the last token of every text, and that no BOS.

    What most prompts are; everything else, and every mask that does not fit, is left to the long way.
    """
    mask, ids = call.mask, call.input_ids
    if call.texts is not None or call.batch == 0:
        return False
    if mask is None:
        special = {*tokens.bos, *tokens.pad}
    elif isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[0] == call.batch and mask.shape[1] >= call.length:
        if not bool(mask[:, -1].all()):
            return False
        special = set(tokens.bos)
    else:
        return False
    return ids is None or not special or special.isdisjoint(ids[:, -1].tolist())


def rows_where(chosen: Tensor) -> EditedTokens | None:
    """The chosen tokens ``[B, T]`` as a block where they are one, otherwise as pairs; None: no token."""
    batch, time = chosen.nonzero(as_tuple=True)
    count = batch.numel()
    if count == 0:
        return None
    rows, columns = chosen.shape
    bounds = torch.stack([batch.amin(), batch.amax() + 1, time.amin(), time.amax() + 1]).tolist()
    top, bottom, left, right = (int(bound) for bound in bounds)
    if (bottom - top) * (right - left) != count:
        return EditedTokens(batch, time)
    # Sizes are not read where it can be avoided: compiled code that reads "the last column" is right for every length.
    return EditedTokens(
        top=top or None,
        bottom=None if bottom == rows else bottom,
        left=-1 if left == columns - 1 else left or None,
        right=None if right == columns else right,
    )


def _texts(call: Call, real: Tensor) -> Tensor | None:
    """``[B, T]``, True at the first real token of every text but a row's first; None: one text per row."""
    if call.texts is None:
        return None
    texts = call.texts.to(real.device).expand(call.batch, call.length)
    # Positions of padding mean nothing: a text that begins behind it is the row's first.
    before = torch.cat([real.new_zeros(call.batch, 1), real[:, :-1]], dim=1)
    return _some(texts & real & before)


def _asked_for(positions: Positions, real: Tensor, prompt_length: int, begins: Tensor | None) -> Tensor:
    """``[B, T]`` bool, before BOS and alpha are looked at."""
    if positions == "all":
        return real
    column = torch.arange(real.shape[1], device=real.device)
    prompt = real & (column < prompt_length)
    if begins is None:
        # Column numbers from 1, so that a row of padding alone has its last token at 0, which no column matches.
        chosen = column + 1 == ((column + 1) * prompt).amax(dim=1, keepdim=True)
    else:
        text = begins.cumsum(1)
        # The prompt's next real token after each column: T where there is none.
        ahead = torch.where(prompt, column, len(column)).flip(1).cummin(1).values.flip(1)[:, 1:]
        ahead = torch.cat([ahead, ahead.new_full((len(ahead), 1), len(column))], dim=1)
        next_text = text.gather(1, ahead.clamp(max=len(column) - 1))
        chosen = prompt & ((ahead == len(column)) | (next_text != text))
    return chosen if positions == "last" else chosen | (real & (column >= prompt_length))


def _leading_bos(input_ids: Tensor, real: Tensor, begins: Tensor | None, bos: tuple[int, ...]) -> Tensor:
    """``[B, T]`` bool: the BOS, one or several, that each text begins with."""
    is_bos = torch.isin(input_ids, torch.tensor(bos, device=real.device, dtype=input_ids.dtype))
    return leading_bos(is_bos, real, begins)
