"""How a fit uses memory: which layers' states are held at once, and what that costs in runs over the model.

States of all layers are 2 n d numbers a layer: 2.6 GB for 80 layers of d = 8192 and n = 500, 105 GB for n = 20,000. A
budget is kept by collecting and solving the layers in groups; every group runs the model over the sentences once more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["FitPlan", "format_bytes", "parse_bytes", "plan_fit"]

_UNITS = {
    "": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}

# Bytes that a ridge solve with leave-one-out holds at its peak, per number of the rows (n d) and of the Gram matrix:
# fp64 copies of X and Y, centred ones, the factors; the Gram matrix with lam, its factor and the inverse of that. In
# the dual form the scores of the grid of 20 add two and a half times their largest temporary, which is bounded.
# tests/fitting/test_memory_plan.py compares them with what a fit allocates.
_DUAL_ROWS, _DUAL_GRAM = 66, 50
_DUAL_SCORES, _DUAL_SCORES_MOST = 420, 20 * 2**20
_PRIMAL_ROWS, _PRIMAL_GRAM = 90, 50
# What solves at the same time may take together; larger ones keep all threads busy one after the other.
_TOGETHER = 2**30


@dataclass(frozen=True)
class FitPlan:
    """Groups of layers and what they take; ``str`` gives it as text.

    Attributes:
        groups: sites whose states are in memory together, in the order in which they are fitted.
        num_sentences: pairs of sentences.
        hidden_size: d.
        state_bytes: fp32 states of one site, both languages.
        solve_bytes: the most that the solve of one site takes beside its states.
        map_bytes: the fitted map of one site, fp32; all are held until the end and are the size of the artifact.
        memory_budget: what was asked for, in bytes; None without a limit.
        at_once: sites that are solved at the same time, each with one thread.
    """

    groups: tuple[tuple[int, ...], ...]
    num_sentences: int
    hidden_size: int
    state_bytes: int
    solve_bytes: int
    map_bytes: int
    memory_budget: int | None
    at_once: int = 1

    @property
    def num_sites(self) -> int:
        """Layers to fit."""
        return sum(map(len, self.groups))

    @property
    def peak_bytes(self) -> int:
        """The most that is held at once, beside the model: the largest group's states, its solves and all maps."""
        largest = max(map(len, self.groups))
        return largest * self.state_bytes + self.at_once * self.solve_bytes + self.num_sites * self.map_bytes

    def __str__(self) -> str:
        budget = "no limit" if self.memory_budget is None else format_bytes(self.memory_budget)
        runs = len(self.groups)
        lines = [
            f"{self.num_sites} layers of d = {self.hidden_size}, {self.num_sentences} pairs of sentences",
            f"  states of a layer, both languages  {format_bytes(self.state_bytes):>10}",
            f"  solve of a layer, at its peak      {format_bytes(self.solve_bytes):>10}   at once: {self.at_once}",
            f"  maps of all layers (the artifact)  {format_bytes(self.num_sites * self.map_bytes):>10}",
            f"  peak beside the model              {format_bytes(self.peak_bytes):>10}   budget: {budget}",
            f"{runs} group{'s' * (runs > 1)} of layers, each with one run of the model over both languages:",
        ]
        width = len(str(runs))
        lines += [
            f"  {number:>{width}}  sites {group[0]}..{group[-1]}  ({len(group)} layers, "
            f"{format_bytes(len(group) * self.state_bytes)} of states)"
            for number, group in enumerate(self.groups, 1)
        ]
        return "\n".join(lines)


def plan_fit(
    num_sentences: int,
    hidden_size: int,
    layers: Sequence[int],
    *,
    memory_budget: int | str | None = None,
    threads: int = 1,
) -> FitPlan:
    """Divide layers into the fewest equal groups whose fit by ridge stays within a budget.

    Without a budget as many layers are solved at the same time as there are threads, if together they take at most
    1 GiB; with one it is one at a time.

    Args:
        num_sentences: pairs n, held-out ones included.
        hidden_size: d.
        layers: sites to fit.
        memory_budget: bytes beside the model, or text such as ``"16GiB"``; None for one group.
        threads: of the CPU that solves, 1 for another device.

    Raises:
        ValueError: there is nothing to fit, the budget is not an amount of memory, or it is below what one layer at a
            time takes; the message says how much that is.
    """
    sites = tuple(sorted(set(layers)))
    if num_sentences < 1 or hidden_size < 1 or not sites:
        raise ValueError(
            f"num_sentences is {num_sentences}, hidden_size {hidden_size}, layers {list(sites)}; "
            "expected at least one of each"
        )
    budget = parse_bytes(memory_budget) if isinstance(memory_budget, str) else memory_budget
    n, d = num_sentences, hidden_size
    dual = n < d
    state_bytes = 2 * n * d * 4
    solve_bytes = (
        _DUAL_ROWS * n * d + _DUAL_GRAM * n**2 + min(_DUAL_SCORES * n**2, _DUAL_SCORES_MOST)
        if dual
        else _PRIMAL_ROWS * n * d + _PRIMAL_GRAM * d**2
    )
    map_bytes = 4 * (2 * n * d if dual else d * d) + 4 * d
    if budget is None:
        at_once = max(1, min(threads, len(sites), _TOGETHER // solve_bytes))
        return FitPlan((sites,), n, d, state_bytes, solve_bytes, map_bytes, None, at_once)
    free = budget - solve_bytes - len(sites) * map_bytes
    if free < state_bytes:
        least = solve_bytes + len(sites) * map_bytes + state_bytes
        raise ValueError(
            f"memory_budget is {format_bytes(budget)}; one layer at a time takes {format_bytes(least)}: all maps "
            f"{format_bytes(len(sites) * map_bytes)}, one solve {format_bytes(solve_bytes)}, one layer's states "
            f"{format_bytes(state_bytes)}. Give more, or fewer layers or sentences"
        )
    count = math.ceil(len(sites) / (free // state_bytes))
    bounds = [round(len(sites) * index / count) for index in range(count + 1)]
    groups = tuple(sites[begin:end] for begin, end in pairwise(bounds))
    return FitPlan(groups, n, d, state_bytes, solve_bytes, map_bytes, budget)


def parse_bytes(text: str) -> int:
    """``"16GiB"`` -> 17179869184.

    Raises:
        ValueError: not a positive number with one of the units.
    """
    match = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})\s*", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"memory_budget is {text!r}; expected a size such as 16GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(count: int) -> str:
    """Three digits and a binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
