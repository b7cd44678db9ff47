"""Fit: from a model and parallel sentences to an alignment, by one of three presets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from incline_fast.alignment.alignment import Alignment
from incline_fast.alignment.metadata import AlignmentMetadata, Form
from incline_fast.arguments import matrix, number, plain, usable_device, whole, wholes
from incline_fast.distributed import gather, rank_and_size
from incline_fast.fitting.estimators import Estimator, Fitted, Lam, get_estimator
from incline_fast.fitting.memory_plan import plan_fit
from incline_fast.models.architectures import describe
from incline_fast.models.block_parts import SiteKind
from incline_fast.models.identity import identify
from incline_fast.states.hidden_states import BATCH_TOKENS, Collection, HiddenStates, Pooling, StatesError, prepare
from incline_fast.text.prompts import DEFAULT_TEMPLATE, PromptError

__all__ = ["PRESETS", "Preset", "fit", "fit_states"]


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
    """Whether every second pair stands behind its target sentence: ``target\\nsource`` and ``target\\ntarget``."""


PRESETS: dict[str, Preset] = {
    # States of a prompt, not of a bare sentence: a map edits the last token of prompts.
    "robust": Preset(DEFAULT_TEMPLATE, "last", "affine_ridge", "loo", "interpolate"),
    # Wang et al., ACL 2025, arXiv 2410.12462, section 3.
    "paper": Preset(None, "last", "min_norm", 0.0, "add"),
    # The authors' published code (github.com/weixuan-wang123/INCLINE, intervention_llama.py), to be applied with
    # mode="clean"; its sigma is -alpha.
    "official": Preset(None, "mean_all", "min_norm", 0.0, "add", site="ffn", doubled=True),
}


def fit(
    model: nn.Module,
    tokenizer: Any,
    source: Any,
    target: Sequence[str] | None = None,
    *,
    preset: str = "robust",
    template: str | None = None,
    pooling: Pooling | None = None,
    estimator: str | Estimator | None = None,
    lam: Lam | Mapping[int, Lam] | None = None,
    form: Form | None = None,
    site: SiteKind | None = None,
    layers: Sequence[int] | None = None,
    holdout: float = 0,
    seed: int = 0,
    source_language: str | None = None,
    target_language: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
    resume: str | PathLike[str] | None = None,
    memory_budget: int | str | None = None,
    solve_device: torch.device | str | None = None,
    distributed: bool = False,
) -> Alignment:
    """Learn one map per layer that takes the states of source sentences to those of their translations.

        preset    template          pooling   site    estimator                form         apply with
        robust    DEFAULT_TEMPLATE  last      hidden  affine_ridge, lam "loo"  interpolate  mode="online"
        paper     bare sentence     last      hidden  min_norm                 add          mode="online"
        official  bare sentence     mean_all  ffn     min_norm                 add          mode="clean"

    ``official`` is the authors' published code: the second, fourth, ... pair stand behind their target sentence
    (``target\\nsource``, ``target\\ntarget``), and its sigma is ``-alpha``.
    ``DEFAULT_TEMPLATE`` is ``"{sentence}\\nThe topic of this text is"``; better is the prompt that you will use.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.
        source: n sentences, or parallel text with attributes ``source`` and ``target`` (then leave out ``target``).
        target: their n translations.
        preset: a row of the table; each argument below that is not None overrides its part.
        template: the prompt that the maps will meet, with ``{sentence}`` in it; ``"{sentence}"`` for bare sentences.
        pooling: ``"last"``, ``"mean"`` or ``"mean_all"``; see :func:`incline_fast.states.collect`.
        estimator: a name of :data:`~incline_fast.estimators.ESTIMATORS` or an Estimator. One without a ridge parameter,
            or another than the preset's, comes with its own default lam.
        lam: relative ridge parameter, one for all sites or ``{site: lam}``; ``"loo"`` chooses one per site from a grid
            of 20 by leave-one-out, and what it chose is in ``metadata.lam``.
        form: ``"add"`` or ``"interpolate"``.
        site: what is mapped and edited: ``"hidden"``, ``"attention"`` or ``"ffn"``; see ``collect``.
        layers: sites to fit; by default 1..L, the outputs of all blocks.
        holdout: pairs that are not fitted but measured: a share below 1, or a whole number of pairs.
        seed: chooses the held-out pairs.
        source_language: recorded; by default that of the parallel text.
        target_language: recorded; by default that of the parallel text.
        batch_tokens: see :func:`incline_fast.states.collect`.
        progress: show progress bars.
        resume: folder that keeps the states, so that an interrupted run continues; see ``collect``.
        memory_budget: bytes that the fit may take beside the model, or text such as ``"16GiB"``: layers are collected
            and fitted in groups, each with a run of its own over the sentences (:func:`incline_fast.plan.plan_fit`).
        solve_device: where the maps are computed, by default on the CPU, where the states are.
        distributed: share the batches of sentences, then the layers' solves, among the processes of the default process
            group. All call with the same arguments and get the same alignment.

    Returns:
        The alignment. With a hold-out its maps are those of the fitted pairs alone, and ``metadata.fit_error`` has, per
        site where the target states vary, ``||prediction - h_t|| / ||h_t - m||`` (Frobenius norms over the held-out
        pairs, m the mean of the fitted target states): 0 is a perfect map, 1 no better than predicting the mean.

    Raises:
        ValueError: an unknown preset, estimator or form, unequal numbers of sentences, a memory budget that is too
            small, another bad argument.
        PromptError: a sentence cannot be used.
        StatesError: a state is not finite, or the folder ``resume`` cannot be used.
        UnsupportedModelError: the architecture is not known.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; allowed: {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    solver = get_estimator(chosen.estimator if estimator is None else estimator)
    if lam is None and solver.name == chosen.estimator:
        lam = chosen.lam
    if target is None:
        source_language = source_language or getattr(source, "source_language", None)
        target_language = target_language or getattr(source, "target_language", None)
        source, target = _both_sides(source)
    sides = {"source": _listed("source", source), "target": _listed("target", target)}
    source, target = sides.values()
    if len(source) != len(target):
        raise ValueError(
            f"source has {len(source)} sentences, target {len(target)}; sentence i must belong to sentence i"
        )

    if chosen.doubled:
        source, target = _doubled(source, target)
        sides = {"source": source, "target": target}
    kind = chosen.site if site is None else site
    describe(model, kind)  # what cannot be edited must not come out after the fit
    identity = identify(model)
    metadata = AlignmentMetadata(
        model_id=identity.model_id,
        config_hash=identity.config_hash,
        num_layers=identity.num_layers,
        hidden_size=identity.hidden_size,
        source_language=source_language,
        target_language=target_language,
        template=chosen.template if template is None else template,
        pooling=chosen.pooling if pooling is None else pooling,
        site=kind,
        preset=preset,
    )
    # Whatever can be refused is refused here, before the long runs over both sides.
    _check_form(solver, form)
    fitted_rows, _ = _split(len(source), holdout, seed)
    sites = list(range(1, identity.num_layers + 1)) if layers is None else wholes("layers", layers)
    lams = _lam_by_site(lam, sites)
    _check_lams(solver, lams.values(), len(fitted_rows))
    usable_device("solve_device", solve_device)
    plan = plan_fit(len(source), identity.hidden_size, sites, memory_budget=memory_budget)

    def prepared(side: str, group: Sequence[int]) -> Collection:
        folder = None if resume is None else Path(resume) / side
        if folder is not None and len(plan.groups) > 1:
            folder = folder / f"sites-{group[0]}-{group[-1]}"
        with _naming(side):
            return prepare(
                model,
                tokenizer,
                sides[side],
                template=metadata.template,
                pooling=chosen.pooling if pooling is None else pooling,
                site=kind,
                layers=group,
                batch_tokens=batch_tokens,
                resume=folder,
            )

    def states(collection: Collection, side: str) -> HiddenStates:
        with _naming(side):
            return collection.run(progress=progress, distributed=distributed)

    runs = [(group, prepared("source", group), prepared("target", group)) for group in plan.groups]
    parts = [
        fit_states(
            states(of_source, "source"),
            states(of_target, "target"),
            estimator=solver,
            lam={site: lams[site] for site in group},
            form=form or solver.own_form or chosen.form,
            holdout=holdout,
            seed=seed,
            metadata=metadata,
            progress=progress,
            device=solve_device,
            distributed=distributed,
        )
        for group, of_source, of_target in runs
    ]
    return _joined(parts)


def fit_states(
    X: Mapping[int, Tensor],
    Y: Mapping[int, Tensor],
    *,
    estimator: str | Estimator = "affine_ridge",
    lam: Lam | Mapping[int, Lam | None] | None = None,
    form: Form | None = None,
    holdout: float = 0,
    seed: int = 0,
    metadata: AlignmentMetadata | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
    distributed: bool = False,
) -> Alignment:
    """Fit from states that :func:`incline_fast.states.collect` has returned: many fits from one run over the model.

    Args:
        X: ``{site: [n, d]}`` source states.
        Y: ``{site: [n, d]}`` target states of the same sites; row i belongs to row i of X.
        estimator: name or Estimator.
        lam: relative ridge parameter or ``"loo"``, one for all sites or ``{site: lam}``; None for the estimator's
            default.
        form: by default ``"add"`` for a mean difference, else ``"interpolate"``.
        holdout: see :func:`fit`.
        seed: chooses the held-out pairs.
        metadata: recorded, completed with what the fit knows: estimator, lam, n, solver, notes, fit_error.
        progress: show a progress bar.
        device: where the maps are computed, by default where the states are; the alignment is on the CPU.
        distributed: share the sites among the processes of the default process group, each of which has all states.

    Returns:
        The alignment; see :func:`fit`.

    Raises:
        ValueError: the sites or numbers of rows differ, or an estimator refuses its input; the message names the site.
    """
    solver = get_estimator(estimator)
    _check_form(solver, form)
    X, Y = _states_by_site("X", X), _states_by_site("Y", Y)
    device = usable_device("device", device)
    if not X or sorted(X) != sorted(Y):
        raise ValueError(f"X has the sites {sorted(X)}, Y {sorted(Y)}; expected the same, at least one")
    lams = {site: solver.default_lam if one is None else one for site, one in _lam_by_site(lam, X).items()}
    counts = {len(states) for states in (*X.values(), *Y.values())}
    if len(counts) != 1:
        raise ValueError(f"the states have {sorted(counts)} rows; every site of X and Y must have as many")
    fitted_rows, held_out = _split(counts.pop(), holdout, seed)
    _check_lams(solver, lams.values(), len(fitted_rows))

    rank, size = rank_and_size(distributed)
    own = sorted(X)[rank::size]
    fits: dict[int, Fitted] = {}
    errors: dict[int, float] = {}
    for site in tqdm(own, desc=f"fit {solver.name}", unit="layer", disable=not progress or rank > 0):
        with _naming(f"site {site}"):
            fitted = solver(X[site][fitted_rows].to(device), Y[site][fitted_rows].to(device), lams[site])
        bias = None if fitted.bias is None else fitted.bias.cpu()
        fitted = replace(fitted, map=fitted.map.to(device="cpu"), bias=bias)
        if len(held_out):
            measured = relative_error(fitted.predict(X[site][held_out]), Y[site][held_out], Y[site][fitted_rows])
            if measured is None:
                fitted = replace(fitted, notes=(*fitted.notes, "the held-out target states do not vary: no fit error"))
            else:
                errors[site] = measured
        fits[site] = fitted
    if size > 1:
        for other_fits, other_errors in gather((fits, errors)):
            fits |= other_fits
            errors |= other_errors
        fits, errors = dict(sorted(fits.items())), dict(sorted(errors.items()))
    completed = replace(
        metadata or AlignmentMetadata(),
        estimator=solver.name,
        n=len(fitted_rows),
        lam={site: fitted.lam for site, fitted in fits.items()},
        lam_selection={site: chosen for site, chosen in lams.items() if isinstance(chosen, str)},
        solver={site: fitted.form_used for site, fitted in fits.items()},
        notes={site: list(fitted.notes) for site, fitted in fits.items() if fitted.notes},
        fit_error=errors,
    )
    return Alignment(
        {site: fitted.map for site, fitted in fits.items()},
        {site: fitted.bias for site, fitted in fits.items() if fitted.bias is not None},
        form or solver.own_form or "interpolate",
        completed,
    )


def _doubled(source: Sequence[str], target: Sequence[str]) -> tuple[list[str], list[str]]:
    """Every second pair behind its target sentence, as the published code has it."""
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
    states equal that mean up to fp32 rounding, as embeddings of a template's last token do: nothing is to be predicted.
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
    """Put before the message of a refusal which of several like inputs it is about."""
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


def _lam_by_site(lam: Lam | Mapping[int, Lam | None] | None, sites: Iterable[int]) -> dict[int, Lam | None]:
    if isinstance(lam, Mapping):
        lams: dict[int, Lam | None] = {whole("a site of lam", site): plain(one) for site, one in lam.items()}
    else:
        lams = dict.fromkeys(sites, plain(lam))
    if sorted(lams) != sorted(set(sites)):
        raise ValueError(f"lam has the sites {sorted(lams)}, the fit {sorted(set(sites))}; expected the same")
    return lams


def _check_lams(estimator: Estimator, lams: Iterable[Lam | None], n: int) -> None:
    chosen = {str(lam): estimator.checked_lam(lam) for lam in lams}
    if n < estimator.min_pairs:
        raise ValueError(f"{n} pairs are fitted; {estimator.name} needs at least {estimator.min_pairs}")
    if "loo" in chosen.values() and n < 2:
        raise ValueError(f"lam is 'loo' and {n} pair is fitted; choosing lam needs at least 2")


def _check_form(estimator: Estimator, form: str | None) -> None:
    if form is not None and form not in get_args(Form):
        raise ValueError(f"form is {form!r}; allowed: {', '.join(get_args(Form))}")
    if form is not None and estimator.own_form not in (None, form):
        raise ValueError(f"form is {form!r}; {estimator.name} makes sense as {estimator.own_form!r} only")


def _split(n: int, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of fitted and of held-out rows, both ascending."""
    share, seed = number("holdout", holdout), whole("seed", seed)
    count = round(n * share) if 0 < share < 1 else int(share)
    if share < 0 or (share >= 1 and count != share) or count >= n or (share > 0 and count == 0):
        raise ValueError(
            f"holdout is {holdout} of {n} pairs; expected 0, a share below 1 or a whole number of pairs, "
            "which leaves at least one pair on each side"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    return order[count:].sort().values, order[:count].sort().values
