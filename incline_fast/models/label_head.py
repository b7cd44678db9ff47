"""An LM head that computes the logits of a few tokens only: scoring label words needs no others.

A vocabulary of 262,144 tokens costs a small model more than all its blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from incline_fast.models.architectures import unwrap

__all__ = ["head_of_tokens"]


@contextmanager
def head_of_tokens(model: nn.Module, token_ids: Sequence[int]) -> Iterator[None]:
    """Inside, the model's logits are ``[..., len(token_ids)]``: column k is the logit of ``token_ids[k]``.

    The model's own scaling or soft capping of logits is applied to them, because only its head is replaced.

    Raises:
        ValueError: there is no LM head, or a token is not in its vocabulary.
    """
    lm: Any = unwrap(model)
    head = lm.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(lm).__name__} has no LM head, and so no label words to score")
    count = getattr(head, "out_features", None) or len(head.weight)
    if not token_ids or not all(0 <= token < count for token in token_ids):
        raise ValueError(f"token_ids is {list(token_ids)}; expected tokens below {count}, at least one")
    small = _rows_of(head, token_ids) if _is_plain_linear(head) else _Columns(head, token_ids)
    lm.set_output_embeddings(small)
    try:
        yield
    finally:
        lm.set_output_embeddings(head)


def _is_plain_linear(head: nn.Module) -> bool:
    """Whether the head multiplies with its weight and adds its bias, without an adapter, a hook or a packed weight."""
    return (
        type(head) is nn.Linear
        and type(head.weight) is nn.Parameter
        and head.weight.is_floating_point()
        and not head.weight.is_meta
        and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
    )


def _rows_of(head: Any, token_ids: Sequence[int]) -> nn.Linear:
    """A head with some rows of this one's weight."""
    rows = torch.tensor(list(token_ids), device=head.weight.device)
    small = nn.Linear(head.weight.shape[1], len(rows), bias=head.bias is not None, device="meta")
    small.weight = nn.Parameter(head.weight.detach()[rows], requires_grad=False)
    if head.bias is not None:
        small.bias = nn.Parameter(head.bias.detach()[rows], requires_grad=False)
    return small


class _Columns(nn.Module):
    """A head that computes all logits and keeps some."""

    def __init__(self, head: nn.Module, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        self.token_ids = list(token_ids)

    def forward(self, states: Tensor) -> Tensor:
        """``[..., len(token_ids)]``."""
        logits: Tensor = self.head(states)
        return logits[..., torch.tensor(self.token_ids, device=logits.device)]
