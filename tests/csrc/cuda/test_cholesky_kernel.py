"""The 128-row Cholesky kernel: factor, inverse, info at the pivot, stacks and strides; as fibers and as PTX."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch
from cuda.launcher import DTYPES, Int64, Pointer, library, raise_if
from torch import Tensor

from emulator import build, ptx
from emulator.build import Sanitizer
from incline_fast.ops import reference

pytestmark = pytest.mark.gpu_emulated
SIZES = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 64, 100, 127, 128)  # around the edges of tiles of 16
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-14}
SOURCE = build.CSRC / "cuda" / "cholesky" / "cholesky.cu"
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


class Matrices(ctypes.Structure):
    _fields_ = (
        ("data", Pointer),
        ("ndim", Int64),
        ("sizes", ctypes.POINTER(Int64)),
        ("strides", ctypes.POINTER(Int64)),
    )


class CholeskyBlock(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int8),
        ("count", Int64),
        ("size", Int64),
        *((name, Matrices) for name in ("source", "factor", "inverse")),
        ("info", Pointer),
        ("first", Int64),
    )


class Leading(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int), ("sizes", Int64 * 4), ("strides", Int64 * 4))


class MatrixView(ctypes.Structure):
    _fields_ = (("data", Pointer), ("leading", Leading), ("row", Int64), ("column", Int64))


class CholeskyCall(ctypes.Structure):
    """The parameter of the kernels."""

    _fields_ = (
        *((name, MatrixView) for name in ("source", "factor", "inverse")),
        ("info", Pointer),
        ("first", ctypes.c_int32),
        ("size", ctypes.c_int),
    )


def matrices(tensor: Tensor | None) -> Matrices:
    if tensor is None:
        return Matrices()
    dims = Int64 * tensor.dim()
    return Matrices(tensor.data_ptr(), tensor.dim(), dims(*tensor.shape), dims(*tensor.stride()))


def run(
    source: Tensor,
    factor: Tensor | None,
    inverse: Tensor | None,
    info: Tensor | None = None,
    *,
    first: int = 0,
    seed: int = 0,
    sanitizer: Sanitizer = "none",
) -> None:
    n = source.shape[-1]
    op = CholeskyBlock(DTYPES.index(source.dtype), source.numel() // max(n * n, 1), n)
    op.source, op.factor, op.inverse = matrices(source), matrices(factor), matrices(inverse)
    op.info, op.first = None if info is None else info.data_ptr(), first
    fibers = library(sanitizer)
    fibers.schedule(seed, 2)
    raise_if(fibers.function("cuda_cholesky_block", Pointer, restype=ctypes.c_char_p)(ctypes.byref(op)))


def run_ptx(source: Tensor, factor: Tensor | None, inverse: Tensor | None, info: Tensor | None) -> ptx.TrafficReport:
    """Stacks ``[count, n, n]`` by the PTX that nvcc makes."""
    text = build.ptx(SOURCE, "sm_80")
    type_name = "f" if source.dtype is torch.float32 else "d"
    entry = re.search(rf"\.entry (\w*cholesky_kernelI{type_name}Lb{int(factor is not None)}E\w*)", text)
    assert entry is not None
    threads = re.search(rf"\.entry {entry[1]}\([^)]*\)\s*\.maxntid (\d+)", text)
    assert threads is not None
    call = CholeskyCall(view(source), view(factor), view(inverse), None, 0, source.shape[-1])
    call.info = None if info is None else info.data_ptr()
    named = {"source": source, "factor": factor, "inverse": inverse, "info": info}
    buffers = {name: tensor for name, tensor in named.items() if tensor is not None}
    shape = (len(source), 1, 1), (int(threads[1]), 1, 1)
    return ptx.launch(text, entry[1], *shape, [bytes(call)], buffers=buffers)


def view(stack: Tensor | None) -> MatrixView:
    if stack is None:
        return MatrixView()
    leading = Leading(1, (Int64 * 4)(len(stack)), (Int64 * 4)(stack.stride(0)))
    return MatrixView(stack.data_ptr(), leading, stack.stride(1), stack.stride(2))


def spd(*shape: int, dtype: torch.dtype) -> Tensor:
    X = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (X @ X.mT / shape[-1] + torch.eye(shape[-1], dtype=torch.float64)).to(dtype)


@by_dtype
@pytest.mark.parametrize("n", SIZES)
def test_against_the_definition(n: int, dtype: torch.dtype) -> None:
    """In place and out of place; the strict upper triangle is cleared in the results and not read in the source."""
    A = spd(2, n, dtype=dtype)
    expected, _ = reference.cholesky_ex(A.double())
    wanted = reference.triangular_inverse(expected)
    source = A + torch.full_like(A, torch.nan).triu(1).nan_to_num(nan=1e30)
    L, X, info = torch.full_like(A, torch.nan), torch.full_like(A, torch.nan), torch.zeros(2, dtype=torch.int32)
    run(source, L, X, info, seed=n)
    in_place = source.clone()
    run(in_place, in_place, None, info)
    again = torch.full_like(A, torch.nan)
    run(L + torch.full_like(A, 7).triu(1), None, again)
    assert not info.any()
    assert torch.equal(in_place, L)
    for actual, wanted_one in ((L, expected), (X, wanted), (again, wanted)):
        torch.testing.assert_close(actual.double(), wanted_one, rtol=0, atol=TOLERANCE[dtype])


@by_dtype
def test_broken_matrices(dtype: torch.dtype) -> None:
    """Each is reported at its pivot; one that came in broken is left alone; both get an inverse of zeros."""
    A = spd(4, 40, dtype=dtype)
    A[0, 0, 0] = torch.nan
    A[1, 31, 31] = 0
    before = A.clone()
    info, X = torch.tensor([0, 0, 3, 0], dtype=torch.int32), torch.full_like(A, torch.nan)
    run(A, A, X, info, first=100)
    assert info.tolist() == [101, 132, 3, 0]
    assert torch.equal(A[2], before[2])
    assert not X[:3].any()
    assert bool(X[3].any())


@by_dtype
@pytest.mark.parametrize("n", [48, 113])
def test_a_pivot_that_fails_in_every_row(n: int, dtype: torch.dtype) -> None:
    """At every place in a tile, and in every tile up to the last, of which one row is in use."""
    rows = torch.arange(n) if n == 48 else torch.tensor([0, 15, 16, 37, 63, 64, 95, 96, 111, 112])
    A = spd(len(rows), n, dtype=dtype)
    bad = torch.tensor([-1, torch.nan, torch.inf, 0], dtype=dtype)
    A[torch.arange(len(rows)), rows, rows] = bad[torch.arange(len(rows)) % 4]
    info, X = torch.zeros(len(rows), dtype=torch.int32), torch.full_like(A, torch.nan)
    run(A, A, X, info, first=7, seed=1)
    assert torch.equal(info, (rows + 8).int())
    assert not X.any()


@by_dtype
def test_pivots_of_any_size(dtype: torch.dtype) -> None:
    """The smallest positive number and numbers near the largest are pivots like others."""
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps
    d = torch.tensor([smallest, 3 * smallest, limits.tiny, 1.0, limits.max / 3, limits.max], dtype=dtype)
    A, X, info = torch.diag(d), torch.empty(6, 6, dtype=dtype), torch.zeros((), dtype=torch.int32)
    run(A, A, X, info)
    assert int(info) == 0
    torch.testing.assert_close(A.diagonal().double(), d.double().sqrt(), rtol=2 * limits.eps, atol=0)
    torch.testing.assert_close(X.diagonal().double(), d.double().rsqrt(), rtol=2 * limits.eps, atol=0)


@by_dtype
@pytest.mark.parametrize("n", [1, 17, 48, 100, 128])
def test_nvccs_code(n: int, dtype: torch.dtype) -> None:
    """Results, races and bounds of the PTX; the barriers are those of tiles, not of pivots."""
    A = spd(2, n, dtype=dtype)
    A[1, n - 1, n - 1] = -1
    L, X, info = torch.full_like(A, torch.nan), torch.full_like(A, torch.nan), torch.zeros(2, dtype=torch.int32)
    run_ptx(A, L, X, info)
    expected = torch.linalg.cholesky(A[0].double())
    wanted = torch.linalg.inv(expected)
    assert info.tolist() == [0, n]
    torch.testing.assert_close(L[0].double(), expected, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(X[0].double(), wanted, rtol=0, atol=TOLERANCE[dtype])
    assert not X[1].any()
    alone, again = torch.full_like(A[:1], torch.nan), torch.full_like(A[:1], torch.nan)
    report = run_ptx(A[:1], alone, None, info[:1])
    assert report.instructions["bar"] < 9 * 4 * (n // 16 + 2)
    run_ptx(L[:1], None, again, None)
    assert torch.equal(alone[0], L[0])
    torch.testing.assert_close(again[0].double(), wanted, rtol=0, atol=TOLERANCE[dtype])


@by_dtype
def test_strides(dtype: torch.dtype) -> None:
    """Blocks of larger matrices, transposed storage, a stack with a gap; nothing beside the blocks is written."""
    whole = torch.full((3, 2, 50, 60), 5.0, dtype=dtype)
    block = whole[::2, :, 4:37, 9:42]
    A = spd(2, 2, 33, dtype=dtype)
    block.copy_(A)
    info, X = torch.zeros(2, 2, dtype=torch.int32), torch.empty(2, 2, 33, 33, dtype=dtype).mT
    run(block, block, X, info)
    expected = torch.linalg.cholesky(A.double())
    torch.testing.assert_close(block.double(), expected, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(X.double(), torch.linalg.inv(expected), rtol=0, atol=10 * TOLERANCE[dtype])
    block.fill_(5.0)
    assert bool((whole == 5.0).all())


@by_dtype
def test_no_data_race(dtype: torch.dtype) -> None:
    A = spd(2, 33, dtype=dtype)
    for seed in (1, 2):
        run(
            A, torch.empty_like(A), torch.empty_like(A), torch.zeros(2, dtype=torch.int32), seed=seed, sanitizer="races"
        )


def test_larger_matrices_are_refused() -> None:
    A = torch.eye(129)
    with pytest.raises(ValueError, match="A has 129 rows; allowed on CUDA: up to 128"):
        run(A, A, None, torch.zeros((), dtype=torch.int32))
