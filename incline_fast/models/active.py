"""The models that are being edited at this moment, so that whoever reads states or edits again can refuse."""

from __future__ import annotations

from weakref import WeakSet

from torch import nn

__all__ = ["ACTIVE"]

ACTIVE: WeakSet[nn.Module] = WeakSet()
"""Their backbones."""
