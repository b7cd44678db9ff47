"""Cholesky factorisation of stacks of symmetric positive definite matrices, solves with it, and its inverse's diagonal.

    A = L L^T,      L lower triangular with a positive diagonal

Stacks are ``[..., n, n]`` in fp32 or fp64, one matrix per layer. Only the lower triangle of A is read. ``info`` says
for each matrix which pivot broke down first; nothing waits for the device until the caller looks at it.

Two implementations serve every function: ``"blocked"``, our blocked algorithm on CPU and CUDA around compiled kernels
for blocks of up to 128 rows, and ``"torch"``, the vendor library behind :mod:`torch.linalg`. ``"auto"`` takes the one
that was measured to be faster (docs/benchmarks/cholesky.md), and the vendor's on CUDA, where nothing has been measured
yet; :func:`explain` says which and why.
"""

from __future__ import annotations

import math
import sys
from typing import Literal

import torch
from torch import Tensor

from incline_fast.ops._dispatch import differentiates
from incline_fast.ops._extension import CUDA_EXTENSION, EXTENSION, TRITON
from incline_fast.solver import blocked_cholesky

__all__ = ["BACKENDS", "cholesky_ex", "cholesky_inverse_diagonal", "cholesky_solve", "explain"]

Function = Literal["cholesky_ex", "cholesky_solve", "cholesky_inverse_diagonal"]
BACKENDS = ("auto", "blocked", "torch")

_DTYPES = (torch.float32, torch.float64)

# Sizes at which torch.linalg was measured to be faster on the CPU, by function and dtype: where one thread works on a
# matrix, and where several share it (measured with two); docs/benchmarks/cholesky.md has the numbers.
_TORCH_FASTER: dict[bool, dict[str, dict[torch.dtype, range]]] = {
    False: {
        "cholesky_ex": {torch.float32: range(0), torch.float64: range(861, 1100)},
        "cholesky_solve": {torch.float32: range(sys.maxsize), torch.float64: range(2000)},
        "cholesky_inverse_diagonal": {torch.float32: range(256), torch.float64: range(256)},
    },
    True: {
        "cholesky_ex": {torch.float32: range(450, 1950), torch.float64: range(350, 2049)},
        "cholesky_solve": {torch.float32: range(sys.maxsize), torch.float64: range(2000)},
        "cholesky_inverse_diagonal": {torch.float32: range(256), torch.float64: range(256)},
    },
}
# LAPACK's factorisation loses half its speed and more where the columns of A begin at multiples of this many elements.
_SLOW_STRIDE = 64


def cholesky_ex(
    A: Tensor, *, check: bool = False, out: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors of ``[..., n, n]``.

    Args:
        A: ``[..., n, n]``, fp32 or fp64, any strides; its strict upper triangles are not read.
        check: wait for the device and raise if a factorisation broke down.
        out: where to put L, shaped like A and of its dtype; ``out=A`` factors in place.
        backend: "auto", "blocked" or "torch".

    Returns:
        ``(L, info)``: L ``[..., n, n]`` with zeros above the diagonal, and int32 ``info [...]``: 0, or the 1-based
        index of the first pivot that is not a positive finite number (LAPACK's ``potrf`` counts the same way, but lets
        an infinite pivot pass). A matrix whose info is not 0 has no factor; its L is unspecified.

    Raises:
        TypeError: A or out has another dtype.
        ValueError: A is not a stack of square matrices, out does not match it, or the backend cannot serve the call.
        torch.linalg.LinAlgError: with ``check``, naming the first matrix that broke down and its pivot.
    """
    _check_stack("A", A)
    if out is not None:
        _check_like("out", out, A)
    if _is_blocked("cholesky_ex", backend, A, differentiates(A, out)):
        L, info = _blocked(A, out)
    else:
        finite = _is_known_finite(A)
        L, info = torch.linalg.cholesky_ex(A)
        if not finite:
            info = _first_bad_pivot(L, info)
        if out is not None:
            L = out.copy_(L)
    if check:
        _raise_on_breakdown(info)
    return L, info


def _blocked(A: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    if out is None:
        return blocked_cholesky.factor(A)
    return out, blocked_cholesky.factor_into(A, out)


def cholesky_solve(B: Tensor, L: Tensor, *, backend: str = "auto") -> Tensor:
    """``X = A^-1 B`` from ``A = L L^T``: forward, then backward substitution.

    Args:
        B: ``[..., n, k]`` right-hand sides, L's dtype; leading dimensions broadcast with L's.
        L: ``[..., n, n]`` from :func:`cholesky_ex`; its strict upper triangles are not read.
        backend: "auto", "blocked" or "torch".

    Returns:
        X, ``[..., n, k]``.

    Raises:
        TypeError: L is neither fp32 nor fp64, or B has another dtype than L.
        ValueError: L is not a stack of square matrices, B does not have n rows, or the backend cannot serve the call.
    """
    _check_stack("L", L)
    if B.dtype != L.dtype:
        raise TypeError(f"B has dtype {_name(B.dtype)}; expected {_name(L.dtype)}, the dtype of L")
    if B.dim() < 2 or B.shape[-2] != L.shape[-1]:
        raise ValueError(f"B has shape {tuple(B.shape)}; expected [..., {L.shape[-1]}, k], the rows of L")
    if _is_blocked("cholesky_solve", backend, L, differentiates(B, L)):
        return blocked_cholesky.solve(B, L)
    return torch.cholesky_solve(B, L)


def cholesky_inverse_diagonal(L: Tensor, *, backend: str = "auto") -> Tensor:
    """Diagonal of ``A^-1``, ``A = L L^T``: ``[A^-1]_ii = sum_k (L^-1)_ki^2``, without forming ``A^-1``.

    Args:
        L: ``[..., n, n]`` from :func:`cholesky_ex`; its strict upper triangles are not read.
        backend: "auto", "blocked" or "torch".

    Returns:
        ``[..., n]``.

    Raises:
        TypeError: L is neither fp32 nor fp64.
        ValueError: L is not a stack of square matrices, or the backend cannot serve the call.
    """
    _check_stack("L", L)
    if _is_blocked("cholesky_inverse_diagonal", backend, L, differentiates(L)):
        return blocked_cholesky.inverse_diagonal(L)
    identity = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    inverse: Tensor = torch.linalg.solve_triangular(L, identity, upper=False)
    return inverse.square().sum(-2)


def explain(
    n: int,
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 1,
    function: Function = "cholesky_ex",
    backend: str = "auto",
    device: torch.device | str = "cpu",
) -> str:
    """Say which implementation would serve a call with the present number of threads, and why.

    Args:
        n: rows of each matrix.
        dtype: torch.float32 or torch.float64.
        batch: number of matrices.
        function: the function that would be called.
        backend: as passed to it.
        device: device of its tensors.

    Raises:
        TypeError: dtype is not supported.
        ValueError: unknown function, n or batch below 0, or a call that would be refused.
    """
    if dtype not in _DTYPES:
        raise TypeError(f"dtype is {_name(dtype)}; allowed: float32, float64")
    if function not in _TORCH_FASTER[False]:
        raise ValueError(f"function is {function!r}; allowed: {', '.join(_TORCH_FASTER[False])}")
    for name, value in (("n", n), ("batch", batch)):
        if value < 0:
            raise ValueError(f"{name} is {value}; expected at least 0")
    device = torch.device(device)
    shared = _threads_share_a_matrix(n, batch, dtype)
    blocked = _choose(function, backend, n, dtype, device, False, shared)
    if backend != "auto":
        why = f'backend="{backend}" was asked for'
    else:
        speed = "as fast as torch.linalg or faster" if blocked else "slower than torch.linalg"
        threads = "several threads" if shared else "one thread"
        measured = f"the blocked {function} of {n} rows in {_name(dtype)}, {threads} a matrix, was {speed}"
        unmeasured = "the blocked algorithm has not yet been measured on a GPU" if device.type == "cuda" else ""
        why = _obstacle(device, False) or unmeasured or measured
    return f"{'blocked' if blocked else 'torch'}: {why}"


def _is_blocked(function: Function, backend: str, stack: Tensor, gradient: bool) -> bool:
    n = stack.shape[-1]
    batch = stack.shape[:-2].numel()
    shared = _threads_share_a_matrix(n, batch, stack.dtype)
    return _choose(function, backend, n, stack.dtype, stack.device, gradient, shared)


def _threads_share_a_matrix(n: int, batch: int, dtype: torch.dtype) -> bool:
    """Whether several threads work on one matrix: not where the kernel takes whole matrices, one per thread."""
    if torch.compiler.is_compiling():  # a trace cannot hold the number of threads, which may change before it runs
        return False
    threads = torch.get_num_threads()
    return threads > 1 and (batch < threads or n > blocked_cholesky.WHOLE[dtype])


def _choose(
    function: Function, backend: str, n: int, dtype: torch.dtype, device: torch.device, gradient: bool, shared: bool
) -> bool:
    """Whether the blocked algorithm serves the call.

    Args:
        function: what is called.
        backend: as passed to it.
        n: rows of each matrix.
        dtype: of the matrices.
        device: of the matrices.
        gradient: whether autograd records the call.
        shared: see :func:`_threads_share_a_matrix`.

    Raises:
        ValueError: the backend is unknown, or it is "blocked" and cannot serve the call.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed: {', '.join(BACKENDS)}")
    if backend == "torch":
        return False
    if obstacle := _obstacle(device, gradient):
        if backend == "blocked":
            raise ValueError(f'backend="blocked" cannot serve this call: {obstacle}; use "auto" or "torch"')
        return False
    if backend == "auto" and device.type == "cuda":
        return False
    if backend == "blocked" or n not in _TORCH_FASTER[shared][function][dtype]:
        return True
    return function == "cholesky_ex" and n % _SLOW_STRIDE == 0


def _obstacle(device: torch.device, gradient: bool) -> str:
    if device.type == "cpu" and EXTENSION is None:
        return "no compiled extension is installed"
    if device.type == "cuda" and CUDA_EXTENSION is None and not TRITON:
        return f'neither its CUDA kernels nor Triton are installed, and the tensors are on "{device}"'
    if device.type not in ("cpu", "cuda"):
        return f'its kernels run on CPU and CUDA, and the tensors are on "{device}"'
    return "it has no gradient, and an input requires one" if gradient else ""


def _is_known_finite(A: Tensor) -> bool:
    """Whether A's diagonal was seen to be finite: then no pivot, which only gets smaller, is infinite unnoticed.

    It saves seven operations where looking does not mean waiting. The factor's diagonal would say the same, but lies in
    the caches of the cores that wrote it.
    """
    if A.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return math.isfinite(A.detach().diagonal(dim1=-2, dim2=-1).sum().item())


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
    raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
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
