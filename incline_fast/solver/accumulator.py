"""Ridge regression on rows that arrive in pieces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from incline_fast.arguments import matrix
from incline_fast.solver.moments import Moments
from incline_fast.solver.preprocess import check_pair, check_products
from incline_fast.solver.ridge import Ridge

__all__ = ["RidgeAccumulator"]


class RidgeAccumulator:
    """Rows that arrive in pieces, from several processes, or over several runs.

    Up to d rows are kept as they are, so that the dual form and leave-one-out remain possible. Beyond that rows are
    turned into second moments (n, means, centred X^T X, X^T Y, y^2, in fp64) d at a time. The result does not depend on
    the order or grouping of the rows but for rounding of about 1e-15.

    Args:
        d: number of features.
        t: number of targets.
        device: of the rows and of their moments.
    """

    def __init__(self, d: int, t: int, *, device: torch.device | str = "cpu") -> None:
        if d < 1 or t < 1:
            raise ValueError(f"d is {d} and t is {t}; both must be at least 1")
        self.d = d
        self.t = t
        self._moments = Moments(d, t, device)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @property
    def n(self) -> int:
        """Number of rows so far."""
        return self._moments.n + self._num_waiting

    def update(self, X: Tensor, Y: Tensor) -> None:
        """Add rows ``X [m, d]``, ``Y [m, t]`` of any float dtype; nothing is added if they are refused.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: shapes or devices do not agree, a value is not finite, or its square does not fit fp64.
        """
        X, Y = matrix("X", X), matrix("Y", Y)
        check_pair(X, Y)
        check_products("X", X)
        check_products("Y", Y)
        if (X.shape[1], Y.shape[1], X.device) != (self.d, self.t, self._moments.mean_x.device):
            raise ValueError(
                f"X is {tuple(X.shape)} and Y {tuple(Y.shape)} on {X.device}; expected [m, {self.d}] and [m, {self.t}] "
                f"on {self._moments.mean_x.device}"
            )
        if self._num_waiting + len(X) > self.d:
            self._flush()
            if len(X) > self.d:
                self._moments.add(X, Y)
                return
        self._waiting.append((X.detach().clone(), Y.detach().clone()))

    def merge(self, other: RidgeAccumulator) -> None:
        """Add all rows of another accumulator, which is not changed.

        Raises:
            ValueError: its numbers of features or targets differ.
        """
        if (other.d, other.t) != (self.d, self.t):
            raise ValueError(f"other has d, t = {other.d}, {other.t}; expected {self.d}, {self.t}")
        self._moments.merge(other._moments)
        for X, Y in list(other._waiting):
            self.update(X, Y)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Make every process of the group hold the rows of all; call it once, on all of them."""
        device = self._moments.mean_x.device
        counts = torch.tensor([self._moments.n, self._num_waiting], device=device)
        gathered = [torch.empty_like(counts) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, counts, group=group)
        table = torch.stack(gathered).tolist()
        if sum(sum(row) for row in table) > self.d:
            self._flush()
            self._moments.all_reduce(group)
            return
        # All rows together are no more than d: they stay rows.
        width = max(waiting for _, waiting in table)
        rows = torch.zeros(width, self.d + self.t, dtype=torch.float64, device=device)
        X, Y = self._rows()
        rows[: len(X)] = torch.cat([X, Y], 1)
        parts = [torch.empty_like(rows) for _ in table]
        dist.all_gather(parts, rows, group=group)
        joined = torch.cat([part[:waiting] for part, (_, waiting) in zip(parts, table, strict=True)])
        self._waiting = [(joined[:, : self.d], joined[:, self.d :])] if len(joined) else []

    def solve(self, ridge: Ridge) -> Ridge:
        """Fit ``ridge`` to all rows so far; more may be added afterwards.

        Raises:
            ValueError: there are no rows, or ``ridge`` needs rows where only moments are left; see
                ``Ridge.fit_moments``.
        """
        if self.n == 0:
            raise ValueError("no rows have been added; call update first")
        if self._moments.n == 0:
            return ridge.fit(*self._rows())
        moments = self._moments
        if self._waiting:
            moments = moments.copy()
            moments.add(*self._rows())
        return ridge.fit_moments(moments)

    def state_dict(self) -> dict[str, Tensor]:
        """All that :meth:`load_state_dict` needs, as tensors by name: moments, and the rows that wait."""
        X, Y = self._rows()
        state = {f"moments.{name}": value for name, value in self._moments.state_dict().items()}
        return state | {"waiting.X": X, "waiting.Y": Y}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where :meth:`state_dict` was called.

        Raises:
            ValueError: a tensor is missing, unexpected, or of another shape.
        """
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        expected |= {"waiting.X": (self.d,), "waiting.Y": (self.t,)}
        found = {
            name: tuple(value.shape[1:] if name.startswith("waiting.") else value.shape)
            for name, value in state.items()
        }
        if found != expected:
            raise ValueError(f"state has {found}; expected {expected}")
        self._moments.load_state_dict({name[8:]: value for name, value in state.items() if name.startswith("moments.")})
        X, Y = state["waiting.X"].clone(), state["waiting.Y"].clone()
        self._waiting = [(X, Y)] if len(X) else []

    @property
    def _num_waiting(self) -> int:
        return sum(len(X) for X, _ in self._waiting)

    def _rows(self) -> tuple[Tensor, Tensor]:
        empty = self._moments.mean_x.new_empty
        if not self._waiting:
            return empty(0, self.d), empty(0, self.t)
        return torch.cat([X for X, _ in self._waiting]), torch.cat([Y for _, Y in self._waiting])

    def _flush(self) -> None:
        if self._waiting:
            self._moments.add(*self._rows())
            self._waiting = []
