"""How sure a difference is: paired bootstrap intervals and McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Difference", "mcnemar", "paired_bootstrap"]

RESAMPLES = 10_000


class Difference(NamedTuple):
    """A mean difference and its percentile interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def paired_bootstrap(
    a: Tensor,
    b: Tensor,
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The mean of ``a - b`` and its percentile bootstrap interval (Efron 1979), pairs drawn together.

    Args:
        a: ``[n]``, one number per row: 1 for a right answer, a log-likelihood, a chrF score.
        b: ``[n]`` of the same rows.
        groups: n names; rows of one name are drawn together. Give the identifiers of the sentences where the same
            sentence occurs in several languages: such rows are not independent.
        level: coverage.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        ValueError: the shapes differ, or there is no row.
    """
    if a.shape != b.shape or a.dim() != 1 or len(a) == 0:
        raise ValueError(f"a is {tuple(a.shape)}, b is {tuple(b.shape)}; expected the same [n], n >= 1")
    difference = a.double() - b.double()
    names = range(len(a)) if groups is None else groups
    if len(names) != len(a):
        raise ValueError(f"groups has {len(names)} names, a has {len(a)} rows")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    member = torch.tensor([number[name] for name in names], device="cpu")
    none = torch.zeros(len(number), dtype=torch.float64, device="cpu")
    total, count = (none.index_add(0, member, value) for value in (difference, torch.ones_like(difference)))
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(number), (resamples, len(number)), generator=generator, device="cpu")
    means = total[draws].sum(1) / count[draws].sum(1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device="cpu"))
    return Difference(float(difference.mean()), float(low), float(high))


def mcnemar(a: Tensor, b: Tensor) -> float:
    """Exact two-sided p-value of McNemar's test (1947) that two systems are right equally often.

    Of the rows that exactly one system gets right, each system is expected to get half: a binomial test at 1/2.

    Args:
        a: ``[n]`` bool or 0/1, whether the first system is right.
        b: ``[n]`` of the same rows.
    """
    first, second = a.bool(), b.bool()
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return float(min(1.0, 2 * tail))
