"""Calibrations of label scores: they remove the part of the scores that does not depend on the sentence.

All of them subtract one number per label from the log-probabilities ``[n, K]``; none of them reads an answer. Report
them beside every raw number, because such a constant can be much of what an intervention gains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CALIBRATIONS", "CONTENT_FREE", "batch_calibrated", "contextual_calibrated", "prior_matched"]

CALIBRATIONS = ("raw", "contextual", "batch", "prior")

CONTENT_FREE = ("N/A", "[MASK]", "...")
"""Content-free sentences, for contextual calibration."""

_ROUNDS = 200


def contextual_calibrated(logits: Tensor, content_free: Tensor) -> Tensor:
    """``log p(k | x) - log mean_f p(k | f)`` over content-free sentences f (Zhao et al., ICML 2021).

    Args:
        logits: ``[..., n, K]`` scores of the labels.
        content_free: ``[..., F, K]`` scores of the same labels after :data:`CONTENT_FREE` in the same prompt, under the
            same intervention.
    """
    return logits.log_softmax(-1) - _log_mean(content_free)


def batch_calibrated(logits: Tensor) -> Tensor:
    """``log p(k | x) - log mean_x p(k | x)`` over the rows themselves (Zhou et al., ICLR 2024).

    Args:
        logits: ``[..., n, K]``.
    """
    return logits.log_softmax(-1) - _log_mean(logits)


def prior_matched(logits: Tensor, prior: Sequence[float] | Tensor | None = None) -> Tensor:
    """Log-probabilities plus the constants for which the mean prediction over the rows is ``prior``.

    ``mean_i softmax(l_i + c)_k = prior_k``, found by repeated scaling; with one step and a uniform prior this is batch
    calibration.

    Args:
        logits: ``[..., n, K]``.
        prior: K shares; None for equal ones.

    Raises:
        ValueError: the prior is not K positive shares that sum to 1.
    """
    labels = logits.shape[-1]
    shares = [1 / labels] * labels if prior is None else prior
    wanted = torch.as_tensor(shares, dtype=torch.float32, device="cpu")
    if tuple(wanted.shape) != (labels,) or bool((wanted <= 0).any()) or abs(float(wanted.sum()) - 1) > 1e-4:
        raise ValueError(f"prior is {prior}; expected {labels} positive shares that sum to 1")
    scores = logits.log_softmax(-1)
    for _ in range(_ROUNDS):
        scores = (scores + wanted.log() - _log_mean(scores)).log_softmax(-1)
    # Each row's own normalisation is left out of the constants; it does not change the order within a row.
    return scores


def _log_mean(logits: Tensor) -> Tensor:
    """Log of the mean probability of each label over the rows, ``[..., 1, K]``."""
    return logits.softmax(-1).mean(-2, keepdim=True).log()
