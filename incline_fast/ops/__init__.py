"""The fused ops: an affine edit of the residual stream and the norm that reads it, in one call."""

from incline_fast.ops._dispatch import BACKENDS, explain
from incline_fast.ops._extension import set_batch_invariant, set_programmatic_launch
from incline_fast.ops.affine_norm import affine_layer_norm, affine_layer_norm_, affine_rms_norm, affine_rms_norm_

__all__ = [
    "BACKENDS",
    "affine_layer_norm",
    "affine_layer_norm_",
    "affine_rms_norm",
    "affine_rms_norm_",
    "explain",
    "set_batch_invariant",
    "set_programmatic_launch",
]
