"""Which norms read a model's residual stream: a table of known architectures, and a probe for every other decoder.

A pre-norm decoder reads its residual stream through norms: ``residual = h; x = norm(h); ...; h = residual + f(x)``.
Site ``l`` of a model with L blocks is the input of the norm that reads state ``l``: the block's first norm for
``l = 0 .. L - 1`` (state 0 is the embedding's output, state l the output of block l), the final norm for ``l = L``.
Where no norm reads the state (post-norm blocks), the site is the block's input, or the last block's output.

The table covers the classes of transformers whose norms it names, without running the model; a test compares it with
the probe. A model of any other architecture is probed (:mod:`incline_fast.models.probe`). A row of the table is
therefore never needed; it saves two short forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, cast, get_args

from torch import nn

from incline_fast.models.block_parts import SiteKind, with_part_sites
from incline_fast.models.errors import UnsupportedModelError
from incline_fast.models.probe import Found, probe
from incline_fast.models.sites import Architecture, NormKind, Site, Tap, text_config
from incline_fast.models.wrappers import epsilon, plain_model, unwrap, weight_offset

__all__ = ["ARCHITECTURES", "Architecture", "Site", "UnsupportedModelError", "describe", "text_config", "unwrap"]


def _always(config: Any) -> bool:
    return True


@dataclass(frozen=True)
class NormRow:
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


_LLAMA = NormRow()
_GEMMA = NormRow(eps="eps", weight_offset=1.0)

ARCHITECTURES: dict[str, NormRow] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": NormRow(eps="eps", weight_offset=1.0, backbone="language_model"),
    "cohere": NormRow(kind="layer"),
    "gpt2": NormRow(("ln_1",), "ln_f", "layer", "eps", blocks="h"),
    "bloom": NormRow(("input_layernorm",), "ln_f", "layer", "eps", blocks="h"),
    "falcon": NormRow(("ln_attn", "input_layernorm"), "ln_f", "layer", "eps", blocks="h"),
    "gpt_neox": NormRow(("input_layernorm",), "final_layer_norm", "layer", "eps"),
    "opt": NormRow(
        ("self_attn_layer_norm",),
        "final_layer_norm",
        "layer",
        "eps",
        backbone="decoder",
        # The 350M model normalises after attention: its blocks read their input as it is.
        pre_norm=lambda config: bool(config.do_layer_norm_before),
    ),
    "xglm": NormRow(("self_attn_layer_norm",), "layer_norm", "layer", "eps"),
    "olmo2": NormRow(norm=None),
}


def describe(model: nn.Module, site: SiteKind = "hidden") -> Architecture:
    """Find the sites of a transformers decoder: a causal LM or its backbone, compiled or not, with adapters or without,
    alone or with an encoder of images beside it.

    Models that the table does not know run on 2 x 5 tokens, at most a few times and once per model.

    Args:
        model: an uncompiled or compiled model of transformers.
        site: ``"hidden"`` - the residual stream; ``"attention"`` or ``"ffn"`` - site l is what attention or the FFN of
            block l returns, site 0 the embedding's output.

    Raises:
        TypeError: not a module.
        ValueError: another ``site``.
        UnsupportedModelError: there is no residual stream that can be edited; the message says what is missing.
    """
    if site not in get_args(SiteKind):
        raise ValueError(f"site is {site!r}; allowed: {', '.join(get_args(SiteKind))}")
    model = plain_model(model)
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no transformers config; expected a causal language model of transformers"
        )
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise UnsupportedModelError(f"{type(model).__name__} has cross-attention; only plain decoders can be edited")
    return with_part_sites(from_table(model) or _unknown(model), site)


def _unknown(model: nn.Module) -> Architecture:
    try:
        return from_probe(model)
    except UnsupportedModelError as error:
        if _model_type(model) not in ARCHITECTURES:
            raise
        raise UnsupportedModelError(
            f"{error}. It is not built like a {_model_type(model)!r} of transformers: parts of it are wrapped or "
            "replaced. Take the model as transformers loads it, or the one inside the wrapper"
        ) from error


def from_table(model: nn.Module) -> Architecture | None:
    """The sites by the model's row of :data:`ARCHITECTURES`; None without one, or if the model is not built like it."""
    config: Any = model.config
    row = ARCHITECTURES.get(config.model_type)
    # Code that comes with a checkpoint may reuse a known model_type for blocks of another kind.
    if row is None or not type(model).__module__.startswith("transformers."):
        return None
    return _SitesByTable(row, model).architecture()


def from_probe(model: nn.Module) -> Architecture:
    """The sites that :func:`~incline_fast.models.probe.probe` finds; raises what it raises."""
    found = probe(model)
    config = text_config(model)
    sites = tuple(_probed_site(model, index, found) for index in range(len(found.sites)))
    return Architecture(
        _model_type(model),
        model,
        unwrap(model.get_submodule(found.backbone)),
        tuple(unwrap(block) for block in cast(nn.ModuleList, model.get_submodule(found.blocks))),
        sites,
        found.hidden_size,
        config,
        _bos_token_ids(model, config),
        "probe",
        found.note,
    )


def _probed_site(model: nn.Module, index: int, found: Found) -> Site:
    where = found.sites[index]
    parent, _, name = where.path.rpartition(".")
    owner = unwrap(model.get_submodule(parent))
    module = unwrap(getattr(owner, name))
    kind, eps, offset = ("rms", 0.0, 0.0) if where.norm is None else astuple(where.norm)
    return Site(
        index, where.tap, where.path, owner, name, module, kind, eps, offset, found.hidden_size, found.stream_axis
    )


def _model_type(model: nn.Module) -> str:
    config: Any = model.config
    return str(config.model_type)


def _bos_token_ids(model: nn.Module, config: Any) -> tuple[int, ...]:
    configs = (config, getattr(model, "generation_config", None))
    found: set[int] = set()
    for config in configs:
        ids = getattr(config, "bos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return tuple(sorted(found))


class _SitesByTable:
    """Makes the sites of one model by its row of the table."""

    def __init__(self, row: NormRow, model: nn.Module) -> None:
        self._row = row
        self._model = model
        self._config = config = text_config(model)
        self._num_layers, self._hidden_size = int(config.num_hidden_layers), int(config.hidden_size)
        self._pre_norm = row.norm is not None and row.pre_norm(config)

    def architecture(self) -> Architecture | None:
        """The sites; None where a module that the row names is missing or the configuration has other blocks."""
        backbone = unwrap(cast(nn.Module, getattr(self._model, "base_model", self._model)))
        for name in filter(None, self._row.backbone.split(".")):
            # A model may also be handed over as its own backbone (OPTDecoder, a Gemma 3 language model).
            backbone = unwrap(getattr(backbone, name, backbone))
        blocks = getattr(backbone, self._row.blocks, None)
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != self._num_layers:
            return None
        prefix = next(name for name, module in self._model.named_modules() if unwrap(module) is backbone)
        modules = [unwrap(block) for block in blocks]
        sites = [self._block_site(index, block, blocks, prefix) for index, block in enumerate(modules)]
        sites.append(self._final_site(len(blocks), backbone, blocks, prefix))
        known = tuple(site for site in sites if site is not None)
        if len(known) < len(sites):
            return None
        return Architecture(
            _model_type(self._model),
            self._model,
            backbone,
            tuple(modules),
            known,
            self._hidden_size,
            self._config,
            _bos_token_ids(self._model, self._config),
        )

    def _block_site(self, index: int, block: nn.Module, blocks: nn.ModuleList, prefix: str) -> Site | None:
        path = f"{prefix}.{self._row.blocks}.{index}"
        if not self._pre_norm or self._row.norm is None:
            return self._site(index, "block_input", path, blocks, str(index), block)
        inside = block._modules
        name = next((name for name in self._row.norm if name in inside), None)
        norm = None if name is None else inside[name]
        return None if norm is None else self._site(index, "norm", f"{path}.{name}", block, str(name), norm)

    def _final_site(self, index: int, backbone: nn.Module, blocks: nn.ModuleList, prefix: str) -> Site | None:
        name = self._row.final_norm
        if not hasattr(backbone, name):
            return None
        norm = getattr(backbone, name)
        if norm is None:  # a configuration without a final norm, such as OPT 350M's
            path = f"{prefix}.{self._row.blocks}.{index - 1}"
            return self._site(index, "block_output", path, blocks, str(index - 1), unwrap(blocks[index - 1]))
        return self._site(index, "norm", f"{prefix}.{name}", backbone, name, norm)

    def _site(self, index: int, tap: Tap, path: str, owner: nn.Module, name: str, module: nn.Module) -> Site:
        path = path.lstrip(".")
        eps = epsilon(module, self._row.eps, path) if tap == "norm" else 0.0
        offset = weight_offset(module, self._row.weight_offset)
        return Site(index, tap, path, owner, name, module, self._row.kind, eps, offset, self._hidden_size)
