"""LAPACK's acceptance tests for Cholesky, on every path: nine kinds of matrices, nine sizes, both precisions."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from lapack_matrices import KINDS, SIZES, THRESHOLD, Kind, factor_ratio, matrix, roundoff, solve_ratio, zeroed_index

from incline_fast.ops._extension import EXTENSION
from incline_fast.solver import blocked_cholesky
from incline_fast.solver.linalg import cholesky_ex, cholesky_inverse_diagonal, cholesky_solve

DTYPES = (torch.float32, torch.float64)
PATHS = (
    "auto",
    "torch",
    *(
        pytest.param(path, marks=pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation"))
        for path in ("whole", "panels")
    ),
)
by_size = pytest.mark.parametrize("n", SIZES)
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

cached_matrix = lru_cache(maxsize=None)(matrix)


@pytest.fixture(params=PATHS)
def backend(request, monkeypatch) -> str:
    """The backend's name; both of the blocked algorithm's paths are forced for every size."""
    whole = {"whole": 1024, "panels": 0}
    if request.param not in whole:
        return request.param
    monkeypatch.setattr(blocked_cholesky, "WHOLE", dict.fromkeys(DTYPES, whole[request.param]))
    return "blocked"


@by_size
@by_kind
@by_dtype
def test_factor(kind: Kind, n: int, dtype: torch.dtype, backend: str) -> None:
    A = cached_matrix(kind, n, dtype)
    L, info = cholesky_ex(A, backend=backend)
    zero = zeroed_index(kind, n)
    if zero is not None and n > 0:
        assert int(info) == zero + 1
        return
    assert int(info) == 0
    assert L.shape == (n, n)
    if n == 0:
        return
    assert factor_ratio(L, A) < THRESHOLD
    assert not L.triu(1).any()
    assert bool((L.diagonal() > 0).all())


@by_size
@by_dtype
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.zeroed is None], ids=lambda kind: kind.name)
@pytest.mark.parametrize("k", [1, 7])
def test_solve(kind: Kind, n: int, k: int, dtype: torch.dtype, backend: str) -> None:
    A = cached_matrix(kind, n, dtype)
    B = A @ torch.randn(n, k, generator=torch.Generator().manual_seed(n), dtype=dtype)
    L, _ = cholesky_ex(A, backend=backend)
    X = cholesky_solve(B, L, backend=backend)
    assert X.shape == (n, k)
    if n > 0:
        assert solve_ratio(A, X, B) < THRESHOLD


@by_size
@by_dtype
@pytest.mark.parametrize("name", ["diagonal", "random", "ill_conditioned", "near_underflow", "near_overflow"])
def test_inverse_diagonal(name: str, n: int, dtype: torch.dtype, backend: str) -> None:
    """Forward error below ``30 n cond eps``, as for the inverse in LAPACK's test."""
    kind = next(kind for kind in KINDS if kind.name == name)
    A = cached_matrix(kind, n, dtype)
    diagonal = cholesky_inverse_diagonal(cholesky_ex(A, backend=backend)[0], backend=backend)
    assert diagonal.shape == (n,)
    if n == 0:
        return
    expected = torch.linalg.inv(A.double()).diagonal()
    condition = float(torch.linalg.cond(A.double()))
    error = float((diagonal - expected).abs().max() / expected.abs().max())
    assert error < THRESHOLD * n * condition * roundoff(dtype)


@by_dtype
@pytest.mark.parametrize("n", [10, 129, 515])
def test_a_stack_gives_what_its_matrices_give(n: int, dtype: torch.dtype, backend: str) -> None:
    """Matrices that break down, at different pivots, do not disturb their neighbours."""
    A = torch.stack([cached_matrix(kind, n, dtype) for kind in KINDS[1:7]]).view(2, 3, n, n)
    L, info = cholesky_ex(A, backend=backend)
    assert info.tolist() == [[0, 1, n], [n // 2 + 1, 0, 0]]
    assert info.dtype == torch.int32
    for index in ((0, 0), (1, 1), (1, 2)):
        assert factor_ratio(L[index], A[index]) < THRESHOLD


@by_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [10, 129, 515])
@pytest.mark.parametrize("place", ["diagonal", "row", "last_row"])
def test_a_value_that_is_not_finite_is_named(
    value: float, n: int, place: str, dtype: torch.dtype, backend: str
) -> None:
    """It reaches the pivot of its own row first: the pivots before are computed without it."""
    A = cached_matrix(KINDS[1], n, dtype).clone()
    row, column = {"diagonal": (n // 2, n // 2), "row": (n // 2, 1), "last_row": (n - 1, 0)}[place]
    A[row, column] = value
    assert int(cholesky_ex(A, backend=backend)[1]) == row + 1


@by_dtype
@pytest.mark.parametrize("n", [5, 129, 300])
def test_a_pivot_of_minus_one_is_named(n: int, dtype: torch.dtype, backend: str) -> None:
    for pivot in (0, n // 3, n - 1):
        A = cached_matrix(KINDS[1], n, dtype).clone()
        A[pivot, pivot] = -1
        assert int(cholesky_ex(A, backend=backend)[1]) == pivot + 1


@by_dtype
def test_the_measure_can_fail(dtype: torch.dtype) -> None:
    """A factor whose last pivot is off by a hundred eps n is refused at the threshold."""
    n = 50
    A = cached_matrix(KINDS[1], n, dtype)
    L, _ = cholesky_ex(A)
    L[-1, -1] *= 1 + 100 * n * roundoff(dtype)
    assert factor_ratio(L, A) > THRESHOLD
