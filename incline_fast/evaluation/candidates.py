"""Settings of an intervention, their scores on development data, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from incline_fast.alignment import Alignment
from incline_fast.evaluation.bootstrap import Difference, paired_bootstrap
from incline_fast.evaluation.scoring import Variant
from incline_fast.files import write_table
from incline_fast.intervention.sweep_result import GROWTH_LIMIT

__all__ = ["Setting", "Trials", "variants_of"]


@dataclass(frozen=True, order=True)
class Setting:
    """What is chosen: estimator and ridge parameter of the maps, where and how strongly they are applied."""

    estimator: str
    lam: float
    sites: tuple[int, ...]
    alpha: float

    def __str__(self) -> str:
        first, last = self.sites[0], self.sites[-1]
        where = f"site {first}" if first == last else f"sites {first}-{last}"
        return f"{self.estimator}, lambda {self.lam:g}, {where}, alpha {self.alpha:g}"


def variants_of(
    alignment: Alignment, lam: float, site_sets: Sequence[tuple[int, ...]], alphas: Sequence[float]
) -> dict[Setting, Variant]:
    """Every setting of one fit, as variants that can be scored; ``lam`` is that of the fit."""
    name = alignment.metadata.estimator or "maps"
    settings = [Setting(name, lam, sites, alpha) for sites in site_sets for alpha in alphas if alpha != 0]
    return {setting: Variant(str(setting), alignment, setting.alpha, setting.sites) for setting in settings}


@dataclass(frozen=True, eq=False)
class Trials:
    """Scores of settings on the same development rows.

    Attributes:
        metric: name of what was measured; more is better.
        settings: S of them.
        scores: ``[S, n]``, one per setting and row.
        growth: ``[S, n]``, norm of the last state over the plain one's.
        plain: ``[n]`` of the model without an edit.
        target: ``[n]`` of the target prompts.
        groups: n identifiers of the rows, for the intervals.
    """

    metric: str
    settings: list[Setting]
    scores: Tensor
    growth: Tensor
    plain: Tensor
    target: Tensor
    groups: list[str]

    @classmethod
    def joined(cls, parts: Sequence[Trials]) -> Trials:
        """Trials of the same settings on several tasks, as one: settings are then chosen for all of them together.

        Raises:
            ValueError: the parts tried other settings.
        """
        if any(part.settings != parts[0].settings or part.metric != parts[0].metric for part in parts):
            raise ValueError("the parts tried different settings or metrics; they cannot be joined")
        return cls(
            parts[0].metric,
            parts[0].settings,
            torch.cat([part.scores for part in parts], 1),
            torch.cat([part.growth for part in parts], 1),
            torch.cat([part.plain for part in parts]),
            torch.cat([part.target for part in parts]),
            [group for part in parts for group in part.groups],
        )

    @property
    def blown_up(self) -> Tensor:
        """``[S]`` bool: settings under which a state is not finite or grew more than tenfold."""
        return ~((self.growth < GROWTH_LIMIT).all(1) & self.scores.isfinite().all(1))

    def best(self) -> Setting | None:
        """The setting of the highest mean that did not blow up; None where none is better than the plain model.

        Of equal means, the smaller alpha wins, then fewer sites, then the larger lambda.
        """
        means, plain = self.scores.double().mean(1), float(self.plain.double().mean())
        usable = [i for i, bad in enumerate(self.blown_up.tolist()) if not bad and float(means[i]) > plain]
        if not usable:
            return None

        def key(i: int) -> tuple[float, float, int, float]:
            setting = self.settings[i]
            return -float(means[i]), abs(setting.alpha), len(setting.sites), -setting.lam

        return self.settings[min(usable, key=key)]

    def difference(self, setting: Setting) -> Difference:
        """The setting's gain over the plain model with its interval; optimistic for a setting that was chosen by it."""
        return paired_bootstrap(self.scores[self.settings.index(setting)], self.plain, groups=self.groups)

    def rows(self) -> list[dict[str, object]]:
        """One row per setting."""
        plain = float(self.plain.double().mean())
        return [
            {
                "estimator": setting.estimator,
                "lam": setting.lam,
                "sites": " ".join(map(str, setting.sites)),
                "alpha": setting.alpha,
                self.metric: round(mean, 6),
                "change": round(mean - plain, 6),
                "blown_up": bad,
            }
            for setting, mean, bad in zip(
                self.settings, self.scores.double().mean(1).tolist(), self.blown_up.tolist(), strict=True
            )
        ]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write every setting that was tried."""
        rows = self.rows()
        write_table(rows, list(rows[0]), path)
