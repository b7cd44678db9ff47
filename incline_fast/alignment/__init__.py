"""The artifact: one map per site of one model, with what is known about them, in a safetensors file."""

from incline_fast.alignment.alignment import Alignment, AlignmentError, AlignmentMetadata

__all__ = ["Alignment", "AlignmentError", "AlignmentMetadata"]
