"""The result of a sweep: divergence per alpha and prompt, what follows from it, and its table, file and picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from incline_fast.files import check_writable, replacing, write_table

__all__ = ["GROWTH_LIMIT", "Interval", "SweepResult", "check_plot"]

GROWTH_LIMIT = 10.0
"""A last state whose norm grows by more than this factor has blown up: edits at many sites amplify each other."""

Interval = tuple[float, float]

_RESAMPLES = 2000
_COLUMNS = ("alpha", "kl_mean", "kl_median", "change", "change_low", "change_high", "max_growth", "blown_up", "prompts")


@dataclass(frozen=True, eq=False)
class SweepResult:
    """KL divergence of n prompts at A strengths.

    Attributes:
        alphas: ascending, 0 among them.
        kl: fp32 ``[A, n]`` in nats; infinite where the intervened state had no finite logits.
        growth: fp32 ``[A, n]``, norm of the state before the final norm over its norm at alpha = 0.
    """

    alphas: list[float]
    kl: Tensor
    growth: Tensor

    @cached_property
    def mean(self) -> list[float]:
        """Mean divergence per alpha."""
        return [float(value) for value in self.kl.double().mean(1)]

    @cached_property
    def change(self) -> list[float]:
        """``mean KL(alpha) / mean KL(0) - 1``: -0.4 says that the divergence fell by 40%."""
        mean = self.kl.double().mean(1)
        return [float(value) for value in mean / mean[self.index(0.0)] - 1]

    @cached_property
    def blown_up(self) -> list[float]:
        """Strengths at which a state was not finite or grew beyond :data:`GROWTH_LIMIT`."""
        fine = self.kl.isfinite().all(1) & (self.growth < GROWTH_LIMIT).all(1)
        return [alpha for alpha, good in zip(self.alphas, fine.tolist(), strict=True) if not good]

    @property
    def best_alpha(self) -> float:
        """The strength of the smallest mean divergence that did not blow up; 0 if no other is better."""
        usable = [alpha for alpha in self.alphas if alpha not in self.blown_up]
        return min(usable, key=lambda alpha: (self.mean[self.index(alpha)], abs(alpha)), default=0.0)

    def index(self, alpha: float) -> int:
        """Position of a strength on the grid.

        Raises:
            ValueError: it is not on the grid.
        """
        if alpha not in self.alphas:
            raise ValueError(f"alpha {alpha} was not measured; the grid is {self.alphas}")
        return self.alphas.index(alpha)

    def interval(self, alpha: float, *, level: float = 0.95, seed: int = 0) -> Interval:
        """Bootstrap percentile interval of ``change`` at one strength; prompts are resampled.

        Args:
            alpha: a strength of the grid.
            level: coverage.
            seed: of the resampling.
        """
        edited, plain = self.kl[self.index(alpha)].double(), self.kl[self.index(0.0)].double()
        n = len(plain)
        draws = torch.randint(n, (_RESAMPLES, n), generator=torch.Generator().manual_seed(seed), device="cpu")
        changes = edited[draws].mean(1) / plain[draws].mean(1) - 1
        # Draws with an infinite divergence sort last; interpolation between two of them would be NaN.
        low, high = changes.quantile(
            torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device="cpu"), interpolation="nearest"
        )
        return float(low), float(high)

    def rows(self) -> list[dict[str, float | int | bool]]:
        """One row per alpha; the columns of :meth:`to_csv`."""
        rows = []
        for i, alpha in enumerate(self.alphas):
            low, high = self.interval(alpha)
            values = (
                alpha,
                self.mean[i],
                float(self.kl[i].median()),
                self.change[i],
                low,
                high,
                float(self.growth[i].max()),
                alpha in self.blown_up,
                self.kl.shape[1],
            )
            rows.append(dict(zip(_COLUMNS, values, strict=True)))
        return rows

    def table(self) -> str:
        """The result as text, with the best alpha marked and blow-ups named."""
        lines = [f"KL(target prompt || source prompt), {self.kl.shape[1]} prompts, 95% bootstrap intervals", ""]
        lines.append(f"{'alpha':>8} {'mean KL':>10} {'change':>9} {'interval':>18}")
        for row in self.rows():
            mark = "  <- best" if row["alpha"] == self.best_alpha else ""
            if row["blown_up"]:
                mark = f"  BLEW UP (last state grew {row['max_growth']:.3g} times)"
            span = f"{row['change_low']:+.1%} .. {row['change_high']:+.1%}"
            lines.append(f"{row['alpha']:>8g} {row['kl_mean']:>10.4f} {row['change']:>+9.1%} {span:>18}{mark}")
        return "\n".join(lines)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write one row per alpha, whole or not at all."""
        write_table(self.rows(), _COLUMNS, path)

    def plot(self, path: str | PathLike[str], *, title: str = "") -> None:
        """Draw change over alpha with its interval, as PNG, SVG or PDF by the suffix of ``path``.

        Raises:
            ImportError: matplotlib is not installed (``pip install incline-fast[plot]``).
            ValueError: the suffix names no kind of picture.
        """
        path = Path(path)
        check_plot(path)
        figure, axes = _figure()
        shown = [row for row in self.rows() if not row["blown_up"]]
        x = [row["alpha"] for row in shown]
        low, high, middle = ([100 * row[name] for row in shown] for name in ("change_low", "change_high", "change"))
        axes.fill_between(x, low, high, alpha=0.2, linewidth=0)
        axes.plot(x, middle, marker="o", markersize=3)
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.axvline(self.best_alpha, color="gray", linewidth=0.8, linestyle=":")
        axes.set(xlabel="alpha", ylabel="change of KL, %")
        # A title is text: dollar signs in it are no formula.
        axes.set_title(title, parse_math=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lstrip(".").lower(), dpi=150, bbox_inches="tight")


def check_plot(path: Path) -> None:
    """Refuse before hours of work what :meth:`SweepResult.plot` could not draw to ``path``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the suffix names no kind of picture.
        OSError: the file cannot be written.
    """
    figure, _ = _figure()
    known = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix.lstrip(".").lower() not in known:
        raise ValueError(f"the plot {path} ends in {path.suffix!r}; allowed: {', '.join('.' + kind for kind in known)}")
    check_writable(path)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install incline-fast[plot]") from error
    figure = Figure(figsize=(6, 4))
    return figure, figure.subplots()
