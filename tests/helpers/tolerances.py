"""How close a result must be to the fp64 reference that was computed from the same low-precision inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RTOL = {torch.float64: 1e-12, torch.float32: 1.3e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
ATOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
RMS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}

LONG = 256
"""Sums up to this length need no allowance for their length; beyond it, rounding errors grow like a random walk."""


def rms_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the error relative to the root mean square of the expected values (0 / 0 is 0)."""
    error = (actual.double() - expected.double()).square().mean().sqrt().item()
    size = expected.double().square().mean().sqrt().item()
    return error / size if size else error


def assert_close(actual: Tensor, expected: Tensor, length: int) -> None:
    """Elementwise and in the mean; ``expected`` is fp64, ``length`` the longest sum, actual's dtype sets the bounds."""
    assert expected.dtype == torch.float64
    assert actual.shape == expected.shape
    dtype = actual.dtype
    growth = math.sqrt(max(1.0, length / LONG))
    torch.testing.assert_close(actual.double(), expected, rtol=RTOL[dtype] * growth, atol=ATOL[dtype] * growth)
    if actual.numel():
        assert rms_error(actual, expected) < RMS[dtype] * growth


def assert_not_worse(actual: Tensor, unfused: Tensor, expected: Tensor) -> None:
    """Error against fp64 at most twice that of the same computation unfused in ``actual``'s dtype."""
    assert actual.dtype == unfused.dtype
    assert rms_error(actual, expected) <= 2 * rms_error(unfused, expected)
