"""The options of a fit: the presets, and the options that ``fit``, ``fit_states`` and the command share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import TypedDict, cast, get_args

import torch

from incline_fast.alignment.metadata import Form
from incline_fast.arguments import number, plain, usable_device, whole, wholes
from incline_fast.fitting.estimators import Estimator, Lam, get_estimator
from incline_fast.fitting.memory_plan import parse_bytes
from incline_fast.models.block_parts import SiteKind
from incline_fast.states.hidden_states import BATCH_TOKENS, Pooling
from incline_fast.text.prompts import DEFAULT_TEMPLATE

__all__ = ["PRESETS", "FitKeywords", "FitOptions", "Preset", "SolveKeywords", "SolveOptions", "lam_by_site"]


@dataclass(frozen=True)
class Preset:
    """One row of the table: what is fitted, and how it is meant to be applied."""

    template: str | None
    pooling: Pooling
    estimator: str
    lam: Lam
    form: Form
    site: SiteKind = "hidden"
    doubled: bool = False
    """Whether every second pair follows its target sentence: ``target\\nsource`` and ``target\\ntarget``."""


PRESETS: dict[str, Preset] = {
    # States of a prompt, not of a bare sentence: a map edits the last token of prompts.
    "robust": Preset(DEFAULT_TEMPLATE, "last", "affine_ridge", "loo", "interpolate"),
    # Wang et al., ACL 2025, arXiv 2410.12462, section 3.
    "paper": Preset(None, "last", "min_norm", 0.0, "add"),
    # The authors' published code (github.com/weixuan-wang123/INCLINE, intervention_llama.py), to be applied with
    # mode="clean"; its sigma is -alpha.
    "official": Preset(None, "mean_all", "min_norm", 0.0, "add", site="ffn", doubled=True),
}


class SolveKeywords(TypedDict, total=False):
    """The fields of :class:`SolveOptions` as keywords."""

    estimator: str | Estimator | None
    lam: Lam | Mapping[int, Lam | None] | None
    form: Form | None
    holdout: float
    seed: int
    progress: bool
    solve_device: torch.device | str | None
    distributed: bool


class FitKeywords(SolveKeywords, total=False):
    """The fields of :class:`FitOptions` as keywords."""

    preset: str
    template: str | None
    pooling: Pooling | None
    site: SiteKind | None
    layers: Iterable[int] | None
    source_language: str | None
    target_language: str | None
    batch_tokens: int
    resume: str | PathLike[str] | None
    memory_budget: int | str | None


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """From states to maps: the options of :func:`fit_states`.

    Attributes:
        estimator: a name of :data:`~incline_fast.fitting.estimators.ESTIMATORS` or an Estimator; None for
            ``"affine_ridge"``, or for that of the preset.
        lam: relative ridge parameter, one for all sites or ``{site: lam}``; ``"loo"`` chooses one per site from a grid
            of 20 by leave-one-out, and what it chose is in ``metadata.lam``. None for the estimator's default.
        form: ``"add"`` or ``"interpolate"``; by default the estimator's own, the preset's, or ``"interpolate"``.
        holdout: pairs that are not fitted but measured: a share below 1, or a whole number of pairs.
        seed: chooses the held-out pairs.
        progress: show progress bars.
        solve_device: where the maps are computed, by default where the states are; the alignment is on the CPU.
        distributed: share the work among the processes of the default process group: in :func:`fit` the batches of
            sentences, then the sites; in :func:`fit_states` the sites, of which each process has all states. All call
            with the same arguments and get the same alignment.
    """

    estimator: str | Estimator | None = None
    lam: Lam | Mapping[int, Lam | None] | None = None
    form: Form | None = None
    holdout: float = 0
    seed: int = 0
    progress: bool = True
    solve_device: torch.device | str | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        """Refuse what is wrong whatever the data.

        Raises:
            TypeError, ValueError: a value that is not allowed; the message names it and what is.
        """
        solver = self.solver
        if self.form is not None and self.form not in get_args(Form):
            raise ValueError(f"form is {self.form!r}; allowed: {', '.join(get_args(Form))}")
        if self.form is not None and solver.own_form not in (None, self.form):
            raise ValueError(f"form is {self.form!r}; {solver.name} makes sense as {solver.own_form!r} only")
        for lam in self.lam.values() if isinstance(self.lam, Mapping) else (self.lam,):
            solver.checked_lam(plain(lam))
        number("holdout", self.holdout)
        whole("seed", self.seed)
        usable_device("solve_device", self.solve_device)

    @property
    def solver(self) -> Estimator:
        """The estimator that is meant."""
        return get_estimator("affine_ridge" if self.estimator is None else self.estimator)

    def solving(self) -> SolveKeywords:
        """Those of these options that :func:`fit_states` has, as its keywords."""
        return cast(SolveKeywords, {field.name: getattr(self, field.name) for field in fields(SolveOptions)})


@dataclass(frozen=True, kw_only=True)
class FitOptions(SolveOptions):
    """From sentences to maps: the options of :func:`fit`, those of :class:`SolveOptions` among them.

    Attributes:
        preset: a row of the table of :func:`fit`; each option that is not None overrides its part. An estimator without
            a ridge parameter, or another than the preset's, comes with its own default lam.
        template: the prompt that the maps will meet, with ``{sentence}`` in it; ``"{sentence}"`` for bare sentences.
        pooling: ``"last"``, ``"mean"`` or ``"mean_all"``; see :func:`incline_fast.states.collect`.
        site: what is mapped and edited: ``"hidden"``, ``"attention"`` or ``"ffn"``; see ``collect``.
        layers: sites to fit; by default 1..L, the outputs of all blocks.
        source_language: recorded; by default that of the parallel text.
        target_language: recorded; by default that of the parallel text.
        batch_tokens: see :func:`incline_fast.states.collect`.
        resume: folder that keeps the states, so that an interrupted run continues; see ``collect``.
        memory_budget: bytes that the fit may take beside the model, or text such as ``"16GiB"``: layers are collected
            and fitted in groups, each with a run of its own over the sentences
            (:func:`incline_fast.fitting.memory_plan.plan_fit`).
    """

    preset: str = "robust"
    template: str | None = None
    pooling: Pooling | None = None
    site: SiteKind | None = None
    layers: Iterable[int] | None = None
    source_language: str | None = None
    target_language: str | None = None
    batch_tokens: int = BATCH_TOKENS
    resume: str | PathLike[str] | None = None
    memory_budget: int | str | None = None

    def __post_init__(self) -> None:
        """Refuse values that are wrong for any data; see :class:`SolveOptions`."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; allowed: {', '.join(PRESETS)}")
        super().__post_init__()
        if isinstance(self.memory_budget, str):
            parse_bytes(self.memory_budget)

    @property
    def recipe(self) -> Preset:
        """The preset's row."""
        return PRESETS[self.preset]

    @property
    def solver(self) -> Estimator:
        """The estimator that is meant."""
        return get_estimator(self.recipe.estimator if self.estimator is None else self.estimator)

    def sites(self, num_layers: int) -> list[int]:
        """The sites to fit of a model with ``num_layers`` blocks."""
        return list(range(1, num_layers + 1)) if self.layers is None else wholes("layers", self.layers)

    def lams(self, sites: Sequence[int]) -> dict[int, Lam | None]:
        """The ridge parameter of every site; the preset's where none is given and the estimator is the preset's."""
        own = self.lam is None and self.solver.name == self.recipe.estimator
        return lam_by_site(self.recipe.lam if own else self.lam, sites)


def lam_by_site(lam: Lam | Mapping[int, Lam | None] | None, sites: Iterable[int]) -> dict[int, Lam | None]:
    """One ridge parameter per site.

    Raises:
        ValueError: a mapping has other sites.
    """
    if isinstance(lam, Mapping):
        lams: dict[int, Lam | None] = {whole("a site of lam", site): plain(one) for site, one in lam.items()}
    else:
        lams = dict.fromkeys(sites, plain(lam))
    if sorted(lams) != sorted(set(sites)):
        raise ValueError(f"lam has the sites {sorted(lams)}, the fit {sorted(set(sites))}; expected the same")
    return lams
