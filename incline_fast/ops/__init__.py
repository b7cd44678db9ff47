"""The fused ops: an affine edit of the residual stream and the norm that reads it, in one call."""

from incline_fast.ops._backend import BACKENDS, explain, set_batch_invariant
from incline_fast.ops.affine_layer_norm import affine_layer_norm, affine_layer_norm_
from incline_fast.ops.affine_rms_norm import affine_rms_norm, affine_rms_norm_

__all__ = [
    "BACKENDS",
    "affine_layer_norm",
    "affine_layer_norm_",
    "affine_rms_norm",
    "affine_rms_norm_",
    "explain",
    "set_batch_invariant",
]
