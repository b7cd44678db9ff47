"""Clean mode: every edited value is computed from the unedited run, then set.

A prompt without right padding is split before its last token. The first part runs plainly; the last token runs once to
record its unedited states, the cache is put back, and it runs again with the edited states set. That is the plain
prefill and one decode-shaped step more. Where a prompt cannot be split (right padding, prepared 4-D masks of static
caches), both runs are whole passes, which costs a second prefill.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from incline_fast.intervention.entrances import Entrance, outside_compiled_code
from incline_fast.intervention.forward_pass import ForwardPass, Stage
from incline_fast.models.architectures import text_config

__all__ = ["CacheSnapshot", "clean_forward"]

# Layers that replace their tensors at every update: what they hold now stays as it is.
_REPLACING = (DynamicLayer, DynamicSlidingWindowLayer)
# Layers that write into their tensors.
_WRITING = (StaticLayer, StaticSlidingWindowLayer)

# Arguments with one entry per token, and the axis of the tokens.
_PER_TOKEN = {"input_ids": 1, "inputs_embeds": 1, "position_ids": -1, "token_type_ids": -1}


def check_restorable(cache: Cache) -> None:
    """Refuse caches whose contents cannot be put back exactly.

    Raises:
        ValueError: the cache is neither a DynamicCache nor a StaticCache, or is offloaded.
    """
    layers = getattr(cache, "layers", None)
    strange = {type(layer).__name__ for layer in layers or () if type(layer) not in _REPLACING + _WRITING}
    if layers is None or strange or cache.offloading:
        raise ValueError(
            f"past_key_values is of type {type(cache).__name__} ({', '.join(sorted(strange)) or 'no plain layers'}); "
            "mode='clean' needs a DynamicCache or a StaticCache that is not offloaded"
        )


class CacheSnapshot:
    """What a key/value cache holds, to be put back after a trial run; see :func:`check_restorable`."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._layers = [_copied(layer, vars(layer)) for layer in cache.layers]

    def restore(self) -> None:
        """Put the contents back; layers that were not there yet are removed."""
        del self._cache.layers[len(self._layers) :]
        for layer, saved in zip(self._cache.layers, self._layers, strict=True):
            current = vars(layer)
            if type(layer) in _WRITING and saved["is_initialized"]:
                # Compiled code may hold the addresses of a static cache's tensors.
                tensors = {name for name, value in saved.items() if isinstance(value, Tensor)}
                for name in tensors:
                    current[name].copy_(saved[name])
                current.update({name: value for name, value in saved.items() if name not in tensors})
            else:
                current.clear()
                current.update(_copied(layer, saved))


def _copied(layer: Any, contents: dict[str, Any]) -> dict[str, Any]:
    """``contents`` of a layer, safe from what the layer does next."""
    if type(layer) in _REPLACING:
        return dict(contents)
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in contents.items()}


def clean_forward(entrance: Entrance) -> Callable[..., Any]:
    """The ``forward`` or ``__call__`` of a backbone that sets edited values computed from the unedited run.

    Passes in which nothing is edited go straight to the plain method.
    """
    plain: Any = type(entrance.module).__mro__[1]
    method: Callable[..., Any] = plain.__call__ if entrance.replaced else plain.forward

    # Compiled models leave the compiled region here: the cache is read and put back in Python.
    @outside_compiled_code
    def run(backbone: nn.Module, running: ForwardPass, arguments: dict[str, Any]) -> Any:
        return _CleanRun(functools.partial(method, backbone), backbone, running, arguments).run()

    def forward_clean(backbone: nn.Module, *args: Any, **kwargs: Any) -> Any:
        running = entrance.calls.control.running
        if running is None or running.rows is None:
            return method(backbone, *args, **kwargs)
        return run(backbone, running, entrance.by_name(args, kwargs))

    return forward_clean


class _CleanRun:
    """One prompt: plain, recorded, restored, set."""

    def __init__(
        self, forward: Callable[..., Any], backbone: nn.Module, running: ForwardPass, arguments: dict[str, Any]
    ) -> None:
        config = text_config(backbone)
        if arguments.get("output_attentions", config.output_attentions):
            raise ValueError("output_attentions=True with mode='clean': a prompt in two parts has no one attention map")
        self._forward = forward
        self._running = running
        self._entrance = running.entrance
        self._return_tuple = arguments.pop("return_dict", None) is False
        given = arguments.get("use_cache")
        self._keep_cache = bool(config.use_cache if given is None else given)
        cache = arguments.get("past_key_values")
        self._cache: Cache = DynamicCache(config=config) if cache is None else cache
        check_restorable(self._cache)
        self._arguments = {**arguments, "past_key_values": self._cache, "use_cache": True}
        tokens = arguments.get("input_ids")
        self._length = int((arguments["inputs_embeds"] if tokens is None else tokens).shape[1])

    def run(self) -> Any:
        """The output of the edited pass over the whole prompt."""
        rows = self._running.rows
        mask = self._arguments.get("attention_mask")
        may_split = self._length > 1 and (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2))
        if may_split and rows is not None and rows.in_last_column(self._length):
            self._running.rows = None
            prefix = self._pass(_part(self._arguments, self._length, slice(0, -1)))
            self._running.rows = rows.as_only_column()
            output = _joined(prefix, self._twice(_part(self._arguments, self._length, slice(-1, None))))
        else:
            output = self._twice(self._arguments)
        if not self._keep_cache:
            output["past_key_values"] = None
        return output.to_tuple() if self._return_tuple else output

    def _twice(self, arguments: dict[str, Any]) -> Any:
        snapshot = CacheSnapshot(self._cache)
        self._running.stage = Stage.RECORD
        self._pass(arguments)
        snapshot.restore()
        self._running.stage = Stage.SET
        return self._pass(arguments)

    def _pass(self, arguments: dict[str, Any]) -> Any:
        self._running.entrance = self._entrance  # each part comes through the inner entrances anew
        return self._forward(**arguments, return_dict=True)


def _part(arguments: Mapping[str, Any], length: int, columns: slice) -> dict[str, Any]:
    """The arguments for some columns of the prompt; the mask reaches from the first cached token to the last column."""
    part = dict(arguments)
    for name, value in arguments.items():
        if name in _PER_TOKEN and value is not None:
            part[name] = value[(slice(None), columns)] if _PER_TOKEN[name] == 1 else value[..., columns]
        elif name == "attention_mask" and value is not None:
            part[name] = value if columns.stop is None else value[:, : columns.stop]
        elif isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == length:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; mode='clean' does not know how to split it by token"
            )
    return part


def _joined(prefix: Any, last: Any) -> Any:
    """One output for both parts of a prompt."""
    last["last_hidden_state"] = torch.cat([prefix["last_hidden_state"], last["last_hidden_state"]], dim=1)
    states = last.get("hidden_states")
    if states is not None:
        pairs = zip(prefix["hidden_states"], states, strict=True)
        last["hidden_states"] = tuple(None if b is None else torch.cat([a, b], dim=1) for a, b in pairs)
    return last
