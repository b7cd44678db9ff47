"""The state of one forward pass, and which threads are running an edited model.

Threads may run an edited model at the same time: each has its own passes and generations. The block that edits the
model ends only when no pass or generation that began in it is still running.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from incline_fast.intervention.positions import EditedTokens

__all__ = ["AtWork", "Control", "ForwardPass", "Generation", "Stage"]


class Stage(Enum):
    """What a site does with the rows of a forward pass."""

    EDIT = "edit"
    """Replace the state by its edited value."""
    RECORD = "record"
    """Remember the state, change nothing."""
    SET = "set"
    """Replace the state by the edited value of the state that was remembered."""


class ForwardPass:
    """What is edited in one forward pass. Made for each pass; every site reads it, and passes share nothing.

    Attributes:
        rows: what is edited, None: nothing.
        alpha, beta: ``[N]``, one per edited row, for all sites or per kind of site; None: each site's own number.
        row_maps: per kind of site int32 ``[N]``, the map of each row in the site's stack, -1 for a row that keeps its
            bits; None: every row has map 0 at every site.
        untouched: whether some of these rows keep their bits.
        stage: see :class:`Stage`.
        entrance: number of the innermost entrance of the model that the pass has come through, see ``entrances``.
        states: site -> remembered states of the rows.
        measures: site -> largest magnitude of each edited row, and its norm over the norm before; under ``watch``.
    """

    def __init__(
        self,
        rows: EditedTokens | None = None,
        alpha: tuple[Tensor, ...] | None = None,
        beta: tuple[Tensor, ...] | None = None,
        row_maps: tuple[Tensor, ...] | None = None,
        untouched: bool = False,
        entrance: int = 0,
    ) -> None:
        self.rows = rows
        self.alpha = alpha
        self.beta = beta
        self.row_maps = row_maps
        self.untouched = untouched
        self.stage = Stage.EDIT
        self.entrance = entrance
        self.states: dict[int, Tensor] = {}
        self.measures: dict[int, tuple[Tensor, Tensor]] = {}
        self._per_token: dict[tuple[int, torch.Size], tuple[Tensor, Tensor | None, Tensor | None]] = {}

    def strengths(self, kind: int) -> tuple[Tensor | None, Tensor | None]:
        """Alpha and beta ``[N]`` of the edited rows at the sites of a kind."""
        if self.alpha is None:
            return None, None
        place = kind if len(self.alpha) > 1 else 0
        return self.alpha[place], None if self.beta is None else self.beta[place]

    def per_token(self, kind: int, shape: torch.Size) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``row_map``, alpha and beta of all ``[B T]`` tokens of states ``[B, T, d]`` on the CPU.

        -1 is the map of a token that keeps its bits. Alpha and beta are None where each site has its own. Made once for
        all sites of a ``kind``.
        """
        key = (kind, shape)
        found = self._per_token.get(key)
        if found is None:
            rows, (batch, length, _) = self.rows, shape
            assert rows is not None
            maps = torch.zeros((), dtype=torch.int32, device="cpu") if self.row_maps is None else self.row_maps[kind]
            alpha, beta = (
                None if per_row is None else rows.spread(per_row, batch, length, 0) for per_row in self.strengths(kind)
            )
            row_map = rows.spread(maps, batch, length, -1)
            if alpha is not None and beta is None:
                beta = torch.ones_like(alpha)
            found = self._per_token[key] = (row_map, alpha, beta)
        return found


class Generation:
    """One call of ``generate`` that is under way: ``prompt`` is the length of its first pass, None before it."""

    def __init__(self) -> None:
        self.prompt: int | None = None


class Control(threading.local):
    """What a thread is doing with one edited model.

    Attributes:
        running: the pass that is under way; None: none was announced.
        generations: the calls of generate that are under way, the innermost last.
        declared: whether the next pass was said to be a prompt.
        requests: the continuous batching that it has begun last; None: none.
    """

    def __init__(self) -> None:
        self.running: ForwardPass | None = None
        self.generations: list[Generation] = []
        self.declared = False
        self.requests: Any = None


class AtWork:
    """Counts the passes and generations that began inside a block, so that the block is not left before they end."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._by_thread: dict[int, int] = {}
        self._open = True
        self._when_done: Callable[[], object] | None = None

    def enter(self) -> bool:
        """Begin; False where the block has been left, so that the work runs on the plain model.

        Waits while another thread is leaving the block.
        """
        me = threading.get_ident()
        with self._changed:
            if not self._open and me not in self._by_thread:
                self._changed.wait_for(lambda: not self._by_thread)
                return False
            self._by_thread[me] = self._by_thread.get(me, 0) + 1
        return True

    def exit(self) -> None:
        """The work that :meth:`enter` began is over."""
        me, done = threading.get_ident(), None
        with self._changed:
            self._by_thread[me] -= 1
            if not self._by_thread[me]:
                del self._by_thread[me]
            if not self._by_thread and not self._open:
                done, self._when_done = self._when_done, None
                self._changed.notify_all()
        if done is not None:
            done()

    def close(self, when_done: Callable[[], object]) -> bool:
        """Refuse new passes and wait for those of other threads; False: a pass of this thread itself is under way.

        ``when_done`` is then called at the end of its work.
        """
        with self._changed:
            self._open = False
            if threading.get_ident() in self._by_thread:
                self._when_done = when_done
                return False
            self._changed.wait_for(lambda: not self._by_thread)
        return True
