"""Run only the upper part of a decoder: enter it at a site with given states, skipping the blocks before.

An edit at site l changes nothing before l. Where the state of a plain run at l is known, every variant of the edit can
start there: ``L - l`` blocks instead of L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from incline_fast.models.sites import Architecture, state_argument

__all__ = ["blocks_return_tuples", "entered_at"]


def blocks_return_tuples(architecture: Architecture) -> bool:
    """Whether this model's blocks return a tuple that begins with the state, or the state alone.

    Finds out by running one token.
    """
    found: list[bool] = []
    block = architecture.blocks[0]
    handle = block.register_forward_hook(lambda module, args, output: found.append(isinstance(output, tuple)))
    try:
        with torch.inference_mode():
            token = torch.zeros(1, 1, dtype=torch.long, device=architecture.sites[0].device)
            architecture.backbone(input_ids=token, use_cache=False)
    finally:
        handle.remove()
    return found[0]


@contextmanager
def entered_at(architecture: Architecture, site: int, states: Tensor, *, tuples: bool) -> Iterator[None]:
    """Inside, every forward pass has ``states [B, T, d]`` at ``site`` and does not compute the blocks before it.

    The keys and values of the skipped blocks are neither read nor written. The states are copied in each pass, so that
    an edit in place does not change the caller's.

    Args:
        architecture: of an eager model.
        site: 1 to L.
        states: what the site's norm or block is to read.
        tuples: see :func:`blocks_return_tuples`.

    Raises:
        ValueError: the site is not one of 1..L.
    """
    if not 1 <= site <= architecture.num_layers:
        raise ValueError(f"site is {site}; allowed: 1 to {architecture.num_layers}")

    def packed(state: Tensor) -> Any:
        return (state, None) if tuples else state

    def skip(*args: Any, **kwargs: Any) -> Any:
        return packed(state_argument(args, kwargs))

    def enter(*args: Any, **kwargs: Any) -> Any:
        return packed(states.clone())

    skipped = list(architecture.blocks[:site])
    with _replaced_forwards(skipped, [*[skip] * (site - 1), enter]):
        yield


@contextmanager
def _replaced_forwards(modules: list[nn.Module], forwards: list[Callable[..., Any]]) -> Iterator[None]:
    before: list[Any] = [vars(module).get("forward") for module in modules]
    try:
        for module, forward in zip(modules, forwards, strict=True):
            module.forward = forward
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                vars(module).pop("forward", None)
            else:
                module.forward = own
