"""What a model takes: which tokens, how many of them, and on which device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from incline_fast.models.architectures import Architecture, text_config
from incline_fast.models.wrappers import execution_device
from incline_fast.text.prompts import TokenLimits

__all__ = ["input_device", "token_limits"]


def token_limits(architecture: Architecture) -> TokenLimits:
    """The tokens that a model knows, those that begin a text, and how many it takes at once."""
    return TokenLimits(
        architecture.bos_token_ids,
        _num_embeddings(_embedding(architecture)),
        getattr(text_config(architecture.model), "max_position_embeddings", None),
    )


def input_device(architecture: Architecture) -> torch.device:
    """Where token ids belong."""
    return execution_device(_embedding(architecture))


def _embedding(architecture: Architecture) -> nn.Module:
    embedding: nn.Module = architecture.model.get_input_embeddings()  # type: ignore[operator]
    return embedding


def _num_embeddings(embedding: nn.Module) -> int | None:
    """Quantised weights have other shapes than their module, and some modules return them only from a method."""
    known = getattr(embedding, "num_embeddings", None)
    if isinstance(known, int):
        return known
    weight = getattr(embedding, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None
