"""Prompts: sentences in a template, their tokens, and which of those are real.

The one definition that fitting, sweeping, generating and editing share:

* **Padding** is what the attention mask says is not there.
* **BOS** are all tokens at the beginning of a text that mark its beginning, one or several: their states are constants
  of huge norm in many models.
* **Real** tokens are those of the text itself: neither padding, nor BOS, nor what a tokenizer adds (EOS, separators).
* The **last real token** is where a sentence's state is read and where a prompt is edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DEFAULT_TEMPLATE",
    "Prompt",
    "PromptError",
    "TokenLimits",
    "check_template",
    "fill",
    "leading_bos",
    "left_padded",
    "render",
    "tokenize",
]

PLACEHOLDER = "{sentence}"

DEFAULT_TEMPLATE = "{sentence}\nThe topic of this text is"


class PromptError(ValueError):
    """A sentence cannot be used as a prompt; the message says which and why."""


@dataclass(frozen=True)
class TokenLimits:
    """The tokens that a model takes.

    Attributes:
        bos_token_ids: tokens that mark the beginning of a text.
        num_embeddings: how many tokens it knows, None if that cannot be told.
        max_tokens: how many it takes at once, None without a limit.
    """

    bos_token_ids: tuple[int, ...] = ()
    num_embeddings: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One tokenised prompt.

    Attributes:
        index: its place in the input.
        ids: its tokens.
        real: which of them are real, at least one.
    """

    index: int
    ids: list[int]
    real: list[bool]

    @property
    def up_to_last(self) -> list[int]:
        """The tokens up to the last real one, what comes before it included."""
        return self.ids[: len(self.real) - self.real[::-1].index(True)]


def check_template(template: str | None) -> None:
    """Refuse a template that does not have exactly one ``{sentence}``.

    Raises:
        TypeError: it is not text.
        ValueError: it has none or several, or is not valid Unicode.
    """
    if template is None:
        return
    if not isinstance(template, str):
        raise TypeError(f"template is {template!r}; expected text with {PLACEHOLDER}")
    if template.count(PLACEHOLDER) != 1:
        raise ValueError(
            f"template {template!r} has {template.count(PLACEHOLDER)} times {PLACEHOLDER}; expected exactly one"
        )
    try:
        template.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"template {template!r} is not valid Unicode: {error.reason}") from error


def fill(template: str | None, sentence: str) -> str:
    """The sentence in a checked template; None for the bare sentence."""
    # Not str.format: other braces of a template, such as those of JSON, are text.
    return sentence if template is None else template.replace(PLACEHOLDER, sentence)


def render(sentences: Iterable[str], template: str | None) -> list[str]:
    """The prompts: every sentence in the template.

    Raises:
        TypeError: sentences is a string, or lists something else than strings.
        ValueError: there are none, or the template does not have exactly one ``{sentence}``.
        PromptError: a sentence is empty or not valid Unicode.
    """
    check_template(template)
    if isinstance(sentences, str | bytes | Mapping) or not isinstance(sentences, Iterable):
        raise TypeError(f"sentences is a {type(sentences).__name__}; expected a list of them, such as [sentence]")
    rendered = []
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise TypeError(f"sentence {index} is {sentence!r}, a {type(sentence).__name__}; expected a str")
        if not sentence.strip():
            raise PromptError(f"sentence {index} is empty")
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"sentence {index} is not valid Unicode: {error}") from error
        rendered.append(fill(template, str.__str__(sentence)))
    if not rendered:
        raise ValueError("sentences is empty; expected at least one")
    return rendered


def tokenize(tokenizer: Any, texts: Sequence[str], limits: TokenLimits) -> list[Prompt]:
    """Tokens of every text with the special tokens that the tokenizer adds by default, and which of them are real.

    Raises:
        PromptError: a text has no real token, more tokens than the model takes, or tokens that it does not know; or the
            tokenizer does not say which tokens it added.
    """
    encoded = tokenizer(
        list(texts), padding=False, truncation=False, return_attention_mask=False, return_special_tokens_mask=True
    )
    bos = {*limits.bos_token_ids, getattr(tokenizer, "bos_token_id", None)}
    masks = encoded["special_tokens_mask"] if "special_tokens_mask" in encoded else [None] * len(texts)
    prompts = []
    for index, (found, mask) in enumerate(zip(encoded["input_ids"], masks, strict=True)):
        ids = [int(token) for token in found]
        real = _own_tokens(tokenizer, index, texts[index], ids, mask)
        # A BOS that the text itself begins with was not added by the tokenizer, but is one.
        for position, token in enumerate(ids):
            if real[position] and token not in bos:
                break
            real[position] = False
        if not any(real):
            raise PromptError(f"sentence {index} has no real token: {texts[index]!r} becomes the ids {ids}")
        _check_size(index, ids, limits)
        prompts.append(Prompt(index, ids, real))
    return prompts


def _own_tokens(tokenizer: Any, index: int, text: str, ids: list[int], mask: Any) -> list[bool]:
    """Which of ``ids`` are the text's own and were not added by the tokenizer; ``mask`` is 1 for special tokens."""
    if mask is not None and len(mask) == len(ids):
        return [not int(flag) for flag in mask]
    # Tokenizers written in Python may add special tokens to the ids and not to the mask, which then is too short.
    own = [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    starts = [start for start in range(len(ids) - len(own) + 1) if ids[start : start + len(own)] == own]
    special = set(getattr(tokenizer, "all_special_ids", ()))
    clean = [start for start in starts if special.issuperset(ids[:start] + ids[start + len(own) :])]
    if not starts:
        raise PromptError(
            f"sentence {index}: {type(tokenizer).__name__} does not say which of the tokens {ids} it added; without "
            f"special tokens the text has {own}"
        )
    start = (clean or starts)[0]
    return [start <= position < start + len(own) for position in range(len(ids))]


def _check_size(index: int, ids: list[int], limits: TokenLimits) -> None:
    """Refuse here what would be an index error deep inside the model."""
    if limits.num_embeddings is not None and max(ids) >= limits.num_embeddings:
        raise PromptError(
            f"sentence {index} has the token id {max(ids)}, the model has {limits.num_embeddings} embeddings; "
            "the tokenizer is not this model's"
        )
    if limits.max_tokens is not None and len(ids) > limits.max_tokens:
        raise PromptError(f"sentence {index} has {len(ids)} tokens; the model takes {limits.max_tokens}")


def leading_bos(is_bos: Tensor, real: Tensor, begins: Tensor | None = None) -> Tensor:
    """BOS at the beginning of each text, one or several, as bool ``[B, T]``.

    Args:
        is_bos: ``[B, T]``, which tokens are BOS.
        real: ``[B, T]``, which are not padding.
        begins: ``[B, T]``, the first token of every text but a row's first; None: one text per row.
    """
    other = (real & ~is_bos).long()
    seen = other.cumsum(1)
    if begins is not None:
        # What was seen before a text began does not count in it.
        seen = seen - torch.where(begins, seen - other, 0).cummax(1).values
    return is_bos & real & (seen == 0)


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask, both int64 ``[B, T]``, of prompts that all end in the last column."""
    width = max(map(len, prompts))
    tokens, mask = torch.zeros(2, len(prompts), width, dtype=torch.long, device="cpu")
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt, device="cpu")
        mask[row, width - len(prompt) :] = 1
    return tokens, mask
