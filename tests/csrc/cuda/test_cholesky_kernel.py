"""The 128-row Cholesky kernel: factor, inverse, info at the pivot, stacks and strides; as fibers and as PTX."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda.launcher import DTYPES, Int64, Pointer, library, raise_if
from torch import Tensor

from emulator.build import Sanitizer
from incline_fast.ops import reference

pytestmark = pytest.mark.gpu_emulated
SIZES = (1, 2, 15, 16, 17, 31, 33, 64, 100, 127, 128)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-14}
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
