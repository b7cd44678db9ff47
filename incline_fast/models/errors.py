"""The error for models that cannot be edited."""

from __future__ import annotations

__all__ = ["UnsupportedModelError"]


class UnsupportedModelError(ValueError):
    """The model's architecture is not known, or this variant cannot be edited; the message says what is missing."""
