"""The lines of the figures: what edits the model, where, and at which fixed strengths.

pairs      accuracy over the number of pairs (figure 3a)
alpha      accuracy over alpha from -1 to 1, for ridge maps and for the paper's minimum norm, added (figure 4)
estimator  every estimator; ``mean_difference`` is CAA (Rimsky et al., ACL 2024)
preset     the presets ``robust`` and ``paper`` of ``fit``, ``paper`` from bare sentences as the paper has it
official   the preset of the published code: FFN outputs, ``h - sigma W h`` in clean mode, so alpha is -sigma
rival      a projection in the manner of Lens (arXiv 2410.04407): of the state's part in the span of the languages'
           means, alpha is replaced by that of the target language's mean
ITI        shifts of single attention heads (see ``iti.py``), at the other lines' strengths and at its paper's own
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.paper.iti import HeadShift, fit_heads, head_states
from incline_fast import AffineMap, Alignment, Intervention, fit, intervene
from incline_fast.evaluation import LabelTask
from incline_fast.fitting.estimators import ESTIMATORS
from incline_fast.fitting.fit import fit_states
from incline_fast.states import HiddenStates

__all__ = ["ALPHAS", "Line", "Lines", "head_lines", "map_lines", "preset_lines", "subspace"]

ALPHAS = (0.25, 0.5, 0.75, 1.0)
GRID = tuple(step / 10 for step in range(-10, 11))
ITI_ALPHAS = (5.0, 15.0)
"""The least and the best strength of the ITI paper."""
COUNTS = (25, 50, 100, 200, 400)
LAM = 1.0


@dataclass(frozen=True)
class Line:
    """One way to edit a model.

    Attributes:
        edit: maps, or shifts of heads.
        alphas: strengths.
        sites: where the maps are applied; empty for shifts, which know their heads.
    """

    edit: Alignment | HeadShift
    alphas: tuple[float, ...] = ALPHAS
    sites: tuple[int, ...] = ()

    @property
    def states(self) -> Alignment | None:
        """The maps if they edit the residual stream, where a pass may begin behind the block."""
        return self.edit if isinstance(self.edit, Alignment) and self.edit.metadata.site == "hidden" else None

    @property
    def where(self) -> str:
        """For tables."""
        return f"{len(self.edit.heads)} heads" if isinstance(self.edit, HeadShift) else span(self.sites)

    @contextmanager
    def applied(self, model: nn.Module, alpha: float) -> Iterator[Intervention | None]:
        """Inside, the model is edited; maps of the FFN are applied as the published code does."""
        if isinstance(self.edit, HeadShift):
            with self.edit.added(model, alpha):
                yield None
            return
        mode: Any = "online" if self.states is not None else "clean"
        with intervene(model, self.edit, alpha=alpha, layers=self.sites, mode=mode) as running:
            yield running


Lines = dict[tuple[str, str], Line]
"""(figure, name) -> line."""


def span(sites: Sequence[int]) -> str:
    """``21-30``."""
    return f"{sites[0]}-{sites[-1]}"


def subspace(source: Mapping[int, Tensor], target: Mapping[int, Tensor], others: Sequence[HiddenStates]) -> Alignment:
    """``h + alpha P (m_t - h)``, P the projection onto what the languages' mean states differ in.

    Args:
        source, target: site -> ``[n, d]``.
        others: states of further languages.
    """
    maps, bias = {}, {}
    for site in source:
        means = torch.stack([side[site].double().mean(0) for side in (source, target, *others)])
        # As many directions as languages, less one: the means less their mean.
        directions = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[: len(means) - 1]
        maps[site] = AffineMap.low_rank(directions.float(), -directions.T.float())
        bias[site] = (directions.T @ (directions @ means[1])).float()
    return Alignment.from_maps(maps, bias=bias, form="add")


def map_lines(x: HiddenStates, y: HiddenStates, others: Sequence[HiddenStates]) -> Lines:
    """Maps between the states of the prompts, at the sites of these states."""
    sites = tuple(sorted(x))

    def fitted(estimator: str, form: Any = None, pairs: int | None = None) -> Alignment:
        first = [{site: side[site][:pairs] for site in side} for side in (x, y)]
        lam = LAM if ESTIMATORS[estimator].uses_lam else None
        return fit_states(*first, estimator=estimator, lam=lam, form=form, progress=False)

    total = len(x[sites[0]])
    found: Lines = {}
    for count in sorted({min(count, total) for count in COUNTS}):
        found["pairs", f"{count}"] = Line(fitted("affine_ridge", pairs=count), ALPHAS, sites)
    found["alpha", "affine_ridge"] = Line(fitted("affine_ridge"), GRID, sites)
    found["alpha", "min_norm, added"] = Line(fitted("min_norm", "add"), GRID, sites)
    for name in ESTIMATORS:
        found["estimator", name] = Line(fitted(name), ALPHAS, sites)
    found["rival", "subspace"] = Line(subspace(x, y, others), ALPHAS, sites)
    return found


def preset_lines(model: nn.Module, tokenizer: Any, source: LabelTask, target: LabelTask, sites: Sequence[int]) -> Lines:
    """Every preset of ``fit`` at all its sites, which is how ``fit`` is used, and at the sites of the other lines."""
    found: Lines = {}
    for name, figure, alphas in (
        ("robust", "preset", ALPHAS),
        ("paper", "preset", ALPHAS),
        ("official", "official", tuple(-alpha for alpha in ALPHAS)),
    ):
        template = source.template if name == "robust" else None
        sides = source.sentences, target.sentences
        maps = fit(model, tokenizer, *sides, preset=name, template=template, progress=False)
        found[figure, f"{name}, last third"] = Line(maps, alphas, tuple(sites))
        found[figure, f"{name}, all sites"] = Line(maps, alphas, tuple(maps.layers))
    return found


def head_lines(model: nn.Module, tokenizer: Any, source: LabelTask, target: LabelTask) -> Lines:
    """ITI from the same pairs in the same prompts."""
    shift = fit_heads(*(head_states(model, tokenizer, side) for side in (source, target)))
    return {("ITI", f"{len(shift.heads)} heads"): Line(shift, ALPHAS + ITI_ALPHAS)}
