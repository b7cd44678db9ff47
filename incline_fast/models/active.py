"""The models that are being edited at this moment; reading their states or editing them again can be refused."""

from __future__ import annotations

from weakref import WeakSet

from torch import nn

__all__ = ["ACTIVE"]

ACTIVE: WeakSet[nn.Module] = WeakSet()
"""The backbones of these models."""
