"""Cholesky factorisation of stacks of symmetric positive definite matrices, solves with it, and its inverse's diagonal.

    A = L L^T,      L lower triangular with a positive diagonal

Stacks are ``[..., n, n]`` in fp32 or fp64, one matrix per layer. Only the lower triangle of A is read. ``info`` says for
each matrix which pivot broke down first; nothing waits for the device until the caller looks at it.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cholesky_ex", "cholesky_inverse_diagonal", "cholesky_solve"]

_DTYPES = (torch.float32, torch.float64)


def cholesky_ex(A: Tensor, *, check: bool = False, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors of ``[..., n, n]``.

    Args:
        A: ``[..., n, n]``, fp32 or fp64, any strides; its strict upper triangles are not read.
        check: wait for the device and raise if a factorisation broke down.
        out: where to put L, shaped like A and of its dtype; ``out=A`` factors in place.

    Returns:
        ``(L, info)``: L ``[..., n, n]`` with zeros above the diagonal, and int32 ``info [...]``: 0, or the 1-based index
        of the first pivot that is not a positive finite number (LAPACK's ``potrf`` counts the same way, but lets an
        infinite pivot pass). A matrix whose info is not 0 has no factor; its L is unspecified.

    Raises:
        TypeError: A or out has another dtype.
        ValueError: A is not a stack of square matrices, or out does not match it.
        torch.linalg.LinAlgError: with ``check``, naming the first matrix that broke down and its pivot.
    """
    _check_stack("A", A)
    if out is not None:
        _check_like("out", out, A)
    L, info = torch.linalg.cholesky_ex(A)
    info = _first_bad_pivot(L, info)
    if out is not None:
        L = out.copy_(L)
    if check:
        _raise_on_breakdown(info)
    return L, info


def cholesky_solve(B: Tensor, L: Tensor) -> Tensor:
    """``X = A^-1 B`` from ``A = L L^T``: forward, then backward substitution.

    Args:
        B: ``[..., n, k]`` right-hand sides, L's dtype; leading dimensions broadcast with L's.
        L: ``[..., n, n]`` from :func:`cholesky_ex`; its strict upper triangles are not read.

    Returns:
        X, ``[..., n, k]``.

    Raises:
        TypeError: L is neither fp32 nor fp64, or B has another dtype than L.
        ValueError: L is not a stack of square matrices, or B does not have n rows.
    """
    _check_stack("L", L)
    if B.dtype != L.dtype:
        raise TypeError(f"B has dtype {_name(B.dtype)}; expected {_name(L.dtype)}, the dtype of L")
    if B.dim() < 2 or B.shape[-2] != L.shape[-1]:
        raise ValueError(f"B has shape {tuple(B.shape)}; expected [..., {L.shape[-1]}, k], the rows of L")
    return torch.cholesky_solve(B, L)


def cholesky_inverse_diagonal(L: Tensor) -> Tensor:
    """Diagonal of ``A^-1``, ``A = L L^T``: ``[A^-1]_ii = sum_k (L^-1)_ki^2``, without forming ``A^-1``.

    Args:
        L: ``[..., n, n]`` from :func:`cholesky_ex`; its strict upper triangles are not read.

    Returns:
        ``[..., n]``.

    Raises:
        TypeError: L is neither fp32 nor fp64.
        ValueError: L is not a stack of square matrices.
    """
    _check_stack("L", L)
    identity = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(L, identity, upper=False).square().sum(-2)


def _first_bad_pivot(L: Tensor, info: Tensor) -> Tensor:
    """LAPACK's info, with infinite pivots counted as well; computed on the device."""
    n = L.shape[-1]
    if n == 0:
        return info
    finite = L.diagonal(dim1=-2, dim2=-1).isfinite()
    first = torch.where(finite.all(-1), n, finite.int().argmin(-1)) + 1
    first = torch.minimum(first, torch.where(info > 0, info, n + 1))
    return torch.where(first > n, 0, first).to(torch.int32)


def _raise_on_breakdown(info: Tensor) -> None:
    failed = info.flatten().nonzero()
    if not len(failed):
        return
    flat = int(failed[0])
    index = tuple(int(i) for i in torch.unravel_index(failed[0], info.shape)) if info.dim() else ()
    where = f"matrix {list(index)} of {list(info.shape)}" if index else "the matrix"
    raise torch.linalg.LinAlgError(
        f"cholesky_ex: {where} is not positive definite: pivot {int(info.flatten()[flat])} is not a positive number"
        + (f" ({len(failed)} of {info.numel()} matrices broke down)" if len(failed) > 1 else "")
    )


def _check_stack(name: str, stack: Tensor) -> None:
    if stack.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {_name(stack.dtype)}; allowed: float32, float64")
    if stack.dim() < 2 or stack.shape[-1] != stack.shape[-2]:
        raise ValueError(f"{name} has shape {tuple(stack.shape)}; expected [..., n, n]")


def _check_like(name: str, out: Tensor, A: Tensor) -> None:
    if out.dtype != A.dtype:
        raise TypeError(f"{name} has dtype {_name(out.dtype)}; expected {_name(A.dtype)}, the dtype of A")
    if out.shape != A.shape or out.device != A.device:
        raise ValueError(
            f"{name} has shape {tuple(out.shape)} on {out.device}; expected {tuple(A.shape)} on {A.device}, as A"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
