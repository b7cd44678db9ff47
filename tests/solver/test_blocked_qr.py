"""Blocked QR: a triangle and right-hand sides by an orthogonal transformation, whatever the sizes and the rank."""

from __future__ import annotations

import pytest
import torch

from incline_fast.solver.blocked_qr import triangularise_


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kinds(n: int, d: int) -> dict[str, torch.Tensor]:
    zero, equal, scaled = normal(n, d), normal(n, d), normal(n, d)
    zero[:, : min(n, d) // 2] = 0
    equal[:, d // 2 :] = equal[:, d // 2 : d // 2 + 1]
    scaled[:, 0] *= 1e8
    scaled[:, -1] *= 1e-8
    return {"normal": normal(n, d), "zero columns": zero, "equal columns": equal, "zero": 0 * zero, "scaled": scaled}


@pytest.mark.parametrize("kind", kinds(2, 2))
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (64, 64), (65, 64), (150, 129), (300, 260), (129, 129), (500, 3)])
def test_it_is_an_orthogonal_transformation(kind, shape):
    """Which keeps all products between columns, of the right-hand sides too."""
    n, d = shape
    A, B = kinds(n, d)[kind], normal(n, 5, seed=1)
    rows = torch.cat([A, B], 1).T.contiguous()
    lower = triangularise_(rows, d)
    assert torch.equal(lower, lower.tril())
    reflected = rows[d:]
    size = A.norm(dim=0)
    assert float((lower @ lower.T - A.T @ A).abs().sub(1e-13 * n * torch.outer(size, size)).max()) <= 0
    torch.testing.assert_close(reflected @ reflected.T, B.T @ B, rtol=1e-12, atol=1e-12)
    found, wanted = lower @ reflected[:, :d].T, A.T @ B
    assert float((found - wanted).abs().sub(1e-13 * n * size.unsqueeze(1) * B.norm(dim=0)).max()) <= 0


def test_it_agrees_with_lapack():
    A, B = normal(400, 300), normal(400, 7, seed=1)
    rows = torch.cat([A, B], 1).T.contiguous()
    lower = triangularise_(rows, 300)
    Q, R = torch.linalg.qr(A)
    signs = R.diagonal().sign() * lower.diagonal().sign()
    torch.testing.assert_close(lower.T * signs.unsqueeze(1), R, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(rows[300:, :300] * signs, (Q.T @ B).T, rtol=1e-9, atol=1e-10)


def test_without_right_hand_sides():
    A = normal(200, 140)
    lower = triangularise_(A.T.contiguous(), 140)
    torch.testing.assert_close(lower @ lower.T, A.T @ A, rtol=1e-12, atol=1e-11)
