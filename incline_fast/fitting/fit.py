"""Fit: from a model and parallel sentences to an alignment. Everything is planned, then run, then put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from incline_fast.alignment.alignment import Alignment
from incline_fast.alignment.metadata import AlignmentMetadata, Form
from incline_fast.arguments import matrix, number, whole
from incline_fast.distributed import gather, rank_and_size
from incline_fast.fitting.estimators import Estimator, Fitted, Lam
from incline_fast.fitting.memory_plan import plan_fit
from incline_fast.fitting.options import FitKeywords, FitOptions, SolveKeywords, SolveOptions, lam_by_site
from incline_fast.fitting.side_by_side import side_by_side
from incline_fast.models.architectures import describe
from incline_fast.models.identity import identify
from incline_fast.states.hidden_states import Collection, CollectOptions, HiddenStates, StatesError, plan
from incline_fast.text.prompts import PromptError

__all__ = ["fit", "fit_states"]


def fit(
    model: nn.Module,
    tokenizer: Any,
    source: Any,
    target: Sequence[str] | None = None,
    options: FitOptions | None = None,
    **keywords: Unpack[FitKeywords],
) -> Alignment:
    """Learn one map per layer that takes the states of source sentences to those of their translations.

        preset    template          pooling   site    estimator                form         apply with
        robust    DEFAULT_TEMPLATE  last      hidden  affine_ridge, lam "loo"  interpolate  mode="online"
        paper     bare sentence     last      hidden  min_norm                 add          mode="online"
        official  bare sentence     mean_all  ffn     min_norm                 add          mode="clean"

    ``official`` is the authors' published code: the second, fourth, ... pair follow their target sentence
    (``target\\nsource``, ``target\\ntarget``), and its sigma is ``-alpha``.
    ``DEFAULT_TEMPLATE`` is ``"{sentence}\\nThe topic of this text is"``; better is the prompt that you will use.

        fit(model, tokenizer, pairs, template="{sentence}\\nIt is", lam=1.0, holdout=0.2)

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.
        source: n sentences, or parallel text with attributes ``source`` and ``target`` (then leave out ``target``).
        target: their n translations.
        options: a :class:`~incline_fast.fitting.options.FitOptions`, to reuse in several fits.
        **keywords: any of its fields by name: ``preset``, ``template``, ``pooling``, ``estimator``, ``lam``, ``form``,
            ``site``, ``layers``, ``holdout``, ``seed``, ``source_language``, ``target_language``, ``batch_tokens``,
            ``progress``, ``resume``, ``memory_budget``, ``solve_device``, ``distributed``. They override ``options``.

    Returns:
        The alignment. With a hold-out its maps are those of the fitted pairs alone, and ``metadata.fit_error`` has, per
        site where the target states vary, ``||prediction - h_t|| / ||h_t - m||`` (Frobenius norms over the held-out
        pairs, m the mean of the fitted target states): 0 is a perfect map, 1 no better than predicting the mean.

    Raises:
        TypeError: a keyword that no option has.
        ValueError: an unknown preset, estimator or form, unequal numbers of sentences, a memory budget that is too
            small, another bad argument.
        PromptError: a sentence cannot be used.
        StatesError: a state is not finite, or the folder ``resume`` cannot be used.
        UnsupportedModelError: the architecture is not known.
    """
    runs = _plan(model, tokenizer, source, target, replace(options or FitOptions(), **keywords))
    return _joined([run.alignment() for run in runs])


@dataclass(frozen=True)
class _Run:
    """One run of the model over both sides, and the fit of the sites whose states it gives."""

    source: Collection
    target: Collection
    lams: dict[int, Lam | None]
    form: Form
    metadata: AlignmentMetadata
    options: FitOptions
    at_once: int

    def alignment(self) -> Alignment:
        keywords = self.options.solving()
        keywords |= {"estimator": self.options.solver, "lam": self.lams, "form": self.form}
        X, Y = self._states("source", self.source), self._states("target", self.target)
        return _fit_states(X, Y, self.metadata, SolveOptions(**keywords), self.at_once)

    def _states(self, side: str, collection: Collection) -> HiddenStates:
        with _naming(side):
            return collection.run(progress=self.options.progress, distributed=self.options.distributed)


def _plan(
    model: nn.Module, tokenizer: Any, source: Any, target: Sequence[str] | None, options: FitOptions
) -> list[_Run]:
    """All runs of a fit. Whatever can be refused is refused here, before the first of them."""
    sides, languages = _sides(source, target, options)
    recipe, solver = options.recipe, options.solver
    kind = recipe.site if options.site is None else options.site
    pooling = recipe.pooling if options.pooling is None else options.pooling
    describe(model, kind)  # refuses a model that cannot be edited, before the fit
    identity = identify(model)
    metadata = AlignmentMetadata(
        model_id=identity.model_id,
        config_hash=identity.config_hash,
        num_layers=identity.num_layers,
        hidden_size=identity.hidden_size,
        source_language=languages[0],
        target_language=languages[1],
        template=recipe.template if options.template is None else options.template,
        pooling=pooling,
        site=kind,
        preset=options.preset,
    )
    n = len(sides["source"])
    fitted_rows, _ = _split(n, options.holdout, options.seed)
    sites = options.sites(identity.num_layers)
    lams = options.lams(sites)
    _check_lams(solver, lams.values(), len(fitted_rows))
    threads = 1 if _on_gpu(options.solve_device) else torch.get_num_threads()
    memory = plan_fit(n, identity.hidden_size, sites, memory_budget=options.memory_budget, threads=threads)
    groups = memory.groups

    def planned(side: str, group: Sequence[int]) -> Collection:
        folder = None if options.resume is None else Path(options.resume) / side
        if folder is not None and len(groups) > 1:
            folder = folder / f"sites-{group[0]}-{group[-1]}"
        collecting = CollectOptions(metadata.template, pooling, kind, group, options.batch_tokens, folder)
        with _naming(side):
            return plan(model, tokenizer, sides[side], collecting)

    form = options.form or solver.own_form or recipe.form
    runs = []
    for group in groups:
        source_run, target_run = planned("source", group), planned("target", group)
        own = {site: lams[site] for site in group}
        runs.append(_Run(source_run, target_run, own, form, metadata, options, memory.at_once))
    return runs


def _sides(
    source: Any, target: Sequence[str] | None, options: FitOptions
) -> tuple[dict[str, list[str]], tuple[str | None, str | None]]:
    """The sentences of both sides as they are run, and the names of the languages."""
    languages = options.source_language, options.target_language
    if target is None:
        own = getattr(source, "source_language", None), getattr(source, "target_language", None)
        languages = languages[0] or own[0], languages[1] or own[1]
        source, target = _both_sides(source)
    source, target = _listed("source", source), _listed("target", target)
    if len(source) != len(target):
        raise ValueError(
            f"source has {len(source)} sentences, target {len(target)}; sentence i must belong to sentence i"
        )
    if options.recipe.doubled:
        source, target = _doubled(source, target)
    return {"source": source, "target": target}, languages


def fit_states(
    X: Mapping[int, Tensor],
    Y: Mapping[int, Tensor],
    *,
    metadata: AlignmentMetadata | None = None,
    **keywords: Unpack[SolveKeywords],
) -> Alignment:
    """Fit from states that :func:`incline_fast.states.collect` has returned: many fits from one run over the model.

    Args:
        X: ``{site: [n, d]}`` source states.
        Y: ``{site: [n, d]}`` target states of the same sites; row i belongs to row i of X.
        metadata: recorded, completed with what the fit knows: estimator, lam, n, solver, notes, fit_error.
        **keywords: the fields of :class:`~incline_fast.fitting.options.SolveOptions`: ``estimator``, ``lam``, ``form``,
            ``holdout``, ``seed``, ``progress``, ``solve_device``, ``distributed``.

    Returns:
        The alignment; see :func:`fit`.

    Raises:
        TypeError: a keyword that no option has.
        ValueError: the sites or numbers of rows differ, or an estimator refuses its input; the message names the site.
    """
    return _fit_states(X, Y, metadata, SolveOptions(**keywords), None)


def _fit_states(
    X: Mapping[int, Tensor],
    Y: Mapping[int, Tensor],
    metadata: AlignmentMetadata | None,
    options: SolveOptions,
    at_once: int | None,
) -> Alignment:
    """See :func:`fit_states`; ``at_once`` sites are solved at the same time, None for as many as the plan allows."""
    solver = options.solver
    X, Y = _states_by_site("X", X), _states_by_site("Y", Y)
    if not X or sorted(X) != sorted(Y):
        raise ValueError(f"X has the sites {sorted(X)}, Y {sorted(Y)}; expected the same, at least one")
    lams = {site: solver.default_lam if one is None else one for site, one in lam_by_site(options.lam, X).items()}
    counts = {len(states) for states in (*X.values(), *Y.values())}
    if len(counts) != 1:
        raise ValueError(f"the states have {sorted(counts)} rows; every site of X and Y must have as many")
    rows = _split(counts.pop(), options.holdout, options.seed)
    _check_lams(solver, lams.values(), len(rows[0]))

    rank, size = rank_and_size(options.distributed)
    own = sorted(X)[rank::size]
    if at_once is None and own:
        n, d = X[own[0]].shape
        on_gpu = _on_gpu(options.solve_device) or X[own[0]].is_cuda
        at_once = plan_fit(n, d, own, threads=1 if on_gpu else torch.get_num_threads()).at_once

    def solved(site: int) -> _SiteFit:
        with _naming(f"site {site}"):
            return _fit_site(X[site], Y[site], rows, lams[site], options)

    each = side_by_side(solved, own, at_once or 1)
    quiet = not options.progress or rank > 0
    found = dict(tqdm(each, desc=f"fit {solver.name}", total=len(own), unit="layer", disable=quiet))
    if size > 1:
        found = {site: fitted for part in gather(found) for site, fitted in part.items()}
    completed = replace(
        metadata or AlignmentMetadata(),
        n=len(rows[0]),
        lam_selection={site: chosen for site, chosen in lams.items() if isinstance(chosen, str)},
    )
    return _pooled(dict(sorted(found.items())), completed, options)


@dataclass(frozen=True)
class _SiteFit:
    """The fitted map of a site, and its error on the held-out pairs where that is defined."""

    fitted: Fitted
    error: float | None


def _fit_site(X: Tensor, Y: Tensor, rows: tuple[Tensor, Tensor], lam: Lam, options: SolveOptions) -> _SiteFit:
    """Fit the states ``[n, d]`` of one site; ``rows`` are the indices of fitted and of held-out rows."""
    fitted_rows, held_out = rows
    device = options.solve_device
    fitted = options.solver(X[fitted_rows].to(device), Y[fitted_rows].to(device), lam)
    bias = None if fitted.bias is None else fitted.bias.cpu()
    fitted = replace(fitted, map=fitted.map.to(device="cpu"), bias=bias)
    if not len(held_out):
        return _SiteFit(fitted, None)
    error = relative_error(fitted.predict(X[held_out]), Y[held_out], Y[fitted_rows])
    if error is None:
        fitted = replace(fitted, notes=(*fitted.notes, "the held-out target states do not vary: no fit error"))
    return _SiteFit(fitted, error)


def _pooled(found: Mapping[int, _SiteFit], metadata: AlignmentMetadata, options: SolveOptions) -> Alignment:
    """The fits of all sites as one alignment."""
    fits = {site: one.fitted for site, one in found.items()}
    completed = replace(
        metadata,
        estimator=options.solver.name,
        lam={site: fitted.lam for site, fitted in fits.items()},
        solver={site: fitted.form_used for site, fitted in fits.items()},
        notes={site: list(fitted.notes) for site, fitted in fits.items() if fitted.notes},
        fit_error={site: one.error for site, one in found.items() if one.error is not None},
    )
    return Alignment(
        {site: fitted.map for site, fitted in fits.items()},
        {site: fitted.bias for site, fitted in fits.items() if fitted.bias is not None},
        options.form or options.solver.own_form or "interpolate",
        completed,
    )


def _on_gpu(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type != "cpu"


def _doubled(source: Sequence[str], target: Sequence[str]) -> tuple[list[str], list[str]]:
    """Every second pair after its target sentence, as in the published code."""
    behind = [f"{t}\n" if i % 2 else "" for i, t in enumerate(target)]
    return [b + s for b, s in zip(behind, source, strict=True)], [b + t for b, t in zip(behind, target, strict=True)]


def _joined(parts: Sequence[Alignment]) -> Alignment:
    """One alignment of several with the maps of different sites, fitted in the same way."""
    first = parts[0].metadata
    by_site = ("lam", "lam_selection", "solver", "notes", "fit_error")
    merged: dict[str, Any] = {
        name: {k: v for part in parts for k, v in getattr(part.metadata, name).items()} for name in by_site
    }
    return Alignment(
        {site: map for part in parts for site, map in part.maps.items()},
        {site: bias for part in parts for site, bias in part.bias.items()},
        parts[0].form,
        replace(first, **merged),
    )


def relative_error(predicted: Tensor, target: Tensor, fitted_target: Tensor) -> float | None:
    """``||predicted - target|| / ||target - mean(fitted_target)||``, Frobenius norms in fp64.

    1 is the error of a constant prediction, the mean of the target states that were fitted. None where the target
    states equal that mean up to fp32 rounding, as embeddings of a template's last token do.
    """
    # In units of the largest value, whose square fp64 can hold.
    unit = float(torch.linalg.vector_norm(target.double(), torch.inf)) or 1.0
    predicted, target, fitted_target = (part.double() / unit for part in (predicted, target, fitted_target))
    spread = float((target - fitted_target.mean(0)).norm())
    if spread <= torch.finfo(torch.float32).eps * float(target.norm()):
        return None
    return float((predicted - target).norm()) / spread


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Prefix the message of an error inside the block with the name of the input that it is about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError, StatesError, PromptError):
            raise
        raise type(error)(f"{what}: {error}") from error


def _both_sides(text: Any) -> tuple[Sequence[str], Sequence[str]]:
    if not (hasattr(text, "source") and hasattr(text, "target")):
        raise TypeError(
            f"target is missing and source is a {type(text).__name__}; "
            "expected two lists of sentences, or parallel text with attributes source and target"
        )
    return text.source, text.target


def _listed(name: str, sentences: Any) -> list[str]:
    """The sentences of a list, a tuple, an array, a column of a table or a generator."""
    if isinstance(sentences, str | bytes | Mapping) or not isinstance(sentences, Iterable):
        raise TypeError(f"{name}: sentences is a {type(sentences).__name__}; expected a list of them")
    return list(sentences)


def _states_by_site(name: str, states: Mapping[int, Any]) -> dict[int, Tensor]:
    return {whole(f"a site of {name}", site): matrix(f"{name}[{site!r}]", rows) for site, rows in states.items()}


def _check_lams(estimator: Estimator, lams: Iterable[Lam | None], n: int) -> None:
    chosen = {str(lam): estimator.checked_lam(lam) for lam in lams}
    if n < estimator.min_pairs:
        raise ValueError(f"{n} pairs are fitted; {estimator.name} needs at least {estimator.min_pairs}")
    if "loo" in chosen.values() and n < 2:
        raise ValueError(f"lam is 'loo' and {n} pair is fitted; choosing lam needs at least 2")


def _split(n: int, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """int64 indices of fitted and of held-out rows, both ascending; ``holdout`` is a share or a number of rows."""
    share, seed = number("holdout", holdout), whole("seed", seed)
    count = round(n * share) if 0 < share < 1 else int(share)
    if share < 0 or (share >= 1 and count != share) or count >= n or (share > 0 and count == 0):
        raise ValueError(
            f"holdout is {holdout} of {n} pairs; expected 0, a share below 1 or a whole number of pairs, "
            "which leaves at least one pair on each side"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    return order[count:].sort().values, order[:count].sort().values
