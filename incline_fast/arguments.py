"""Numbers, lists and matrices of Python, NumPy and torch, converted to one kind.

A grid may be a list, a range, ``np.logspace(...)`` or ``torch.linspace(...)``, a layer ``np.int64(3)``, a strength a
tensor without dimensions. Every function that takes such a value passes it through here first. Refused, with a message
that names the argument: truth values, text, fractions where a whole number is meant, arrays of another shape.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:  # importing NumPy takes a tenth of a second; callers without arrays do not need it
    from numpy.typing import ArrayLike

__all__ = ["is_listing", "matrix", "number", "numbers", "plain", "usable_device", "whole", "wholes"]


def plain(value: Any) -> Any:
    """A scalar of NumPy or torch, or an array without dimensions, as Python's own; other values as they are."""
    return value.item() if _has_dimensions(value) and value.ndim == 0 else value


def _has_dimensions(value: Any) -> TypeGuard[Any]:
    """Whether a value is a tensor, or an array or scalar of NumPy, which is loaded if there is one."""
    numpy = sys.modules.get("numpy")
    return isinstance(value, Tensor) or (numpy is not None and isinstance(value, numpy.ndarray | numpy.generic))


def number(name: str, value: Any, expected: str = "a number") -> float:
    """A finite number.

    Raises:
        TypeError: not a number, or a truth value.
        ValueError: NaN, infinite, or beyond the range of a float.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, Real):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    try:
        result = float(found)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{name} is {result}; it must be finite")
    return result


def whole(name: str, value: Any, expected: str = "a whole number") -> int:
    """A whole number.

    Raises:
        TypeError: not one, or a truth value.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, Integral):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    return int(found)


def is_listing(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether a value lists others: a sequence, range, generator or array with dimensions; not text or a mapping."""
    if _has_dimensions(value):
        return bool(value.ndim > 0)
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def numbers(name: str, values: Any) -> list[float]:
    """Finite numbers in one dimension.

    Raises:
        TypeError: not a list, or of something else.
        ValueError: a number is not finite.
    """
    return [number(f"{name}[{index}]", value) for index, value in enumerate(_listed(name, values, "numbers"))]


def wholes(name: str, values: Any) -> list[int]:
    """Whole numbers in one dimension.

    Raises:
        TypeError: not a list, or of something else.
    """
    return [whole(f"{name}[{index}]", value) for index, value in enumerate(_listed(name, values, "whole numbers"))]


def matrix(name: str, value: ArrayLike | Tensor) -> Tensor:
    """A tensor of the values of a tensor or an array; a tensor is returned as it is.

    An array is copied: it may be read-only, or change later.

    Raises:
        TypeError: not numbers, of a kind that torch does not have, or without values of its own (sparse, meta).
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        if not hasattr(value, "__array__"):
            raise TypeError(f"{name} is {type(value).__name__}; expected a tensor or an array of numbers")
        import numpy as np

        try:
            array = np.asarray(value)
            tensor = torch.tensor(array.astype(array.dtype.newbyteorder("=")))  # a copy, in this machine's byte order
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} is an array of {np.asarray(value).dtype}; expected numbers") from error
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {tensor.layout}; expected a dense tensor, see Tensor.to_dense")
    if tensor.is_meta:
        raise TypeError(f"{name} is on the meta device; expected a tensor with values")
    return tensor


def _listed(name: str, values: Any, what: str) -> list[Any]:
    if not is_listing(values):
        raise TypeError(f"{name} is {values!r}; expected a list of {what}")
    if _has_dimensions(values) and values.ndim > 1:
        raise TypeError(f"{name} has shape {tuple(values.shape)}; expected a list of {what}")
    return list(values)


def usable_device(name: str, device: torch.device | str | None) -> torch.device | None:
    """A device that this machine has; None stays None.

    Raises:
        ValueError: it has none of that name.
    """
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} is {str(device)!r}, which cannot be used here: {reason}") from error
