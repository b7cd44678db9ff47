"""Which rows of the present step are edited, by which slot and how strongly: the op's row vectors, at fixed addresses.

They are filled from the scheduler's decision before the model runs. Positions are counted from the beginning of the
prompt, whatever a step computes of it, so that chunks of a prompt, cached prefixes and recomputation after a preemption
need no special cases: the row of position p is edited in the step that computes p.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from incline_fast.serving.request import Edit

__all__ = ["Span", "StepPlan"]


@dataclass(frozen=True)
class Span:
    """The rows that one edited request has in a step.

    Attributes:
        edit: what it asks for.
        slots: per site, the slot of its map; -1 where it has none.
        row: its first row.
        position: the position of that row in the request's tokens.
        length: number of rows.
        prompt_length: number of tokens of its prompt.
    """

    edit: Edit
    slots: NDArray[np.int32]
    row: int
    position: int
    length: int
    prompt_length: int

    def rows(self) -> slice:
        """The edited ones among the rows; empty where the step computes none of the edited positions."""
        begin = max(self.edit.begin(self.prompt_length), self.position)
        end = self.edit.end(self.prompt_length)
        stop = self.position + self.length
        stop = stop if end is None else min(end, stop)
        start = self.row + begin - self.position
        return slice(start, max(start, self.row + stop - self.position))


class StepPlan:
    """The row vectors of all sites.

    Args:
        num_sites: S.
        max_tokens: rows of the largest step.
        device: where the op runs.

    Attributes:
        row_map: int32 ``[S, max_tokens]``, -1 where nothing is edited.
        alpha, beta: fp32 ``[max_tokens]``.
        edited: rows that the present step edits.
    """

    def __init__(self, num_sites: int, max_tokens: int, device: torch.device) -> None:
        host_map = torch.full((num_sites, max_tokens), -1, dtype=torch.int32)
        host_alpha = torch.zeros(max_tokens, dtype=torch.float32)
        host_beta = torch.ones_like(host_alpha)
        self._host = (host_map, host_alpha, host_beta)
        self._arrays = tuple(tensor.numpy() for tensor in self._host)
        on_host = device.type == "cpu"
        self.row_map = host_map if on_host else host_map.to(device)
        self.alpha = host_alpha if on_host else host_alpha.to(device)
        self.beta = host_beta if on_host else host_beta.to(device)
        self._device_differs = not on_host
        self._written: list[slice] = []

    @property
    def edited(self) -> int:
        """Number of edited rows of the present step."""
        return sum(rows.stop - rows.start for rows in self._written)

    def clear(self) -> None:
        """Nothing is edited."""
        self.fill(())

    def fill(self, spans: Iterable[Span]) -> None:
        """Describe the next step."""
        row_map, alpha, beta = self._arrays
        before = self._written
        for rows in before:
            row_map[:, rows] = -1
        self._written = []
        for span in spans:
            rows = span.rows()
            if rows.start >= rows.stop:
                continue
            row_map[:, rows] = span.slots[:, None]
            alpha[rows] = span.edit.alpha
            beta[rows] = span.edit.beta
            self._written.append(rows)
        if self._device_differs and (before or self._written):
            last = max(rows.stop for rows in [*before, *self._written])
            for target, source in zip((self.row_map, self.alpha, self.beta), self._host, strict=True):
                target[..., :last].copy_(source[..., :last], non_blocking=True)

    def set_diagonal(self, slot: int, first_site: int, count: int) -> None:
        """Row i is edited at site ``first_site + i`` only, by ``slot``; for the self-check."""
        self.clear()
        row_map, alpha, beta = self._arrays
        for i in range(count):
            row_map[first_site + i, i] = slot
        alpha[:count] = 1.0
        beta[:count] = 1.0
        self._written = [slice(0, count)]
        if self._device_differs:
            for target, source in zip((self.row_map, self.alpha, self.beta), self._host, strict=True):
                target.copy_(source)
