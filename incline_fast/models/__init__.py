"""The only place that knows architectures: which norm reads the residual stream, and which model this is."""

from incline_fast.models.architectures import UnsupportedModelError, describe
from incline_fast.models.identity import identify

__all__ = ["UnsupportedModelError", "describe", "identify"]
