"""Sites: the places of a model where its residual stream can be read or edited.

Site ``l`` of a model with L blocks holds state ``l``: the input of the first block for ``l = 0``, the output of block
``l`` for ``l = 1 .. L``. Where a norm reads the state, the site is that norm (``tap == "norm"``); elsewhere it is the
block whose input or output the state is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from incline_fast.models.errors import UnsupportedModelError
from incline_fast.models.wrappers import execution_device, floating_dtype, unwrap, weight_of

__all__ = [
    "Architecture",
    "NormKind",
    "Site",
    "Tap",
    "UnsupportedModelError",
    "block_output",
    "evaluated",
    "state_argument",
    "text_config",
    "unwrap",
    "with_block_output",
    "with_state_argument",
]

NormKind = Literal["rms", "layer"]
Tap = Literal["norm", "block_input", "block_output", "module_output"]


@dataclass(eq=False, slots=True)
class Site:
    """One place where the residual stream can be read or edited; not frozen, which would be a third of entering.

    Attributes:
        index: l, from 0 (embedding output) to L (output of the last block).
        tap: ``"norm"`` - ``module`` is the norm that reads the state; ``"block_input"`` - it is the block whose input
            is the state; ``"block_output"`` - the block whose output is the state; ``"module_output"`` - a part of a
            block, attention or FFN, whose output is the state.
        path: path of ``module`` in the (uncompiled) model.
        owner, name: ``module`` is ``getattr(owner, name)``.
        module: see ``tap``.
        kind, eps, weight_offset: what the norm computes; meaningless where ``tap`` is not ``"norm"``.
        hidden_size: d.
        stream_axis: where a model carries n parallel streams instead of one state (hyper-connections, AltUp), their
            axis in the 4-D tensor that its blocks pass on; otherwise None. The state is then the mean of the streams,
            and an edit moves every stream by what it moves their mean.
    """

    index: int
    tap: Tap
    path: str
    owner: nn.Module
    name: str
    module: nn.Module
    kind: NormKind
    eps: float
    weight_offset: float
    hidden_size: int
    stream_axis: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the state is when it passes this site."""
        return execution_device(self.module, self.owner)  # a norm without weights is where its block is

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's weights here."""
        return floating_dtype(self.module, self.owner)

    @property
    def weight(self) -> Tensor:
        """The norm's weight ``[d]``; ones for a norm without one."""
        weight = weight_of(self.module, "weight")
        return torch.ones(self.hidden_size, device=self.device, dtype=self.dtype) if weight is None else weight

    @property
    def bias(self) -> Tensor | None:
        """The norm's bias ``[d]`` or None."""
        return weight_of(self.module, "bias")

    def observe(self, callback: Callable[[Tensor], None]) -> RemovableHandle:
        """Call ``callback(h)`` with this site's state ``[B, T, d]`` in every forward, until the handle is removed."""

        def see(state: Tensor) -> None:
            callback(state if self.stream_axis is None else state.mean(self.stream_axis))

        if self.tap in ("block_output", "module_output"):
            return self.module.register_forward_hook(lambda module, args, output: see(block_output(output)))
        return self.module.register_forward_pre_hook(
            lambda module, args, kwargs: see(state_argument(args, kwargs)), with_kwargs=True
        )


@dataclass(frozen=True, eq=False)
class Architecture:
    """Where a model's residual stream can be edited.

    Attributes:
        model_type: ``model.config.model_type``.
        model: the model without compilation wrappers.
        backbone: the module of it that turns token ids into hidden states, without the LM head.
        blocks: its L blocks in order.
        sites: ``L + 1`` sites in order.
        hidden_size: d.
        config: of the text decoder; asking the model for it takes longer than everything else that is read from it.
        bos_token_ids: tokens that mark the beginning of a text.
        found_by: ``"table"`` of known architectures, or ``"probe"``.
        note: why some sites are not norms although the blocks have norms; empty if there is nothing to say.
    """

    model_type: str
    model: nn.Module
    backbone: nn.Module
    blocks: tuple[nn.Module, ...]
    sites: tuple[Site, ...]
    hidden_size: int
    config: Any
    bos_token_ids: tuple[int, ...]
    found_by: Literal["table", "probe"] = "table"
    note: str = field(default="")

    @property
    def num_layers(self) -> int:
        """Number L of blocks."""
        return len(self.sites) - 1


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def text_config(model: nn.Module) -> Any:
    """The configuration of the model's text decoder."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def state_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a norm or a block: the first argument, by position or by name."""
    state: Tensor = args[0] if args else kwargs[_state_name(kwargs)]
    return state


def with_state_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with ``state`` in the place of the hidden states."""
    return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, _state_name(kwargs): state})


def _state_name(kwargs: dict[str, Any]) -> str:
    if "hidden_states" in kwargs:
        return "hidden_states"
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor) and value.is_floating_point())


def block_output(output: Any) -> Tensor:
    """The hidden states in what a block returns: a tensor, or a tuple or list that starts with it."""
    state: Tensor = output[0] if isinstance(output, tuple | list) and output else output
    return state


def with_block_output(output: Any, state: Tensor) -> Any:
    """What a block returns with ``state`` in the place of the hidden states."""
    if isinstance(output, list):
        return [state, *output[1:]]
    return (state, *output[1:]) if isinstance(output, tuple) else state
