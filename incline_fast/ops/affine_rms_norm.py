"""Affine residual intervention followed by RMSNorm, in one call.

    r  = x (+ residual)
    r' = beta_i r_i + alpha_i (M_{g(i)} r_i + b_{g(i)})        rows with g(i) < 0 keep r' = r
    y  = r' / sqrt(mean(r'^2) + eps) * (weight + weight_offset)

Sums run in fp32 (fp64 when x or the residual is fp64); r' is rounded once, to the dtype of the residual stream, and the
norm reads the rounded value. The bits of a row depend neither on the other rows nor on the number of threads.
"""

from __future__ import annotations

from torch import Tensor

from incline_fast.maps import AffineMap
from incline_fast.ops import reference
from incline_fast.ops._arguments import PerRow
from incline_fast.ops._norm_op import NormOp

__all__ = ["RMS_NORM", "affine_rms_norm", "affine_rms_norm_"]

RMS_NORM = NormOp("affine_rms_norm", reference.affine_rms_norm, centre=False)


def affine_rms_norm(
    x: Tensor,
    weight: Tensor,
    map: AffineMap,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: PerRow = 1.0,
    beta: PerRow = 1.0,
    row_map: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Functional form: nothing is written to; differentiable in every floating-point tensor.

    Args:
        x: ``[..., d]``, fp32, bf16, fp16 or fp64, any strides; with ``residual`` it is added to the residual stream.
        weight: ``[d]`` norm weight, any float dtype.
        map: the linear part; fp32, bf16, fp16 or int8 whatever x is, but fp64 exactly when x or residual is.
        residual: ``[..., d]``, in x's dtype, fp32 or fp64; None where x itself is the residual stream.
        bias: ``[d]`` or ``[G, d]`` added to the map's output, any float dtype.
        alpha, beta: numbers, or float tensors ``[num_tokens]``.
        row_map: int32 ``[num_tokens]``, each row's map in the stack; negative: only normalised. None: map 0 for all.
            A GPU is not waited for to look at it: a map that does not exist makes its row NaN there, an error with the
            environment variable INCLINE_FAST_CHECK=1 (not while a CUDA graph is captured or in compiled code).
        eps: added to the mean square.
        weight_offset: added to ``weight`` (1.0 for Gemma).
        backend: "auto" (kernels where they are installed), "cpu", "cuda", "triton" or "reference"; see :func:`explain`.

    Returns:
        ``(y, r')``, shaped like x: y in x's dtype, r' in the residual's (x's without a residual).

    Raises:
        ValueError: an argument's dtype, shape, device or value is not allowed; the message names it.
    """
    return RMS_NORM.functional(x, (weight,), map, residual, bias, alpha, beta, row_map, eps, weight_offset, backend)


def affine_rms_norm_(
    x: Tensor,
    weight: Tensor,
    map: AffineMap,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: PerRow = 1.0,
    beta: PerRow = 1.0,
    row_map: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """In-place form; arguments, numbers and errors as in :func:`affine_rms_norm`.

    Without ``residual``: x <- r', and a new y is returned. With it: residual <- r', x <- y, and x is returned (the
    convention of a fused add-and-norm). Where a gradient is asked for, the functional form runs on copies, because
    autograd keeps its inputs.
    """
    return RMS_NORM.in_place(x, (weight,), map, residual, bias, alpha, beta, row_map, eps, weight_offset, backend)
