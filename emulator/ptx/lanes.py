"""A set of threads that execute an instruction together."""

from __future__ import annotations

from typing import Any

import numpy as np

from emulator.ptx.scalars import Array


class Lanes:
    """Sorted numbers of threads. ``index`` selects them from an array over all threads, without a copy if it is all."""

    __slots__ = ("_numbers", "count", "everyone", "index")

    def __init__(self, numbers: Array | None, everyone: int) -> None:
        self.everyone = everyone
        self.count = everyone if numbers is None else len(numbers)
        self._numbers = numbers
        self.index: Any = slice(None) if self.count == everyone else numbers

    @property
    def numbers(self) -> Array:
        if self._numbers is None:
            self._numbers = np.arange(self.everyone)
        return self._numbers

    def where(self, chosen: Array) -> Lanes:
        """Those for which ``chosen`` holds."""
        chosen = np.broadcast_to(chosen, self.count)
        return self if chosen.all() else Lanes(self.numbers[chosen], self.everyone)

    @staticmethod
    def merged(parts: list[Lanes]) -> Lanes:
        if len(parts) == 1:
            return parts[0]
        return Lanes(np.sort(np.concatenate([part.numbers for part in parts])), parts[0].everyone)
