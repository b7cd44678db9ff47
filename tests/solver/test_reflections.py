"""Reflections in blocks: what LAPACK's ormqr computes, whatever the sizes and the rank."""

from __future__ import annotations

import pytest
import torch

from incline_fast.solver.reflections import reflect_


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kinds(n: int, d: int) -> dict[str, torch.Tensor]:
    zero, equal, scaled = normal(n, d), normal(n, d), normal(n, d)
    zero[:, : (d + 1) // 2] = 0
    equal[:, d // 2 :] = equal[:, d // 2 : d // 2 + 1]
    scaled[:, 0] *= 1e8
    scaled[:, -1] *= 1e-8
    triangle = normal(n, d).triu()  # whose reflections are all the identity
    return {
        "normal": normal(n, d),
        "zero columns": zero,
        "equal columns": equal,
        "zero": 0 * zero,
        "scaled": scaled,
        "triangle": triangle,
    }


@pytest.mark.parametrize("kind", kinds(2, 2))
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (128, 128), (129, 129), (150, 129), (300, 260), (500, 3)])
def test_it_is_ormqr(kind, shape):
    packed, tau = torch.geqrf(kinds(*shape)[kind])
    Y = normal(shape[0], 5, seed=1)
    wanted = torch.ormqr(packed, tau, Y, transpose=True)
    found = reflect_(packed, tau, Y)
    assert found is Y
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13 * float(wanted.norm()))
