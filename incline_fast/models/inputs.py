"""What a model takes: which tokens, how many of them, and on which device."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from incline_fast.models.architectures import Architecture, UnsupportedModelError, text_config
from incline_fast.text.prompts import TokenLimits

__all__ = ["execution_device", "input_device", "token_limits"]


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


def execution_device(*modules: nn.Module) -> torch.device:
    """Where the first of these modules that says so computes.

    Weights say it by where they are. Weights that accelerate has offloaded are on the meta device between two calls;
    the hook that brings them in knows where to.

    Raises:
        UnsupportedModelError: nothing says so, as in a model that was made on the meta device and never loaded.
    """
    for module in modules:
        for tensor in _tensors(module):
            if not tensor.is_meta:
                return tensor.device
        for hook in chain.from_iterable(map(_hooks, module.modules())):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    if any(tensor.is_meta for module in modules for tensor in _tensors(module)):
        raise UnsupportedModelError(
            f"the weights of {type(modules[0]).__name__} are on the meta device, and nothing brings them in; "
            "load the model's weights, or offload them with accelerate"
        )
    return torch.device("cpu")


def _embedding(architecture: Architecture) -> nn.Module:
    embedding: nn.Module = architecture.model.get_input_embeddings()  # type: ignore[operator]
    return embedding


def _num_embeddings(embedding: nn.Module) -> int | None:
    """Quantised weights have other shapes than their module, and some modules give them out by a call only."""
    known = getattr(embedding, "num_embeddings", None)
    if isinstance(known, int):
        return known
    weight = getattr(embedding, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks of accelerate on one module; several may be joined in one."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
