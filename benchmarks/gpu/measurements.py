"""The tables that the measuring stages add to: measurements.csv, skipped.csv, clocks.csv."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from benchmarks.gpu.device import CLOCKS, Device
from benchmarks.gpu.shapes import BASELINE
from benchmarks.gpu.tables import append
from incline_fast.bench.machine import commit
from incline_fast.bench.problems import Problem, dtype_name

__all__ = ["CHOLESKY_BASELINE", "Measurement", "Measurements", "Skipped", "Timed"]

CHOLESKY_BASELINE = "cusolver"


@dataclass(frozen=True)
class Timed:
    """A provider's microseconds per call, one value per round, and its largest error before and after the timing."""

    provider: str
    kind: str
    microseconds: Sequence[float]
    error: float


@dataclass(frozen=True)
class Skipped:
    """What was not measured, and why; provider "all" is the whole problem."""

    problem: str
    provider: str
    reason: str


@dataclass(frozen=True)
class Measurement:
    """A line of measurements.csv. ``ratio`` is the median over rounds of the baseline's time over this one's."""

    stage: str
    op: str
    backend: str
    kind: str
    norm: str
    num_tokens: int
    hidden_size: int
    rank: int | None
    dtype: str
    map_dtype: str
    mode: str
    us_p50: float
    us_p20: float
    us_p80: float
    gb_s: float
    baseline: str
    ratio: float | None
    max_err: float
    device: str
    torch: str
    commit: str


COLUMNS = [field.name for field in fields(Measurement)]
SKIPPED_COLUMNS = ("stage", "problem", "provider", "reason")
CLOCK_COLUMNS = ("stage", "problem", *CLOCKS)


class Measurements:
    """The tables of one stage in ``folder``. ``complete`` turns False when one of our own backends was left out."""

    def __init__(self, folder: Path, stage: str, device: Device) -> None:
        self._folder, self._stage, self._device = folder, stage, device
        self._about = {"device": device.name, "torch": torch.__version__, "commit": commit()}
        self._ours = {*device.backends, "blocked", "all"}
        self.complete = True

    def add(self, problem: Problem, timed: Sequence[Timed]) -> None:
        """The lines of one problem."""
        shape = {
            "op": f"affine_{problem.norm}_norm",
            "norm": problem.norm,
            "num_tokens": problem.num_tokens,
            "hidden_size": problem.hidden_size,
            "rank": problem.rank,
            "dtype": dtype_name(problem.dtype),
            "map_dtype": dtype_name(problem.map_dtype),
            "mode": problem.mode,
        }
        self._add(shape, timed, problem.bytes, BASELINE)

    def add_cholesky(self, size: int, dtype: str, timed: Sequence[Timed]) -> None:
        """The lines of one matrix, which is read and written once."""
        shape = {"op": "cholesky_ex", "norm": "", "num_tokens": 1, "hidden_size": size, "rank": None}
        shape |= {"dtype": dtype, "map_dtype": dtype, "mode": "launch"}
        self._add(shape, timed, 2 * size * size * getattr(torch, dtype).itemsize, CHOLESKY_BASELINE)

    def skip(self, skipped: Skipped) -> None:
        """A line of skipped.csv."""
        if skipped.provider in self._ours:
            self.complete = False
        print(f"left out: {skipped.provider} on {skipped.problem}: {skipped.reason}", flush=True)
        append(self._folder / "skipped.csv", SKIPPED_COLUMNS, [{"stage": self._stage, **asdict(skipped)}])

    def log_clocks(self, problem: str, device: Device) -> None:
        """A line of clocks.csv, read right after the timing."""
        append(
            self._folder / "clocks.csv",
            CLOCK_COLUMNS,
            [{"stage": self._stage, "problem": problem, **device.clocks()}],
        )

    def _add(self, shape: dict[str, object], timed: Sequence[Timed], moved: int, baseline: str) -> None:
        times = {one.provider: one.microseconds for one in timed}
        lines = [asdict(self._line(shape, one, moved, baseline, times.get(baseline))) for one in timed]
        append(self._folder / "measurements.csv", COLUMNS, lines)

    def _line(
        self, shape: dict[str, object], timed: Timed, moved: int, baseline: str, others: Iterable[float] | None
    ) -> Measurement:
        mine = timed.microseconds
        p20, p50, p80 = (statistics.quantiles(mine, n=10)[decile] for decile in (1, 4, 7))
        ratio = None if others is None else statistics.median(o / m for o, m in zip(others, mine, strict=True))
        return Measurement(
            stage=self._stage,
            backend=timed.provider,
            kind=timed.kind,
            us_p50=p50,
            us_p20=p20,
            us_p80=p80,
            gb_s=moved / p50 / 1e3,
            baseline=baseline,
            ratio=ratio,
            max_err=timed.error,
            **shape,  # type: ignore[arg-type]
            **self._about,
        )
