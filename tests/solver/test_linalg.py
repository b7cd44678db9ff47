"""The functions' calls: layouts, in place, gradients, errors, and the choice of the backend."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from incline_fast.ops import reference
from incline_fast.ops._extension import EXTENSION
from incline_fast.solver import blocked_cholesky, linalg
from incline_fast.solver.linalg import cholesky_ex, cholesky_inverse_diagonal, cholesky_solve, explain

compiled = pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation")
BACKENDS = ("torch", *(pytest.param(name, marks=compiled) for name in ("blocked", "panels", "panels in place")))
SIZES = (1, 7, 129, 300)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 3e-15}


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch) -> str:
    """ "panels" forces the products of blocks, which auto keeps for large matrices; "in place" as on a GPU."""
    if not request.param.startswith("panels"):
        return request.param
    monkeypatch.setattr(blocked_cholesky, "_few_launches", lambda A: request.param == "panels in place")
    monkeypatch.setattr(blocked_cholesky, "WHOLE", {torch.float32: 0, torch.float64: 0})
    return "blocked"


def spd(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Well-conditioned matrices ``[*shape, n]`` whose strict upper triangles are NaN, so that reading them shows."""
    X = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    A = X @ X.mT / shape[-1] + torch.eye(shape[-1], dtype=torch.float64)
    return (A.tril() + torch.full_like(A, float("nan")).triu(1)).to(dtype)


@pytest.mark.parametrize("in_place", [False, True])
@compiled
def test_factors_go_to_any_strides(in_place: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leading dimensions that no single stride describes; A may be the memory of its factors."""
    A = spd(2, 3, 40)
    L = torch.full((3, 2, 40, 40), float("nan"), dtype=A.dtype).transpose(0, 1)
    if in_place:
        L.copy_(A)
    info = blocked_cholesky.factor_into(L if in_place else A, L)
    assert not info.any()
    torch.testing.assert_close(L, reference.cholesky_ex(A)[0], rtol=0, atol=TOLERANCE[A.dtype])


@compiled
def test_a_gpu_is_started_four_times_for_a_block_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product, the block, a product, a copy; once for a matrix a copy and the zeros above the diagonal."""
    calls: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(blocked_cholesky, "WHOLE", {torch.float64: 0})
    monkeypatch.setattr(blocked_cholesky, "_few_launches", lambda A: True)
    A = spd(384)
    L = torch.empty_like(A)
    with Recorder():
        blocked_cholesky.factor_into(A, L)
    views = {"slice", "t", "permute", "view", "select", "unbind", "alias", "new_empty", "zeros"}
    started = [call for call in calls if call not in views]
    first, block, rest = ["cholesky_block_", "mm", "copy_"], ["addmm_", "cholesky_block_", "mm", "copy_"], ["addmm_"]
    assert started == ["copy_", *first, *block, *rest, "cholesky_block_", "tril_"]


def full(A: Tensor) -> Tensor:
    return A.tril() + A.tril(-1).mT


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_reference(n: int, dtype: torch.dtype, backend: str) -> None:
    A = spd(2, n, dtype=dtype)
    L, info = cholesky_ex(A, backend=backend)
    expected, expected_info = reference.cholesky_ex(A.double())
    assert torch.equal(info, expected_info)
    torch.testing.assert_close(L.double(), expected, rtol=0, atol=TOLERANCE[dtype])
    B = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    X = cholesky_solve(B, L, backend=backend)
    torch.testing.assert_close(
        X.double(), reference.cholesky_solve(B.double(), expected), rtol=0, atol=20 * TOLERANCE[dtype]
    )
    diagonal = cholesky_inverse_diagonal(L, backend=backend)
    torch.testing.assert_close(
        diagonal.double(), reference.cholesky_inverse_diagonal(expected), rtol=0, atol=3 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("layout", ["transposed", "spread", "window", "stepped_batch", "expanded"])
def test_strided_input(n: int, layout: str, backend: str) -> None:
    A = spd(3, n)
    expected, _ = cholesky_ex(A, backend=backend)
    strided = {
        "transposed": lambda: A.mT.contiguous().mT,
        "spread": lambda: torch.zeros(3, 2 * n, 3 * n, dtype=A.dtype)[:, ::2, ::3].copy_(A),
        "window": lambda: torch.zeros(3, n + 4, n + 5, dtype=A.dtype)[:, 2 : n + 2, 3 : n + 3].copy_(A),
        "stepped_batch": lambda: torch.zeros(6, n, n, dtype=A.dtype)[::2].copy_(A),
        "expanded": lambda: A[0].expand(3, n, n),
    }[layout]()
    L, info = cholesky_ex(strided, backend=backend)
    assert not info.any()
    torch.testing.assert_close(L, expected[:1].expand_as(L) if layout == "expanded" else expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_in_place_writes_the_matrices_and_nothing_around_them(n: int, shape: tuple[int, ...], backend: str) -> None:
    """A window of a larger tensor whose leading dimensions have no common stride."""
    A = spd(*shape, n)
    around = torch.full((*(2 * size for size in shape), n + 3, n + 5), 7.0, dtype=A.dtype)
    window = around[(*(slice(None, None, 2) for _ in shape), slice(1, n + 1), slice(2, n + 2))]
    window.copy_(A)
    L, info = cholesky_ex(window, out=window, backend=backend)
    assert L is window
    assert not info.any()
    torch.testing.assert_close(window, cholesky_ex(A, backend=backend)[0], rtol=0, atol=1e-14)
    window.fill_(7)
    assert bool((around == 7).all())


@pytest.mark.parametrize("n", SIZES)
def test_out(n: int, backend: str) -> None:
    A = spd(2, n)
    before = A.clone()
    out = torch.full_like(A, float("nan")).mT
    L, _ = cholesky_ex(A, out=out, backend=backend)
    assert L is out
    torch.testing.assert_close(out, cholesky_ex(A, backend=backend)[0], rtol=0, atol=1e-14)
    assert torch.equal(A.nan_to_num(5), before.nan_to_num(5))


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 5, 5), (4, 0, 0)])
def test_nothing_to_do(shape: tuple[int, ...], backend: str) -> None:
    A = torch.empty(shape, dtype=torch.float64)
    L, info = cholesky_ex(A, check=True, backend=backend)
    assert L.shape == shape
    assert info.shape == shape[:-2]
    assert not info.any()
    assert cholesky_solve(torch.empty(*shape[:-1], 2, dtype=torch.float64), L, backend=backend).shape == (
        *shape[:-1],
        2,
    )
    assert cholesky_inverse_diagonal(L, backend=backend).shape == shape[:-1]


def test_solve_broadcasts(backend: str) -> None:
    A = spd(3, 1, 130)
    L, _ = cholesky_ex(A, backend=backend)
    B = torch.randn(2, 130, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X = cholesky_solve(B, L, backend=backend)
    assert X.shape == (3, 2, 130, 4)
    torch.testing.assert_close(full(A) @ X, B.expand(3, 2, 130, 4), rtol=0, atol=1e-12)


def test_check_names_the_matrix_and_the_pivot(backend: str) -> None:
    A = spd(2, 3, 140)
    A[1, 0, 130, 130] = -1
    A[1, 2, 5, 5] = 0
    _, info = cholesky_ex(A, backend=backend)
    assert info.tolist() == [[0, 0, 0], [131, 0, 6]]
    message = r"matrix \[1, 0\] of \[2, 3\] is not positive definite: pivot 131 .* \(2 of 6 matrices broke down\)"
    with pytest.raises(torch.linalg.LinAlgError, match=message):
        cholesky_ex(A, check=True, backend=backend)
    with pytest.raises(torch.linalg.LinAlgError, match="the matrix is not positive definite: pivot 6 is"):
        cholesky_ex(A[1, 2], check=True, backend=backend)


def test_a_gradient_comes_from_torch() -> None:
    A = full(spd(6)).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: cholesky_ex((A + A.T) / 2)[0], A)
    if EXTENSION is not None:
        with pytest.raises(ValueError, match="has no gradient, and an input requires one"):
            cholesky_ex(A, backend="blocked")


def test_refused_arguments() -> None:
    A = spd(4)
    with pytest.raises(TypeError, match="A has dtype float16; allowed: float32, float64"):
        cholesky_ex(A.half())
    with pytest.raises(ValueError, match=r"A has shape \(4, 3\); expected \[..., n, n\]"):
        cholesky_ex(A[:, :3])
    with pytest.raises(TypeError, match="out has dtype float32; expected float64"):
        cholesky_ex(A, out=A.float())
    with pytest.raises(ValueError, match=r"out has shape \(2, 4, 4\) on cpu; expected \(4, 4\)"):
        cholesky_ex(A, out=A.expand(2, 4, 4))
    with pytest.raises(ValueError, match="backend is 'fast'; allowed: auto, blocked, torch"):
        cholesky_ex(A, backend="fast")
    with pytest.raises(TypeError, match="B has dtype float32; expected float64, the dtype of L"):
        cholesky_solve(torch.ones(4, 1), A)
    with pytest.raises(ValueError, match=r"B has shape \(3, 1\); expected \[..., 4, k\]"):
        cholesky_solve(torch.ones(3, 1, dtype=torch.float64), A)
    with pytest.raises(ValueError, match=r"L has shape \(4,\)"):
        cholesky_inverse_diagonal(A[0])


@compiled
def test_explain_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain(2048).startswith("blocked: the blocked cholesky_ex of 2048 rows in float32")
    assert explain(1000, torch.float64).startswith("torch: ")
    assert explain(1024, torch.float64).startswith("blocked: ")
    assert explain(100, function="cholesky_inverse_diagonal").startswith("torch: ")
    assert explain(5, backend="torch") == 'torch: backend="torch" was asked for'
    assert 'the tensors are on "meta"' in explain(2048, device="meta")
    ran = []
    monkeypatch.setattr(blocked_cholesky, "factor", lambda A: ran.append(len(A)) or reference.cholesky_ex(A))
    for n, dtype in ((64, torch.float32), (800, torch.float64), (832, torch.float64)):
        ran.clear()
        cholesky_ex(torch.eye(n, dtype=dtype))
        assert bool(ran) == explain(n, dtype).startswith("blocked"), n


@compiled
def test_the_choice_follows_the_threads_that_share_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert "in float32, one thread a matrix" in explain(1000)
    assert explain(1000).startswith("blocked")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "in float32, several threads a matrix" in explain(1000)
    assert explain(1000).startswith("torch")
    assert explain(1000, batch=2).startswith("blocked: the blocked cholesky_ex of 1000 rows in float32, one thread")
    assert explain(1500, batch=8).startswith("torch")
    assert explain(1536).startswith("blocked")


def test_a_compiled_call_does_not_look_at_the_values() -> None:
    A = full(spd(6))
    for backend in ("auto", "torch"):
        call = partial(cholesky_ex, backend=backend)
        torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="eager")(A), call(A))


def test_explain_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "EXTENSION", None)
    assert explain(2048) == "torch: no compiled extension is installed"
    with pytest.raises(ValueError, match='backend="blocked" cannot serve this call: no compiled extension'):
        explain(2048, backend="blocked")


def test_explain_refuses() -> None:
    with pytest.raises(TypeError, match="dtype is int64"):
        explain(5, torch.int64)
    with pytest.raises(ValueError, match="function is 'qr'; allowed: cholesky_ex"):
        explain(5, function="qr")
    with pytest.raises(ValueError, match="n is -1"):
        explain(-1)
    with pytest.raises(ValueError, match="batch is -2"):
        explain(5, batch=-2)
