"""How strongly each site and each row is edited: checks on ``alpha`` and ``layers``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

from torch import Tensor

from incline_fast.alignment.alignment import Alignment

__all__ = ["Alpha", "row_alpha", "site_alpha"]

Alpha = float | Mapping[int, float] | Tensor


def row_alpha(alpha: Alpha) -> Tensor | None:
    """The strengths ``[B]`` of the batch's rows where ``alpha`` gives one per row, else None.

    Raises:
        ValueError: the tensor is not one-dimensional, is empty, or has a value that is not finite.
    """
    if not isinstance(alpha, Tensor) or alpha.dim() == 0:
        return None
    if alpha.dim() != 1 or alpha.numel() == 0:
        raise ValueError(f"alpha has shape {tuple(alpha.shape)}; expected a number or one value per row, [B]")
    if not bool(alpha.isfinite().all()):
        raise ValueError(f"alpha is {alpha.tolist()}; every value must be finite")
    # The ops take floats; a whole-number tensor such as [0, 1] is as good a list of strengths.
    return (alpha if alpha.is_floating_point() else alpha.float()).detach()


def site_alpha(alpha: Alpha, alignment: Alignment, layers: Sequence[int] | None) -> dict[int, float | None]:
    """Selected site -> its strength, None where each row has its own.

    A mapping selects the sites that it names; with ``layers`` as well, both must name the same sites.

    Raises:
        ValueError: unknown or repeated layers, a mapping and ``layers`` that differ, a strength that is not finite.
        TypeError: something that is not a number.
    """
    named = list(alpha) if isinstance(alpha, Mapping) else None
    chosen = _layers(layers if layers is not None else named if named is not None else alignment.layers, alignment)
    if named is not None and sorted(named) != chosen:
        raise ValueError(f"alpha names the layers {sorted(named)}, layers is {chosen}; they must be the same")
    if row_alpha(alpha) is not None:
        return dict.fromkeys(chosen)
    if isinstance(alpha, Mapping):
        return {layer: _number(f"alpha[{layer}]", alpha[layer]) for layer in chosen}
    return dict.fromkeys(chosen, _number("alpha", alpha))


def _layers(layers: Sequence[int], alignment: Alignment) -> list[int]:
    unknown = [layer for layer in layers if layer not in alignment.maps]
    if unknown:
        raise ValueError(f"layers {unknown} have no map in this alignment; it has {alignment.layers}")
    if len(set(layers)) != len(layers) or not layers:
        raise ValueError(f"layers is {list(layers)}; expected at least one layer, each of them once")
    return sorted(layers)


def _number(name: str, value: object) -> float:
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected a number, a mapping {{layer: number}}, or a tensor [B]")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be finite")
    return float(value)
