"""How strongly each site and each row is edited: checks on ``alpha`` and ``layers``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from incline_fast.alignment.alignment import Alignment
from incline_fast.arguments import is_listing, matrix, number, whole, wholes

__all__ = ["Alpha", "row_alpha", "row_alphas", "site_alpha"]

Alpha = float | Mapping[int, Any] | ArrayLike | Tensor
"""One number; one per row of the batch, a tensor, an array or a list; or one of these per site."""


def row_alpha(alpha: Alpha, name: str = "alpha") -> Tensor | None:
    """The strengths ``[B]`` of the batch's rows where ``alpha`` gives one per row, else None.

    Args:
        alpha: what was given.
        name: what errors call it.

    Raises:
        TypeError: a list of something else than numbers.
        ValueError: not one-dimensional, empty, or with a value that is not finite.
    """
    if not is_listing(alpha):
        return None
    values = matrix(name, alpha if isinstance(alpha, Tensor | np.ndarray) else np.array(list(alpha)))
    if values.dim() != 1 or values.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected a number or one value per row, [B]")
    if values.dtype == torch.bool or values.is_complex():
        raise TypeError(f"{name} is {values.dtype}; expected numbers, one per row")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} is {values.tolist()}; every value must be finite")
    # The ops take floats; a whole-number tensor such as [0, 1] is as good a list of strengths. So is one of fp64,
    # which is what NumPy and Python make of any list.
    exact = isinstance(alpha, Tensor) and values.is_floating_point()
    return (values if exact else values.float()).detach()


def row_alphas(alpha: Alpha, sites: Sequence[int]) -> tuple[Tensor, ...] | None:
    """The strengths ``[B]`` of the batch's rows: one tensor for all sites, or one for each of ``sites``, or None.

    Raises:
        TypeError, ValueError: see :func:`row_alpha`; and sites with strengths for different numbers of rows.
    """
    if not isinstance(alpha, Mapping):
        values = row_alpha(alpha)
        return None if values is None else (values,)
    named = {whole("a layer of alpha", layer): value for layer, value in alpha.items()}
    found = {site: row_alpha(named[site], f"alpha[{site}]") for site in sites}
    counts = {site: len(values) for site, values in found.items() if values is not None}
    if not counts:
        return None
    if len(set(counts.values())) > 1:
        raise ValueError(f"alpha has by site so many values: {counts}; expected as many at each, one per row")
    rows = next(iter(counts.values()))
    return tuple(
        torch.full((rows,), float(named[site]), dtype=torch.float32, device="cpu") if values is None else values
        for site, values in found.items()
    )


def site_alpha(alpha: Alpha, alignment: Alignment, layers: Iterable[int] | None) -> dict[int, float | None]:
    """Selected site -> its strength, None where each row has its own.

    A mapping selects the sites that it names; with ``layers`` as well, both must name the same sites.

    Raises:
        ValueError: unknown or repeated layers, a mapping and ``layers`` that differ, a strength that is not finite.
        TypeError: something that is not a number.
    """
    if isinstance(alpha, Mapping):
        named = {whole("a layer of alpha", layer): value for layer, value in alpha.items()}
        chosen = _layers(named if layers is None else wholes("layers", layers), alignment)
        if sorted(named) != chosen or len(named) != len(alpha):
            raise ValueError(f"alpha names the layers {sorted(named)}, layers is {chosen}; they must be the same")
        each = {layer: row_alpha(named[layer], f"alpha[{layer}]") for layer in chosen}
        return {
            layer: _number(f"alpha[{layer}]", named[layer]) if values is None else None
            for layer, values in each.items()
        }
    chosen = _layers(alignment.layers if layers is None else wholes("layers", layers), alignment)
    if row_alpha(alpha) is not None:
        return dict.fromkeys(chosen)
    return dict.fromkeys(chosen, _number("alpha", alpha))


def _layers(layers: Iterable[int], alignment: Alignment) -> list[int]:
    layers = list(layers)
    unknown = [layer for layer in layers if layer not in alignment.maps]
    if unknown:
        raise ValueError(f"layers {unknown} have no map in this alignment; it has {alignment.layers}")
    if len(set(layers)) != len(layers) or not layers:
        raise ValueError(f"layers is {layers}; expected at least one layer, each of them once")
    return sorted(layers)


def _number(name: str, value: Any) -> float:
    return number(name, value, "a number, a mapping {layer: number}, or one value per row, [B]")
