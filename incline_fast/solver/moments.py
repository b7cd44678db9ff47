"""Second moments of streamed rows, merged exactly: what a primal ridge needs and nothing that grows with n."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from incline_fast.solver.least_squares import add_gram, symmetric

__all__ = ["Moments"]

# Rows that are converted to fp64 at once: enough for a fast matrix product, and at a width of 2048 still below the size
# from which the C library takes new memory pages for every allocation, which made conversion four times slower.
_ROWS = 1024


class Moments:
    """n, the means and the centred products of rows X ``[n, d]`` and Y ``[n, t]``, all fp64.

    Chunks are centred by their own mean and merged by Chan, Golub and LeVeque (1979), so that a feature whose mean is
    large beside its spread loses nothing: ``S = S_a + S_b + n_a n_b / n delta delta^T``. The last term goes into the
    product of the chunk as one more row. Products are taken in fp64: products of fp32 summed in fp64 carry the rounding
    of each product.

    Attributes:
        n: number of rows.
        mean_x: ``[d]``.
        mean_y: ``[t]``.
        xy: ``[d, t]``, ``sum (x - mean_x) (y - mean_y)^T``.
        yy: ``[t]``, ``sum (y - mean_y)^2`` per target.
    """

    def __init__(self, d: int, t: int, device: torch.device | str = "cpu") -> None:
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        self.n = 0
        self.mean_x = empty.new_zeros(d)
        self.mean_y = empty.new_zeros(t)
        self.xy = empty.new_zeros(d, t)
        self.yy = empty.new_zeros(t)
        # Only the elements on and below the diagonal are correct.
        self._lower = empty.new_zeros(d, d)

    @property
    def xx(self) -> Tensor:
        """``[d, d]``, ``sum (x - mean_x) (x - mean_x)^T``, exactly symmetric; a new tensor."""
        return symmetric(self._lower)

    def add(self, X: Tensor, Y: Tensor) -> None:
        """Add rows of any float dtype."""
        for start in range(0, len(X), _ROWS):
            x, y = X[start : start + _ROWS], Y[start : start + _ROWS]
            rows_x, mean_x = _centred(x)
            rows_y, mean_y = _centred(y)
            factor = self._shift(len(x), mean_x, mean_y, rows_x[-1], rows_y[-1])
            rows_x[-1] *= factor
            rows_y[-1] *= factor
            add_gram(self._lower, rows_x.T)
            self.xy.addmm_(rows_x.T, rows_y)
            self.yy += rows_y.square_().sum(0)  # in place: the rows are not needed any more

    def merge(self, other: Moments) -> None:
        """Add the rows of another Moments, which is not changed."""
        if other.n == 0:
            return
        delta_x, delta_y = torch.empty_like(self.mean_x), torch.empty_like(self.mean_y)
        factor = self._shift(other.n, other.mean_x, other.mean_y, delta_x, delta_y)
        self._add_products(other)
        self._add_outer(delta_x * factor, delta_y * factor)

    def all_reduce(self, group: dist.ProcessGroup | None) -> None:
        """Make this the moments of the rows of all processes of the group."""
        n = torch.tensor(float(self.n), dtype=torch.float64, device=self.mean_x.device)
        sums = [n, self.n * self.mean_x, self.n * self.mean_y]
        for value in sums:
            dist.all_reduce(value, group=group)
        total, mean_x, mean_y = int(sums[0]), sums[1] / sums[0], sums[2] / sums[0]
        # Each process moves its products to the common mean, then they add up.
        root = self.n**0.5
        self._add_outer(root * (self.mean_x - mean_x), root * (self.mean_y - mean_y))
        for value in (self._lower, self.xy, self.yy):
            dist.all_reduce(value, group=group)
        self.n, self.mean_x, self.mean_y = total, mean_x, mean_y

    def copy(self) -> Moments:
        """An independent copy."""
        other = Moments(len(self.mean_x), len(self.mean_y), self.mean_x.device)
        other.load_state_dict(self.state_dict())
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name."""
        names = {"mean_x": self.mean_x, "mean_y": self.mean_y, "xx": self.xx, "xy": self.xy, "yy": self.yy}
        return {"n": torch.tensor(self.n, device="cpu")} | {name: value.clone() for name, value in names.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.n = int(state["n"])
        for name in ("mean_x", "mean_y", "xy", "yy"):
            getattr(self, name).copy_(state[name])
        self._lower.copy_(state["xx"])

    def _shift(self, m: int, mean_x: Tensor, mean_y: Tensor, delta_x: Tensor, delta_y: Tensor) -> float:
        """Update n and the means with m further rows.

        Args:
            m: number of rows.
            mean_x: ``[d]``, their mean.
            mean_y: ``[t]``, likewise.
            delta_x: ``[d]``; the difference of ``mean_x`` and the mean before is written here.
            delta_y: ``[t]``; likewise.

        Returns:
            ``sqrt(n m / (n + m))``, by which the differences are multiplied to be one more row of the products.
        """
        torch.sub(mean_x, self.mean_x, out=delta_x)
        torch.sub(mean_y, self.mean_y, out=delta_y)
        total = self.n + m
        factor: float = (self.n * m / total) ** 0.5
        # The lerp of the first rows (weight 1) is exactly their mean.
        self.mean_x = torch.lerp(self.mean_x, mean_x, m / total)
        self.mean_y = torch.lerp(self.mean_y, mean_y, m / total)
        self.n = total
        return factor

    def _add_products(self, other: Moments) -> None:
        self._lower += other._lower
        self.xy += other.xy
        self.yy += other.yy

    def _add_outer(self, x: Tensor, y: Tensor) -> None:
        self._lower.addr_(x, x)
        self.xy.addr_(x, y)
        self.yy += y.square()


def _centred(X: Tensor) -> tuple[Tensor, Tensor]:
    """fp64 ``[n + 1, d]``, the centred rows and an unset one for the difference of means, and their mean ``[d]``."""
    rows = torch.empty(len(X) + 1, X.shape[1], dtype=torch.float64, device=X.device)
    rows[:-1] = X
    mean = rows[:-1].mean(0)
    rows[:-1] -= mean
    return rows, mean
