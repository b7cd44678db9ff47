"""An LM head that computes the logits of a few tokens only: scoring label words needs no others.

A vocabulary of 262,144 tokens costs a small model more than all its blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from incline_fast.models.architectures import unwrap

__all__ = ["head_of_tokens"]


@contextmanager
def head_of_tokens(model: nn.Module, token_ids: Sequence[int]) -> Iterator[None]:
    """Inside, the model's logits are ``[..., len(token_ids)]``: column k is the logit of ``token_ids[k]``.

    Whatever the model does to its logits (scaling, soft capping) it does to these, because it is its head that changes.

    Raises:
        ValueError: there is no LM head, or a token is not in its vocabulary.
    """
    lm: Any = unwrap(model)
    head = lm.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(lm).__name__} has no LM head, and so no label words to score")
    if not token_ids or not all(0 <= token < len(head.weight) for token in token_ids):
        raise ValueError(f"token_ids is {list(token_ids)}; expected tokens below {len(head.weight)}, at least one")
    rows = torch.tensor(list(token_ids), device=head.weight.device)
    bias = getattr(head, "bias", None)
    small = nn.Linear(head.weight.shape[1], len(rows), bias=bias is not None, device="meta")
    small.weight = nn.Parameter(head.weight.detach()[rows], requires_grad=False)
    if bias is not None:
        small.bias = nn.Parameter(bias.detach()[rows], requires_grad=False)
    lm.set_output_embeddings(small)
    try:
        yield
    finally:
        lm.set_output_embeddings(head)
