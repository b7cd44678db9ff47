"""The modules of a block whose outputs are added to the residual stream: attention and feed-forward network.

Wang et al. (ACL 2025, arXiv 2410.12462, table 3) edit hidden states, embeddings, and the outputs of attention and FFN.
The last two are outputs of one module of each block, found by name and checked by a pass over a few tokens.
"""

from __future__ import annotations

import re
import weakref
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from incline_fast.models.probe import probe_inputs, undisturbed
from incline_fast.models.sites import Architecture, Site, UnsupportedModelError, block_output

__all__ = ["SiteKind", "with_part_sites"]

SiteKind = Literal["hidden", "attention", "ffn"]
"""The residual stream, the output of a block's attention, the output of its feed-forward network."""

_NAMES = {
    "attention": re.compile(r"att(n|ention)(?!.*norm)|mixer|mamba|conv|temporal_block", re.IGNORECASE),
    "ffn": re.compile(r"mlp|ffn|ffd|feed_?forward|moe(?!.*norm)|channel_mix|(^|_)ff$|^fc2$", re.IGNORECASE),
}
_OTHER = re.compile(r"norm|(^|_)ln|dropout|activation|act_fn|router|gate$", re.IGNORECASE)


def with_part_sites(architecture: Architecture, kind: SiteKind) -> Architecture:
    """The architecture with the outputs of attention or FFN as its sites 1..L; site 0 is the embedding's output.

    Where a module adds the residual stream to its result before it returns (BLOOM), the site is the module inside it
    that computes the result alone.

    Raises:
        UnsupportedModelError: a block has no such module.
    """
    if kind == "hidden":
        return architecture
    paths = _KEPT.get(architecture.model, {}).get(kind)
    if paths is None:
        with undisturbed(architecture.model):
            paths = _paths(architecture, kind)
        _KEPT.setdefault(architecture.model, {})[kind] = paths
    sites = tuple(_site(architecture, index, path) for index, path in enumerate(paths, 1))
    return replace(architecture, sites=(architecture.sites[0], *sites))


_KEPT: weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[str, ...]]] = weakref.WeakKeyDictionary()


def _site(architecture: Architecture, index: int, path: str) -> Site:
    parent, _, name = path.rpartition(".")
    owner = architecture.model.get_submodule(parent)
    module = architecture.model.get_submodule(path)
    return Site(index, "module_output", path, owner, name, module, "rms", 0.0, 0.0, architecture.hidden_size)


def _paths(architecture: Architecture, kind: SiteKind) -> tuple[str, ...]:
    """The path of each block's module."""
    names = {module: name.replace("_orig_mod.", "") for name, module in architecture.model.named_modules()}
    ran: list[tuple[nn.Module, tuple[Any, ...], Any]] = []
    with ExitStack() as stack:
        for block in architecture.blocks:
            for module in block.modules():
                handle = module.register_forward_hook(lambda module, args, output: ran.append((module, args, output)))
                stack.callback(handle.remove)
        inputs = probe_inputs(architecture.model)
        architecture.model(**inputs)
    shape = (*inputs["input_ids"].shape, architecture.hidden_size)
    calls = [call for call in ran if _is_state(block_output(call[2]), shape)]
    return tuple(names[_part(architecture, block, kind, calls, shape)] for block in architecture.blocks)


def _part(
    architecture: Architecture, block: nn.Module, kind: str, calls: list[Any], shape: tuple[int, ...]
) -> nn.Module:
    """The last direct child of the block with a fitting name; or inside it, what computes the result without residual.

    Args:
        architecture: of the model.
        block: one of its blocks.
        kind: ``"attention"`` or ``"ffn"``.
        calls: ``(module, arguments, output)`` of every module that returned states, in the order of the calls.
        shape: of the states of that pass.
    """
    children = {module: name for name, module in block.named_children()}
    named = [
        call
        for call in calls
        if call[0] in children and _NAMES[kind].search(children[call[0]]) and not _OTHER.search(children[call[0]])
    ]
    if not named or [call[0] for call in calls].count(named[-1][0]) != 1:
        raise UnsupportedModelError(
            f"{type(block).__name__} has no module named like {'an attention' if kind == 'attention' else 'an FFN'} "
            f"that returns states [B, T, {architecture.hidden_size}]; its modules: {', '.join(children.values())}"
        )
    module: nn.Module = named[-1][0]
    args = named[-1][1]
    if sum(_is_state(argument, shape) for argument in args) < 2:
        return module
    inside = [call[0] for call in calls if isinstance(call[0], nn.Linear) and call[0] in set(module.modules())]
    if not inside:
        raise UnsupportedModelError(f"{type(module).__name__} adds the residual stream to a result that no module has")
    found: nn.Module = inside[-1]
    return found


def _is_state(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape) == shape
