"""Forward passes of the probe in which every state is edited: by hooks on the blocks, or where a site was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from incline_fast.models.sites import Tap, block_output, state_argument, with_block_output, with_state_argument

__all__ = ["ROWS", "TOKENS", "Blocks", "LastEdit", "install", "same_memory"]

ROWS, TOKENS = 2, 5
"""Size of the probe's batch."""


@dataclass(eq=False)
class Blocks:
    """A list of modules that may be the model's blocks, and what the first pass saw of them.

    Attributes:
        path: of the list.
        modules: its members.
        runs: how often each member ran.
        vectors: state l -> what is added to it.
        outputs: what each block returned in the first pass, before anything was added.
        joined: state l -> whether the next block was given the edited state itself.
        readers: state l -> modules that were given the edited state itself, in order.
        trouble: why these are not the blocks of a decoder, empty if they may be.
        like: the first state that was seen; all others have its shape.
        stream_axis: see :class:`~incline_fast.models.sites.Site`.
    """

    path: str
    modules: list[nn.Module]
    runs: list[int] = field(default_factory=list)
    vectors: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    joined: dict[int, bool] = field(default_factory=dict)
    readers: dict[int, list[nn.Module]] = field(default_factory=dict)
    trouble: str = ""
    like: Tensor | None = None
    stream_axis: int | None = None

    def vector(self, site: int, state: Tensor) -> Tensor:
        """What is added to state ``site``: drawn for every token in the first pass, half as large as the state."""
        if site not in self.vectors:
            generator = torch.Generator().manual_seed(site)
            tokens, size = TOKENS, state.shape[-1]
            drawn = torch.randn(1, tokens, size, generator=generator).to(state.device)
            scale = state.float().square().mean().sqrt().clamp_min(1e-3) / 2
            vector = (drawn * scale).to(state.dtype).expand(ROWS, tokens, size)
            self.vectors[site] = vector if self.stream_axis is None else vector.unsqueeze(self.stream_axis)
        return self.vectors[site].to(state.device)

    def is_state(self, value: Any) -> bool:
        """Whether ``value`` is a batch of hidden states; the first one seen says of which width."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            self.trouble = f"a block takes or returns a {type(value).__name__} where hidden states are expected"
            return False
        axis = None
        shape = tuple(value.shape)
        if value.dim() == 4:
            axis = 2 if shape[:2] == (ROWS, TOKENS) else 0
            shape = shape[:axis] + shape[axis + 1 :]
        if shape[:2] != (ROWS, TOKENS) or len(shape) != 3:
            self.trouble = f"its blocks pass on tensors of shape {tuple(value.shape)} for {ROWS} x {TOKENS} tokens"
            return False
        if self.like is None:
            self.like, self.stream_axis = value, axis
        if value.shape != self.like.shape:
            self.trouble = f"its blocks pass on states of shapes {tuple(self.like.shape)} and {tuple(value.shape)}"
            return False
        return True


class LastEdit:
    """The latest edit of the first pass: in which list, at which site, and the edited tensor itself."""

    def __init__(self) -> None:
        self.blocks: Blocks | None = None
        self.site = 0
        self.state: Tensor | None = None

    def entering(self, blocks: Blocks, index: int) -> Callable[..., Any]:
        """A pre-hook on block ``index`` that edits state 0 and records whether the other states reach their block."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            blocks.runs[index] += 1
            try:
                state = state_argument(args, kwargs)
            except (StopIteration, KeyError):
                blocks.trouble = "a block takes no hidden states"
                return None
            if not blocks.is_state(state):
                return None
            if index > 0:
                if self.blocks is blocks and self.site == index:
                    blocks.joined[index] = same_memory(state, self.state)
                return None
            self._set(blocks, 0, state + blocks.vector(0, state))
            blocks.joined[0] = True
            return with_state_argument(args, kwargs, cast(Tensor, self.state))

        return hook

    def leaving(self, blocks: Blocks, index: int) -> Callable[..., Any]:
        """A hook on block ``index`` that edits the state which it returns."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            state = block_output(output)
            if not blocks.is_state(state):
                return None
            blocks.outputs[index] = state
            self._set(blocks, index + 1, state + blocks.vector(index + 1, state))
            return with_block_output(output, cast(Tensor, self.state))

        return hook

    def _set(self, blocks: Blocks, site: int, state: Tensor) -> None:
        self.blocks, self.site, self.state = blocks, site, state


def install(module: nn.Module, tap: Tap, vector: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Add ``vector(state)`` to a site's state as an intervention would: in place in a norm, to a copy at a block.

    Args:
        module: the norm or the block.
        tap: see :class:`~incline_fast.models.sites.Site`.
        vector: what is added, shaped like the state.
    """
    if tap == "norm":

        def inside(module: nn.Module, args: Any, kwargs: Any) -> None:
            state = state_argument(args, kwargs)
            state.add_(vector(state))

        return module.register_forward_pre_hook(inside, with_kwargs=True)
    if tap == "block_input":

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            state = state_argument(args, kwargs)
            return with_state_argument(args, kwargs, state + vector(state))

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        state = block_output(output)
        return with_block_output(output, state + vector(state))

    return module.register_forward_hook(after)


def same_memory(value: Any, state: Tensor | None) -> bool:
    """Whether ``value`` is the tensor ``state`` or another view of all of it: a write to one is seen in both."""
    return (
        isinstance(value, Tensor)
        and state is not None
        and value.data_ptr() == state.data_ptr()
        and value.shape == state.shape
        and value.stride() == state.stride()
        and value.dtype == state.dtype
    )
