"""The paper's figures on a task that everyone can fetch: ``python -m benchmarks.paper.figures``.

The names of emoji and their kinds (see ``demo/emoji_names.py``), fitted in the scored prompt on the same rows for every
line, measured on other rows. Nothing is chosen: every line stands at fixed strengths, so no line is at an advantage.

    pairs      accuracy over the number of pairs (figure 3a)
    alpha      accuracy over alpha from -1 to 1, for ridge maps and for the paper's minimum norm, added (figure 4)
    estimator  every estimator; ``mean_difference`` is CAA (Rimsky et al., ACL 2024)
    rival      a projection in the manner of Lens (arXiv 2410.04407): of the state's part in the span of the languages'
               means, alpha is replaced by that of the target language's mean
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.common import Run, start
from demo.emoji_names import emoji_names
from incline_fast import AffineMap, Alignment
from incline_fast.evaluation import PLAIN, LabelScorer, LabelTask, Variant, few_shot_template
from incline_fast.evaluation.report import result_row
from incline_fast.evaluation.sites import last_third
from incline_fast.fitting.estimators import ESTIMATORS
from incline_fast.fitting.fit import fit_states
from incline_fast.states import HiddenStates, collect

__all__ = ["subspace"]

ALPHAS = (0.25, 0.5, 0.75, 1.0)
GRID = tuple(step / 10 for step in range(-10, 11))
COUNTS = (25, 50, 100, 200, 400)
LAM = 1.0


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


def lines(
    x: HiddenStates, y: HiddenStates, others: Sequence[HiddenStates]
) -> dict[tuple[str, str], tuple[Alignment, tuple[float, ...]]]:
    """(figure, line) -> maps and the strengths at which they stand."""

    def fitted(estimator: str, form: Any = None, pairs: int | None = None) -> Alignment:
        first = [{site: side[site][:pairs] for site in side} for side in (x, y)]
        lam = LAM if ESTIMATORS[estimator].uses_lam else None
        return fit_states(*first, estimator=estimator, lam=lam, form=form, progress=False)

    total = len(next(iter(x.values())))
    found: dict[tuple[str, str], tuple[Alignment, tuple[float, ...]]] = {}
    for count in sorted({min(count, total) for count in COUNTS}):
        found["pairs", f"{count}"] = fitted("affine_ridge", pairs=count), ALPHAS
    found["alpha", "affine_ridge"] = fitted("affine_ridge"), GRID
    found["alpha", "min_norm, added"] = fitted("min_norm", "add"), GRID
    for name in ESTIMATORS:
        found["estimator", name] = fitted(name), ALPHAS
    found["rival", "subspace"] = subspace(x, y, others), ALPHAS
    return found


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--languages", default="fr,tr")
    parser.add_argument("--target", default="en", help="the pivot")
    parser.add_argument("--shots", type=int, default=0, help="labelled examples of the target language in the prompt")
    parser.add_argument("--test", type=int, default=150, help="rows to report on")
    parser.add_argument("--pairs", type=int, default=200, help="rows to fit, at most")
    run = start(__doc__, parser)
    arguments = run.arguments
    names = arguments.languages.split(",")
    tasks = emoji_names(run.prepared.names, run.prepared.kinds, sorted({"en", arguments.target, *names}))
    order = torch.randperm(len(tasks["en"]), generator=torch.Generator().manual_seed(0)).tolist()
    template = tasks["en"].template
    if arguments.shots:
        template = few_shot_template(tasks[arguments.target].select(order[: arguments.shots]))
    order = order[arguments.shots :]
    tasks = {name: task.with_template(template) for name, task in tasks.items()}
    test = {name: task.select(order[: arguments.test]) for name, task in tasks.items()}
    fit = {name: task.select(order[arguments.test :][: arguments.pairs]) for name, task in tasks.items()}
    sites = last_third(run.num_layers)
    states = {
        name: collect(run.model, run.tokenizer, fit[name].sentences, template=template, layers=sites)
        for name in (arguments.target, *names)
    }
    about = {"task": "emoji names", "shots": arguments.shots, "target": arguments.target}
    rows: list[dict[str, Any]] = []
    correct: dict[str, list[Tensor]] = {}
    target_right = scored(run, test[arguments.target], sites, [PLAIN])[0]
    for name in names:
        others = [states[other] for other in names if other != name]
        stood = lines(states[name], states[arguments.target], others)
        variants = [PLAIN]
        keys: list[tuple[str, str, float]] = [("", "plain", 0.0)]
        for (figure, line), (maps, alphas) in stood.items():
            for alpha in alphas:
                variants.append(Variant(f"{figure} {line} {alpha}", maps, alpha, tuple(sites)))
                keys.append((figure, line, alpha))
        right = scored(run, test[name], sites, variants)
        for i, key in enumerate(keys):
            correct.setdefault("|".join(map(str, key)), []).append(right[i])
        rows += table(keys, {"|".join(map(str, key)): right[i] for i, key in enumerate(keys)}, target_right, test[name])
        for row in rows[-len(keys) :]:
            row["language"] = name
    pooled = {key: torch.cat(parts) for key, parts in correct.items()}
    repeated = target_right.repeat(len(names))
    whole = table(keys, pooled, repeated, test[names[0]], len(names))
    rows += [row | {"language": "all"} for row in whole]
    rows += [
        {"figure": "", "line": f"prompt in {arguments.target}", "alpha": 0.0, "language": arguments.target}
        | result_row(target_right, target_right, None, test[names[0]].ids)
    ]
    rows = [about | {"pairs": len(fit[names[0]]), "sites": f"{sites[0]}-{sites[-1]}"} | row for row in rows]
    run.write("figures", rows, ("shots", "target", "language", "figure", "line", "alpha"))
    for row in whole:
        print(row["figure"], row["line"], row["alpha"], row["accuracy"], row["difference"], row["low"], row["high"])


def scored(run: Run, task: LabelTask, sites: Sequence[int], variants: Sequence[Variant]) -> Tensor:
    """Bool ``[V, n]``: which answers are right."""
    return LabelScorer(run.model, run.tokenizer, task, sites=sites, content_free=False).score(variants).correct()


def table(
    keys: Sequence[tuple[str, str, float]],
    right: Mapping[str, Tensor],
    target: Tensor,
    task: LabelTask,
    repeats: int = 1,
) -> list[dict[str, Any]]:
    """One row per figure, line and alpha, each against the plain prompt."""
    plain = right["|".join(map(str, keys[0]))]
    return [
        {"figure": figure, "line": line, "alpha": alpha, "language": ""}
        | result_row(right[f"{figure}|{line}|{alpha}"], plain, target, task.ids * repeats)
        for figure, line, alpha in keys
    ]


if __name__ == "__main__":
    main()
