"""Which norms of a vLLM model read its residual stream, and the edit in front of each of them.

vLLM's models name their modules as transformers does, so the table of architectures is used here too. A norm keeps its
parameters and computes what it did; before it runs one op, which edits the rows that the step's plan names. Where the
norm adds a residual, the op does so for edited rows and leaves zeros to add (:mod:`incline_fast.ops.affine_residual`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The graphs name the op of this module.
import incline_fast.ops.affine_residual as _op  # noqa: F401
from incline_fast.models.architectures import ARCHITECTURES, NormRow
from incline_fast.serving.bank import Bank
from incline_fast.serving.errors import ServingError
from incline_fast.serving.plan import StepPlan

__all__ = ["ServedSite", "edit_in_front", "find_sites"]


@dataclass(frozen=True)
class ServedSite:
    """One norm that reads the residual stream.

    Attributes:
        index: l, from 0 (embedding output) to L (output of the last block).
        path: of the module in the model.
        module: the norm.
    """

    index: int
    path: str
    module: nn.Module


def find_sites(model: nn.Module, config: Any) -> list[ServedSite]:
    """The norms of a vLLM model, in the order of the states that they read.

    Args:
        model: as vLLM loaded it.
        config: the transformers configuration of its text decoder.

    Raises:
        ServingError: the architecture is not known, has no norm at its sites, or vLLM's model is built otherwise.
    """
    row = _row(config)
    assert row.norm is not None
    layers = int(config.num_hidden_layers)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(getattr(module, row.blocks, None), nn.ModuleList) and hasattr(module, row.final_norm)
    ]
    if len(found) != 1:
        raise ServingError(
            f"{type(model).__name__} has {len(found)} modules with {row.blocks!r} and {row.final_norm!r}; the table of "
            f"architectures expects one of {config.model_type!r}, so its norms were not found"
        )
    prefix, backbone = found[0]
    blocks: nn.ModuleList = getattr(backbone, row.blocks)
    if len(blocks) != layers:
        raise ServingError(f"{prefix}.{row.blocks} holds {len(blocks)} blocks; the config says {layers}")
    sites = []
    for index, block in enumerate(blocks):
        name = next((name for name in row.norm if isinstance(getattr(block, name, None), nn.Module)), None)
        if name is None:
            raise ServingError(
                f"{prefix}.{row.blocks}.{index} ({type(block).__name__}) has no {' or '.join(row.norm)}, the norm that "
                "reads its input; blocks of other pipeline stages cannot be edited"
            )
        sites.append(ServedSite(index, f"{prefix}.{row.blocks}.{index}.{name}", getattr(block, name)))
    final = getattr(backbone, row.final_norm)
    return [*sites, ServedSite(layers, f"{prefix}.{row.final_norm}", final)]


def _row(config: Any) -> NormRow:
    model_type = config.model_type
    row = ARCHITECTURES.get(model_type)
    if row is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ServingError(f"the model has model_type {model_type!r}, whose norms are not known; known: {known}")
    if row.norm is None or not row.pre_norm(config):
        raise ServingError(f"the blocks of {model_type!r} read their input without a norm; there is nothing to replace")
    return row


class _EditInFront(nn.Module):
    """Mixed into the class of a norm: one op, then the norm as it was."""

    incline_down: Tensor | None
    incline_up: Tensor
    incline_bias: Tensor
    incline_alpha: Tensor
    incline_beta: Tensor
    incline_row_map: Tensor

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """What the norm returns, for the edited residual stream."""
        torch.ops.incline_fast.affine_residual_(
            x,
            residual,
            self.incline_down,
            self.incline_up,
            None,
            None,
            self.incline_bias,
            self.incline_alpha,
            self.incline_beta,
            self.incline_row_map,
        )
        # The plain norms of LayerNorm models take no second argument.
        return super().forward(x) if residual is None else super().forward(x, residual)


def edit_in_front(sites: Sequence[ServedSite], bank: Bank, plan: StepPlan) -> None:
    """Give every site's norm its edit. Parameters keep their names, so that weights can be loaded again."""
    classes: dict[type, type] = {}
    for site in sites:
        kind = type(site.module)
        made = classes.get(kind)
        if made is None:
            made = classes[kind] = type(f"Edited{kind.__name__}", (_EditInFront, kind), {"__module__": __name__})
        site.module.__class__ = made
        for name, tensor in bank.buffers(site.index):
            site.module.register_buffer(f"incline_{name}", tensor, persistent=False)
        site.module.register_buffer("incline_row_map", plan.row_map[site.index], persistent=False)
        site.module.register_buffer("incline_alpha", plan.alpha, persistent=False)
        site.module.register_buffer("incline_beta", plan.beta, persistent=False)


def check_norms(sites: Sequence[ServedSite], hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Check that each norm adds a residual that it is given, which the edit in front of it relies on.

    Raises:
        ServingError: a norm does something else with its second argument.
    """
    for site in sites:
        weight = getattr(site.module, "weight", None)
        if weight is not None and tuple(weight.shape) != (hidden_size,):
            raise ServingError(f"{site.path} has a weight {tuple(weight.shape)}; the residual stream has {hidden_size}")
    norm = sites[-1].module
    x = torch.linspace(-1, 1, 2 * hidden_size, dtype=dtype, device=device).reshape(2, hidden_size)
    residual = torch.linspace(1, 3, 2 * hidden_size, dtype=dtype, device=device).reshape(2, hidden_size)
    expected = (x.float() + residual.float()).to(dtype)
    try:
        returned = norm(x.clone(), residual.clone())
    except TypeError:
        return  # a norm of one argument: the model adds before it
    if not (isinstance(returned, tuple) and len(returned) == 2 and torch.equal(returned[1], expected)):
        raise ServingError(f"{sites[-1].path} ({type(norm).__name__}) does not add the residual that it is given")
