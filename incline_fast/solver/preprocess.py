"""Rows of a regression: checked, in fp64, weighted, centred and scaled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from incline_fast.arguments import plain
from incline_fast.packing import empty_on_huge_pages
from incline_fast.solver.lam_selection import PreparedRows

__all__ = [
    "Frame",
    "Units",
    "check_lam",
    "check_matrix",
    "check_pair",
    "check_products",
    "check_weight",
    "doubled",
    "frame_of",
    "from_spread",
    "prepare",
    "units_of",
]

# A dimension whose spread is below this fraction of its mean is a constant in bf16 (8 bits), and in fp32 scaling it up
# would amplify rounding: its standard deviation is taken to be this fraction.
_MIN_SPREAD = 2.0**-12
_EPS = torch.finfo(torch.float64).eps
# Squares of 2^480 and sums of many of them are below 2^1024, squares of 2^-480 above the smallest normal 2^-1022.
_SAFE_EXPONENT = 480
# Bytes from which the C library maps new pages for every allocation, whose first touch takes as long as some products
# of the solve; on pages of 2 MiB it took half as long, and for smaller tensors, whose memory is used again, longer.
_NEW_PAGES = 32 << 20


@dataclass(frozen=True)
class Frame:
    """How rows are centred and scaled before a fit: ``(X - mean_x) / scale`` and ``Y - mean_y``.

    Attributes:
        mean_x: ``[d]``, zero without an intercept.
        mean_y: ``[t]``, zero without an intercept.
        scale: ``[d]``, 1 where nothing is scaled.
        constant: bool ``[d]``, features that do not vary; they get the weight 0.
        unit_y: ``[t]``, divides the errors of each target when lam is chosen; 1 where they are not compared.
        notes: constant and nearly constant features.
    """

    mean_x: Tensor
    mean_y: Tensor
    scale: Tensor
    constant: Tensor
    unit_y: Tensor
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Units:
    """Powers of two by which data are divided while they are fitted, so that no product of them over- or underflows.

    fp64 reaches from 1e-308 to 1e308. The squares of data beyond 2^480 (3e144) or below 2^-480, summed in a Gram
    matrix, would be infinite or zero. Dividing by a power of two rounds nothing.

    Attributes:
        x: ``[d]``, of the features.
        y: ``[t]``, of the targets.
        weight: of the sample weights.
    """

    x: Tensor
    y: Tensor
    weight: float

    @property
    def lam(self) -> float:
        """What an absolute lam is multiplied by when the features are divided; all must have one unit."""
        unit = float(self.x[0])
        return 1.0 / unit / unit / self.weight

    def in_units_of_data(self, frame: Frame) -> Frame:
        """The frame of the undivided data, from that of the divided ones."""
        return replace(
            frame,
            mean_x=frame.mean_x * self.x,
            mean_y=frame.mean_y * self.y,
            scale=frame.scale * self.x,
            unit_y=frame.unit_y * self.y,
        )


def units_of(X: Tensor, Y: Tensor, weight: Tensor | None, *, by_column: bool) -> Units | None:
    """The units of fp64 data; None where they need none, which is nearly always.

    Args:
        X: ``[n, d]``.
        Y: ``[n, t]``.
        weight: ``[n]`` or None.
        by_column: whether every column may have its own unit, as it may where columns are scaled anyway.
    """
    of_x, of_y = _units(X, by_column), _units(Y, by_column)
    of_weight = 1.0 if weight is None else float(_units(weight.unsqueeze(-1), by_column=False)[0])
    return None if of_weight == 1.0 and bool((of_x == 1).all() & (of_y == 1).all()) else Units(of_x, of_y, of_weight)


def _units(value: Tensor, by_column: bool) -> Tensor:
    """``[d]``, a power of two per column of ``value [n, d]``: 1 where the magnitudes are usual."""
    if by_column:
        largest = torch.linalg.vector_norm(value, torch.inf, dim=0)
    else:  # several times as fast as the maximum of every column
        low, high = value.aminmax()
        largest = torch.maximum(-low, high).expand(value.shape[1])
    exponent = torch.frexp(largest).exponent
    usual = (largest == 0) | (exponent.abs() <= _SAFE_EXPONENT)
    return torch.where(usual, 1.0, torch.ldexp(torch.ones_like(largest), exponent - 1))


def check_products(name: str, value: Tensor) -> None:
    """Refuse a column whose squares fp64 cannot hold.

    Raises:
        ValueError: the largest magnitude of a column is beyond 2^480 or, not being 0, below 2^-480.
    """
    if value.dtype != torch.float64:
        return
    bad = (_units(value, by_column=True) != 1).nonzero()
    if len(bad):
        column = int(bad[0])
        largest = float(value[:, column].abs().max())
        raise ValueError(
            f"{name} has the magnitude {largest:.3g} in column {column}, whose squares fp64 cannot hold; "
            "scale it to lie between 1e-144 and 1e144"
        )


def doubled(value: Tensor) -> Tensor:
    """The values in fp64; the tensor itself if it is fp64."""
    if value.dtype == torch.float64 or not value.is_cpu or type(value) is not Tensor or value.numel() * 8 < _NEW_PAGES:
        return value.double()
    memory = empty_on_huge_pages(value.shape, torch.float64)
    return value.double() if memory is None else memory.copy_(value)


def check_lam(lam: Any) -> float:
    """A ridge parameter as a float.

    Raises:
        ValueError: it is negative, NaN or infinite.
    """
    found = plain(lam)
    # Written so that NaN is refused as well.
    if isinstance(found, bool) or not isinstance(found, Real) or not 0 <= float(found) < float("inf"):
        raise ValueError(f"lam is {lam!r}; expected a finite number >= 0")
    return float(found)


def check_matrix(name: str, value: Tensor, shape: str = "[n, d]") -> None:
    """Refuse what is not a finite floating-point matrix with at least one row and column; ``name`` is in the message.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: another shape, or NaN or infinite values.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} is {kind}; expected a floating-point tensor {shape}")
    if value.dim() != 2 or 0 in value.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape} with every size at least 1")
    # One pass that writes nothing: if the sum is finite, all values are. Otherwise it may have overflowed.
    if bool(value.sum().isfinite()):
        return
    bad = (~value.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f"{name} has {len(bad)} rows with NaN or infinite values, the first is row {int(bad[0])}")


def check_pair(X: Tensor, Y: Tensor) -> None:
    """Refuse what is not features ``[n, d]`` and targets ``[n, t]`` on one device; see :func:`check_matrix`."""
    check_matrix("X", X)
    check_matrix("Y", Y, "[n, t]")
    if len(X) != len(Y) or X.device != Y.device:
        raise ValueError(f"X is {tuple(X.shape)} on {X.device}, Y is {tuple(Y.shape)} on {Y.device}; they must agree")


def check_weight(weight: Tensor | None, n: int) -> None:
    """Refuse sample weights that are not n finite numbers >= 0, one of them positive.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: anything else.
    """
    if weight is None:
        return
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"sample_weight is {getattr(weight, 'dtype', type(weight).__name__)}; expected floats [n]")
    if tuple(weight.shape) != (n,):
        raise ValueError(f"sample_weight has shape {tuple(weight.shape)}; expected [{n}], one weight per row")
    if not bool(weight.isfinite().all()) or bool((weight < 0).any()) or not bool(weight.any()):
        raise ValueError("sample_weight must be finite and >= 0, with at least one positive weight")


def frame_of(X: Tensor, Y: Tensor, weight: Tensor | None, *, intercept: bool, standardize: bool) -> Frame:
    """The frame of fp64 rows; a weight counts as so many repetitions of its row.

    Args:
        X: ``[n, d]``.
        Y: ``[n, t]``.
        weight: ``[n]`` or None.
        intercept: whether rows are centred.
        standardize: whether features are scaled to unit variance; needs the intercept.
    """
    if not intercept:
        mean_x, mean_y = X.new_zeros(X.shape[1]), Y.new_zeros(Y.shape[1])
        return from_spread(mean_x, torch.ones_like(mean_x), mean_y, torch.ones_like(mean_y), len(X), standardize=False)
    spread_x, mean_x = _spread_and_mean(X, weight)
    spread_y, mean_y = _spread_and_mean(Y, weight)
    return from_spread(mean_x, spread_x, mean_y, spread_y, len(X), standardize=standardize)


def from_spread(
    mean_x: Tensor, spread_x: Tensor, mean_y: Tensor, spread_y: Tensor, n: int, *, standardize: bool
) -> Frame:
    """The frame of n rows from their means and standard deviations (over n, not n - 1), ``[d]`` and ``[t]``."""
    # Rounding of the mean is left in constant features, and scaling would make a regressor of it.
    constant = spread_x <= _EPS * n * mean_x.abs()
    if not standardize:
        return Frame(mean_x, mean_y, torch.ones_like(mean_x), constant, torch.ones_like(mean_y), ())
    floor = _MIN_SPREAD * mean_x.abs()
    narrow = (spread_x < floor) & ~constant
    notes = []
    if bool(constant.any()):
        notes.append(f"{int(constant.sum())} features are constant")
    if bool(narrow.any()):
        notes.append(f"{int(narrow.sum())} features vary by less than 2^-12 of their mean, which was used instead")
    scale = torch.where(constant, 1.0, torch.maximum(spread_x, floor))
    unit_y = torch.where(spread_y <= _EPS * n * mean_y.abs(), 1.0, spread_y)
    return Frame(mean_x, mean_y, scale, constant, unit_y, tuple(notes))


def prepare(X: Tensor, Y: Tensor, weight: Tensor | None, frame: Frame, *, intercept: bool) -> PreparedRows:
    """fp64 rows ``X [n, d]``, ``Y [n, t]`` centred and scaled by the frame, times the square root of their weight."""
    root = None if weight is None else weight.sqrt()
    q = None
    if intercept:
        q = X.new_ones(len(X)) if root is None else root
        q = q / q.norm()
        # Constant features are multiplied by 0 in the pass that scales the others, which saves a pass of their own.
        X = (X - frame.mean_x).mul_(torch.where(frame.constant, 0.0, 1 / frame.scale))
        Y = Y - frame.mean_y
    if root is not None:
        X, Y = X * root.unsqueeze(-1), Y * root.unsqueeze(-1)
    return PreparedRows(X, Y, q)


def _spread_and_mean(X: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    if weight is None:
        return torch.std_mean(X, 0, correction=0)
    mean = weight @ X / weight.sum()
    return _rms(X - mean, weight), mean


def _rms(X: Tensor, weight: Tensor | None) -> Tensor:
    return X.square().mean(0).sqrt() if weight is None else (weight @ X.square() / weight.sum()).sqrt()
