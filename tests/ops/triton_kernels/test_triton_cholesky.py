"""The Cholesky block on Triton against the definition in plain PyTorch."""

from __future__ import annotations

import re

import pytest
import torch
from test_cholesky_block import TOLERANCE, by_dtype, spd

from emulator.triton_driver import Launch
from incline_fast.ops import cholesky_block as cholesky_kernels
from incline_fast.ops import reference
from incline_fast.ops.triton_kernels.cholesky_block import MAX_SIZE, cholesky_block, cholesky_block_, triangular_inverse
from incline_fast.solver import blocked_cholesky, linalg

pytestmark = pytest.mark.gpu_emulated


@by_dtype
@pytest.mark.parametrize("n", [0, 1, 5, 16, 33, 128])
def test_against_the_definition(n: int, dtype: torch.dtype) -> None:
    A = spd(2, n, dtype=dtype)
    expected, _ = reference.cholesky_ex(A.double())
    inverse = reference.triangular_inverse(expected)
    L, info = cholesky_block(A)
    in_place, X, pivots = A.clone(), torch.full_like(A, float("nan")), torch.zeros(2, dtype=torch.int32)
    cholesky_block_(in_place, X, pivots, 0)
    assert not info.any()
    assert not pivots.any()
    assert torch.equal(in_place, L)
    bound = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(L.double(), expected, **bound)
    torch.testing.assert_close(X.double(), inverse, **bound)
    above = torch.full_like(L, float("nan")).triu(1)
    torch.testing.assert_close(triangular_inverse(L + above).double(), inverse, **bound)


@by_dtype
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_broken_matrices(dtype: torch.dtype, bad: float) -> None:
    """The one that breaks down here is named with its place in the whole; the one that came in broken is left alone."""
    A = spd(3, 20, dtype=dtype)
    A[1, 11, 11] = bad
    before = A.clone()
    info = torch.tensor([0, 0, 3], dtype=torch.int32)
    inverse = torch.full_like(A, float("nan"))
    cholesky_block_(A, inverse, info, 100)
    assert info.tolist() == [0, 112, 3]
    assert torch.equal(A[2], before[2])
    assert not inverse[1:].any()
    assert bool(inverse[0].any())


@by_dtype
def test_a_block_of_a_matrix_is_changed_alone(dtype: torch.dtype) -> None:
    """A strided block in the middle of a larger matrix, in a stack whose leading dimensions are not one."""
    whole = spd(2, 3, 40, dtype=dtype).transpose(0, 1)
    before = whole.clone()
    block, info = whole[..., 7:27, 7:27], torch.zeros(3, 2, dtype=torch.int32)
    expected, _ = cholesky_block(block)
    cholesky_block_(block, None, info, 0)
    assert torch.equal(block, expected)
    assert not block.triu(1).any()
    outside = torch.ones(40, 40, dtype=torch.bool)
    outside[7:27, 7:27] = False
    assert torch.equal(whole[..., outside], before[..., outside])


def test_a_panel_is_stored_before_the_next_one_reads_it(launches: list[Launch]) -> None:
    """In the PTX a barrier follows the stores of a panel. Threads of one block that race for memory look right here."""
    cholesky_block(spd(1, 40, dtype=torch.float32))
    found = " ".join(re.findall(r"\b(st\.global|bar\.sync|ld\.global|bra)\b", launches[0].ptx))
    panel, pivot = re.findall(r"(?:st\.global )+(\S+)", found)  # what follows each group of stores
    assert panel == "bar.sync"
    assert pivot == "bra"


@by_dtype
def test_it_serves_where_there_is_no_cuda_library(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, launches: list[Launch]
) -> None:
    """The blocked factorisation, a solve and an inverse with Triton's kernels; tensors of a GPU are pretended."""
    monkeypatch.setattr(cholesky_kernels, "_needs_triton", lambda stack: True)
    monkeypatch.setitem(blocked_cholesky.WHOLE, dtype, MAX_SIZE)  # as on a GPU
    A = spd(2, 136, dtype=dtype)
    expected, _ = reference.cholesky_ex(A.double())
    L, info = linalg.cholesky_ex(A, backend="blocked")
    assert not info.any()
    assert len(launches) == 2 * (2 + 1)  # per matrix: two blocks' factors, the first one's inverse
    bound = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(L.double(), expected, **bound)
    diagonal = linalg.cholesky_inverse_diagonal(L, backend="blocked")
    torch.testing.assert_close(diagonal.double(), reference.cholesky_inverse_diagonal(expected), **bound)


def test_refused_arguments() -> None:
    A, info = torch.eye(3), torch.zeros((), dtype=torch.int32)
    for function in (cholesky_block, triangular_inverse):
        with pytest.raises(ValueError, match="has dtype float16; allowed: float32, float64"):
            function(torch.ones(2, 2, dtype=torch.float16))
        with pytest.raises(ValueError, match=rf"has shape \(129, 129\); expected \[..., n, n\] with n <= {MAX_SIZE}"):
            function(torch.ones(129, 129))
    with pytest.raises(ValueError, match=r"inverse is .*float64 \(3, 3\); expected .*float32 \(3, 3\)"):
        cholesky_block_(A, A.double(), info, 0)
    with pytest.raises(ValueError, match=r"info is .*int64 \(\); expected int32 \(\)"):
        cholesky_block_(A, None, info.long(), 0)
