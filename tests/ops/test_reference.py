"""The definition against the formula, written out row by row in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from incline_fast.ops import reference

D, G, RANK = 5, 3, 2
ROW_MAP = np.array([1, -1, 0, 2, 1, -3], dtype=np.int32)
ROWS = len(ROW_MAP)


def one_row(r: np.ndarray, down: np.ndarray | None, up: np.ndarray, b: np.ndarray, alpha: float, beta: float):
    image = np.zeros(D)
    hidden = r if down is None else np.array([sum(down[j, k] * r[k] for k in range(D)) for j in range(RANK)])
    for i in range(D):
        image[i] = sum(up[i, j] * hidden[j] for j in range(len(hidden))) + b[i]
    return beta * r + alpha * image


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_formula_row_by_row(norm: str, low_rank: bool) -> None:
    rng = np.random.default_rng(0)
    x, residual = rng.normal(size=(2, ROWS, D))
    up = rng.normal(size=(G, D, RANK if low_rank else D))
    down = rng.normal(size=(G, RANK, D)) if low_rank else None
    bias, weight, norm_bias = rng.normal(size=(G, D)), rng.normal(size=D), rng.normal(size=D)
    alpha, beta = rng.normal(size=(2, ROWS))
    eps, offset = 0.25, 1.0

    expected_y, expected_r = np.zeros((2, ROWS, D))
    for i, g in enumerate(ROW_MAP):
        v = x[i] + residual[i]
        if g >= 0:
            v = one_row(v, None if down is None else down[g], up[g], bias[g], alpha[i], beta[i])
        expected_r[i] = v
        centred = v - sum(v) / D if norm == "layer" else v
        expected_y[i] = centred / np.sqrt(sum(c * c for c in centred) / D + eps) * (weight + offset)
        expected_y[i] += norm_bias if norm == "layer" else 0

    def t(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else torch.from_numpy(array)

    options = {
        "residual": t(residual),
        "bias": t(bias),
        "alpha": t(alpha),
        "beta": t(beta),
        "row_map": t(ROW_MAP),
        "eps": eps,
        "weight_offset": offset,
    }
    if norm == "rms":
        y, edited = reference.affine_rms_norm(t(x), t(weight), t(down), t(up), **options)
    else:
        y, edited = reference.affine_layer_norm(t(x), t(weight), t(norm_bias), t(down), t(up), **options)
    np.testing.assert_allclose(edited.numpy(), expected_r, rtol=1e-13)
    np.testing.assert_allclose(y.numpy(), expected_y, rtol=1e-12)


def test_interpolation_reaches_the_image() -> None:
    """alpha = 1, beta = 0 is W h + b itself: the form never passes through W - I."""
    h, W, b = torch.randn(4, D), torch.randn(1, D, D), torch.randn(D)
    _, edited = reference.affine_rms_norm(h, torch.ones(D), None, W, bias=b, alpha=1.0, beta=0.0)
    torch.testing.assert_close(edited, h @ W[0].T + b)


def test_sums_are_fp32_and_the_result_is_rounded_once() -> None:
    """In bf16, 1 + 2^-9 is lost, but the sum of two such halves in fp32 is not."""
    h = torch.full((1, 4), 1.0, dtype=torch.bfloat16)
    W = torch.full((1, 4, 4), 2.0**-9, dtype=torch.bfloat16)
    _, edited = reference.affine_rms_norm(h, torch.ones(4), None, W)
    assert torch.equal(edited, torch.full_like(h, 1 + 4 * 2.0**-9))
    assert edited.dtype == torch.bfloat16
