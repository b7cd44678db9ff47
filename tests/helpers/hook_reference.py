"""Interventions written a second time, with output hooks that return new tensors; shares no code with the package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The blocks of the text decoder: its longest list of modules that is not inside another one."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if (
            isinstance(module, nn.ModuleList)
            and not inside
            and not re.search("vision|image|video|visual|audio|perceiver", name)
        ):
            lists[name] = module
    return max(lists.values(), key=len)


@dataclass
class HookedEdit:
    """``h <- beta h + alpha (W h + b)`` at chosen (row, token) pairs of every site in ``maps``."""

    maps: dict[int, Tensor]
    alpha: Any
    bias: dict[int, Tensor] = field(default_factory=dict)
    interpolate: bool = False
    where: list[tuple[int, int]] | Callable[[Tensor], list[tuple[int, int]]] = field(default_factory=list)
    """Rows and tokens of the pass under way, or how to find them from its states."""
    seen: dict[int, Tensor] = field(default_factory=dict)
    """Site -> states of the last pass after the edit."""
    recorded: dict[int, Tensor] | None = None
    """Site -> states ``[B, T, d]`` of an unedited run, from which edited values are computed (clean mode)."""
    streams: int | None = None
    """Axis of parallel streams: every stream moves by what the edit moves their mean."""

    def strength(self, site: int, row: int) -> float:
        if isinstance(self.alpha, dict):
            return self.alpha[site]
        return float(self.alpha[row]) if isinstance(self.alpha, Tensor) else self.alpha

    def edited(self, site: int, states: Tensor) -> Tensor:
        if self.streams is None:
            return self.edited_state(site, states)
        mean = states.mean(self.streams)
        return states + (self.edited_state(site, mean) - mean).unsqueeze(self.streams)

    def edited_state(self, site: int, states: Tensor) -> Tensor:
        new = states.clone()
        for row, token in self.where(states) if callable(self.where) else self.where:
            alpha = self.strength(site, row)
            if alpha == 0:
                continue
            h = (states if self.recorded is None else self.recorded[site])[row, token].double()
            image = self.maps[site].double() @ h
            if site in self.bias:
                image = image + self.bias[site].double()
            beta = 1 - alpha if self.interpolate else 1
            new[row, token] = (beta * h + alpha * image).to(states.dtype)
        self.seen[site] = new
        return new

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Hooks on the blocks: state 0 is the first block's input, state l the output of block l."""
        blocks = blocks_of(model)

        def first(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (self.edited(0, args[0]), *args[1:]), kwargs
            name = next(name for name in ("hidden_states", "x") if name in kwargs)
            return args, {**kwargs, name: self.edited(0, kwargs[name])}

        def after(site: int) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                if isinstance(output, tuple | list):
                    return type(output)([self.edited(site, output[0]), *output[1:]])
                return self.edited(site, output)

            return hook

        handles = [blocks[0].register_forward_pre_hook(first, with_kwargs=True)] if 0 in self.maps else []
        handles += [blocks[site - 1].register_forward_hook(after(site)) for site in self.maps if site > 0]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def record(model: nn.Module, sites: int, **inputs: Any) -> dict[int, Tensor]:
    """States of every site in a plain run, by hooks on the blocks."""
    seen: dict[int, Tensor] = {}

    def output(site: int) -> Any:
        return lambda module, args, out: seen.__setitem__(site, (out[0] if isinstance(out, tuple) else out).clone())

    blocks = blocks_of(model)
    handles = [
        blocks[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.__setitem__(0, (args[0] if args else kwargs["hidden_states"]).clone()),
            with_kwargs=True,
        )
    ]
    handles += [blocks[site - 1].register_forward_hook(output(site)) for site in range(1, sites)]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


def last_tokens(mask: Tensor) -> list[tuple[int, int]]:
    return [(row, int(mask[row].nonzero().max())) for row in range(mask.shape[0]) if mask[row].any()]


def last_column_of_prompts(states: Tensor) -> list[tuple[int, int]]:
    """For left-padded prompts of more than one token: passes of one token are decode steps."""
    batch, length = states.shape[:2]
    return [(row, length - 1) for row in range(batch)] if length > 1 else []


def position_ids(model: PreTrainedModel, mask: Tensor, columns: slice = slice(None)) -> dict[str, Tensor]:
    """What generate passes: positions counted over real tokens, for models that take positions."""
    if model.config.model_type == "bloom":
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)[:, columns]}


@torch.no_grad()
def greedy(
    model: PreTrainedModel, edit: HookedEdit, inputs: dict[str, Tensor], steps: int, positions: str = "last"
) -> tuple[Tensor, Tensor, Cache]:
    """Greedy decoding with a cache: tokens ``[B, steps]``, prompt logits, and the cache after the last step."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    batch = ids.shape[0]
    everything = [(row, token) for row, token in mask.nonzero().tolist()]
    edit.where = everything if positions == "all" else last_tokens(mask)
    clean = edit.recorded is not None
    if clean:
        edit.recorded = record(model, max(edit.maps) + 1, **inputs, **position_ids(model, mask))
    with edit.on(model):
        out = model(**inputs, **position_ids(model, mask), use_cache=True)
        prompt_logits = out.logits
        tokens = [out.logits[:, -1].argmax(-1)]
        edit.where = [] if positions == "last" else [(row, 0) for row in range(batch)]
        edit.recorded = None
        for _ in range(steps - 1):
            mask = torch.cat([mask, mask.new_ones(batch, 1)], dim=1)
            out = model(
                input_ids=tokens[-1][:, None],
                attention_mask=mask,
                past_key_values=out.past_key_values,
                use_cache=True,
                **position_ids(model, mask, slice(-1, None)),
            )
            tokens.append(out.logits[:, -1].argmax(-1))
    edit.recorded = {} if clean else None
    return torch.stack(tokens, dim=1), prompt_logits, out.past_key_values


def cache_tensors(cache: Cache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
