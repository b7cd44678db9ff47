"""The one table that says where a model's residual stream meets its norms. No other module knows architectures by name.

A pre-norm decoder reads its residual stream through norms: ``residual = h; x = norm(h); ...; h = residual + f(x)``.
Site ``l`` of a model with L blocks is the input of the norm that reads state ``l``: the block's first norm for
``l = 0 .. L - 1`` (state 0 is the embedding's output, state l the output of block l), the final norm for ``l = L``.
Where no norm reads the state (post-norm blocks), the site is the block's input, or the last block's output.

Adding an architecture takes one row of :data:`ARCHITECTURES` and one configuration in
``tests/helpers/tiny_models.py``; the tests then compare it with output hooks on its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from incline_fast.models.errors import UnsupportedModelError
from incline_fast.models.wrappers import (
    epsilon,
    execution_device,
    floating_dtype,
    plain_model,
    unwrap,
    weight_of,
    weight_offset,
)

__all__ = ["ARCHITECTURES", "Architecture", "Site", "UnsupportedModelError", "describe", "text_config", "unwrap"]

NormKind = Literal["rms", "layer"]
Tap = Literal["norm", "block_input", "block_output"]


def _always(config: Any) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """How one ``model_type`` of transformers is built.

    Attributes:
        norm: attribute of a block that holds the norm of its input; of several names, the first that the block has.
            None: the blocks are post-norm.
        final_norm: attribute of the backbone that holds the last norm.
        kind: what the norms compute.
        eps: attribute of the norms that holds epsilon.
        weight_offset: what the norms add to their weight.
        blocks: attribute of the backbone that holds the list of blocks.
        backbone: path from ``model.base_model`` to the module that computes hidden states from token ids.
        pre_norm: whether this configuration's blocks read their input through ``norm``; otherwise the block's input is
            edited directly.
    """

    norm: tuple[str, ...] | None = ("input_layernorm",)
    final_norm: str = "norm"
    kind: NormKind = "rms"
    eps: str = "variance_epsilon"
    weight_offset: float = 0.0
    blocks: str = "layers"
    backbone: str = ""
    pre_norm: Callable[[Any], bool] = _always


_LLAMA = Row()
_GEMMA = Row(eps="eps", weight_offset=1.0)

ARCHITECTURES: dict[str, Row] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": Row(eps="eps", weight_offset=1.0, backbone="language_model"),
    "cohere": Row(kind="layer"),
    "gpt2": Row(("ln_1",), "ln_f", "layer", "eps", blocks="h"),
    "bloom": Row(("input_layernorm",), "ln_f", "layer", "eps", blocks="h"),
    "falcon": Row(("ln_attn", "input_layernorm"), "ln_f", "layer", "eps", blocks="h"),
    "gpt_neox": Row(("input_layernorm",), "final_layer_norm", "layer", "eps"),
    "opt": Row(
        ("self_attn_layer_norm",),
        "final_layer_norm",
        "layer",
        "eps",
        backbone="decoder",
        # The 350M model normalises after attention: its blocks read their input as it is.
        pre_norm=lambda config: bool(config.do_layer_norm_before),
    ),
    "xglm": Row(("self_attn_layer_norm",), "layer_norm", "layer", "eps"),
    "olmo2": Row(norm=None),
}


@dataclass(frozen=True, eq=False)
class Site:
    """One place where the residual stream can be read or edited.

    Attributes:
        index: l, from 0 (embedding output) to L (output of the last block).
        tap: ``"norm"`` - ``module`` is the norm that reads the state; ``"block_input"`` - it is the block whose input
            is the state; ``"block_output"`` - the block whose output is the state.
        path: path of ``module`` in the (uncompiled) model.
        owner, name: ``module`` is ``getattr(owner, name)``.
        module: see ``tap``.
        kind, eps, weight_offset: what the norm computes; of no meaning where ``tap`` is not ``"norm"``.
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
        if self.tap == "block_output":
            return self.module.register_forward_hook(lambda module, args, output: callback(block_output(output)))
        return self.module.register_forward_pre_hook(
            lambda module, args, kwargs: callback(state_argument(args, kwargs)), with_kwargs=True
        )


@dataclass(frozen=True, eq=False)
class Architecture:
    """Where a model's residual stream can be edited.

    Attributes:
        model_type: key of :data:`ARCHITECTURES`.
        model: the model without compilation wrappers.
        backbone: the module of it that turns token ids into hidden states, without the LM head.
        sites: ``L + 1`` sites in order.
        hidden_size: d.
        bos_token_ids: tokens that mark the beginning of a text.
    """

    model_type: str
    model: nn.Module
    backbone: nn.Module
    sites: tuple[Site, ...]
    hidden_size: int
    bos_token_ids: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """Number L of blocks."""
        return len(self.sites) - 1


def text_config(model: nn.Module) -> Any:
    """The configuration of the model's text decoder."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def state_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a norm or a block: the first argument, by position or by name."""
    state: Tensor = args[0] if args else kwargs["hidden_states"]
    return state


def block_output(output: Any) -> Tensor:
    """The hidden states in what a block returns: a tensor, or a tuple that starts with it."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def describe(model: nn.Module) -> Architecture:
    """Find the sites of a transformers decoder: a causal LM or its backbone, compiled or not, with adapters or without.

    Raises:
        TypeError: not a module.
        UnsupportedModelError: unknown architecture, or a module that its row of the table names is not there.
    """
    model = plain_model(model)
    model_type, row = _row(model)
    config = text_config(model)
    backbone = unwrap(cast(nn.Module, getattr(model, "base_model", model)))
    for name in filter(None, row.backbone.split(".")):
        # A model may also be handed over as its own backbone (OPTDecoder, a Gemma 3 language model).
        backbone = unwrap(getattr(backbone, name, backbone))
    blocks = _child(backbone, row.blocks, model_type, "the list of blocks")
    if len(blocks) != config.num_hidden_layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(blocks)} blocks, its config says num_hidden_layers = "
            f"{config.num_hidden_layers}; the numbering of layers would be ambiguous"
        )
    prefix = next(name for name, module in _named_modules(model) if module is backbone)
    where = _Where(model_type, row, prefix, int(config.hidden_size))
    pre_norm = row.norm is not None and row.pre_norm(config)
    sites = [where.block_site(index, blocks, pre_norm) for index in range(len(blocks))]
    sites.append(where.final_site(len(blocks), backbone, blocks))
    return Architecture(model_type, model, backbone, tuple(sites), where.hidden_size, _bos_token_ids(model))


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Like ``model.named_modules()`` with compilation wrappers seen through."""
    return ((name, unwrap(module)) for name, module in model.named_modules())


def _row(model: nn.Module) -> tuple[str, Row]:
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if config is None or model_type is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no transformers config; expected a causal language model of transformers"
        )
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise UnsupportedModelError(f"{type(model).__name__} has cross-attention; only plain decoders can be edited")
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{type(model).__name__} has model_type {model_type!r}, which is not in the table of architectures. "
            "Missing: the block list, the norm that reads each block's input, and the final norm. To add it, write one "
            "row of ARCHITECTURES in incline_fast/models/architectures.py and one configuration in "
            "tests/helpers/tiny_models.py, which runs "
            f"the comparison with output hooks. Known: {', '.join(sorted(ARCHITECTURES))}"
        )
    return model_type, ARCHITECTURES[model_type]


def _child(owner: nn.Module, name: str, model_type: str, meaning: str) -> Any:
    child = getattr(owner, name, None)
    if child is None:
        raise UnsupportedModelError(
            f"{type(owner).__name__} has no {name!r}, which is {meaning} in a {model_type!r} of transformers: parts of "
            "the model are wrapped or replaced. Take the model as transformers loads it, or the one inside the wrapper"
        )
    return child


def _bos_token_ids(model: nn.Module) -> tuple[int, ...]:
    configs = (text_config(model), getattr(model, "generation_config", None))
    found: set[int] = set()
    for config in configs:
        ids = getattr(config, "bos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return tuple(sorted(found))


@dataclass(frozen=True)
class _Where:
    """Makes the sites of one model."""

    model_type: str
    row: Row
    prefix: str
    hidden_size: int

    def block_site(self, index: int, blocks: nn.ModuleList, pre_norm: bool) -> Site:
        block = unwrap(blocks[index])
        path = f"{self.row.blocks}.{index}"
        if not pre_norm or self.row.norm is None:
            return self._site(index, "block_input", path, blocks, str(index), block)
        name = next((name for name in self.row.norm if hasattr(block, name)), self.row.norm[0])
        norm = _child(block, name, self.model_type, "the norm of a block's input")
        return self._site(index, "norm", f"{path}.{name}", block, name, norm)

    def final_site(self, index: int, backbone: nn.Module, blocks: nn.ModuleList) -> Site:
        name = self.row.final_norm
        if not hasattr(backbone, name):
            raise UnsupportedModelError(
                f"{type(backbone).__name__} has no {name!r}, the final norm of {self.model_type!r}"
            )
        norm = getattr(backbone, name)
        if norm is None:  # a configuration without a final norm, such as OPT 350M's
            path = f"{self.row.blocks}.{index - 1}"
            return self._site(index, "block_output", path, blocks, str(index - 1), unwrap(blocks[index - 1]))
        return self._site(index, "norm", name, backbone, name, norm)

    def _site(self, index: int, tap: Tap, path: str, owner: nn.Module, name: str, module: nn.Module) -> Site:
        full = f"{self.prefix}.{path}".lstrip(".")
        eps = epsilon(module, self.row.eps, full) if tap == "norm" else 0.0
        offset = weight_offset(module, self.row.weight_offset)
        return Site(index, tap, full, owner, name, module, self.row.kind, eps, offset, self.hidden_size)
