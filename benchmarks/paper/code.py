"""Two programming languages as source and target: ``python -m benchmarks.paper.code``.

60 short functions in JavaScript and in Python (``code_pairs.jsonl``, written for this project, under its licence,
BSD-3-Clause), each with arguments and the result that both return for them. Maps take the states of the JavaScript
prompts to those of the Python prompts. Everything is measured in five folds: a pair is never among those that its own
maps were fitted on, and the 60 results are pooled; that folds share pairs is not in the intervals.

    retrieval  the JavaScript function finds its Python twin among those of its fold, by the cosine of the states
    labels     which of four kinds of value the function returns, as the next word; and KL(Python prompt || edited
               JavaScript prompt) over the four words
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.common import Run, start
from benchmarks.paper.retrieval import METHODS, found_by_site, table
from incline_fast import Alignment
from incline_fast.evaluation import PLAIN, LabelScorer, LabelTask, Variant, paired_bootstrap
from incline_fast.evaluation.calibration import batch_calibrated
from incline_fast.evaluation.controls import fit_controls
from incline_fast.evaluation.metrics import label_kl
from incline_fast.evaluation.report import result_row
from incline_fast.evaluation.sites import last_third
from incline_fast.fitting.fit import fit_states
from incline_fast.states import HiddenStates, collect

__all__ = ["KINDS", "PAIRS", "folds", "label_rows", "read_tasks"]

PAIRS = Path(__file__).with_name("code_pairs.jsonl")
TEMPLATE = "{sentence}\n\nThis function returns a"
KINDS = ("string", "list", "number", "boolean")
ALPHAS = (0.25, 0.5, 0.75, 1.0)
EVERY = 3
"""Retrieval is measured at every so many sites, the last among them."""
LAM = 1.0
FOLDS = 5
SEED = 0

Line = tuple[str, float]
"""Name and alpha."""


def read_tasks(path: Path = PAIRS) -> tuple[LabelTask, LabelTask]:
    """The functions in JavaScript and in Python, row by row the same."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers, names = [KINDS.index(row["kind"]) for row in rows], [row["name"] for row in rows]
    javascript, python = (
        LabelTask("code", language, [row[language] for row in rows], TEMPLATE, KINDS, answers, names)
        for language in ("javascript", "python")
    )
    return javascript, python


def folds(n: int) -> list[tuple[list[int], list[int]]]:
    """Rows to fit and rows to measure, of each fold; every row is measured once."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED)).tolist()
    measured = [order[fold::FOLDS] for fold in range(FOLDS)]
    return [([row for row in order if row not in part], part) for part in measured]


def rows_of(states: HiddenStates, rows: Sequence[int], sites: Sequence[int]) -> HiddenStates:
    """Some rows at some sites."""
    return {site: states[site][list(rows)] for site in sites}


def retrieval(states: Sequence[HiddenStates], sites: Sequence[int]) -> dict[str, Tensor]:
    """Method -> bool ``[S, n]``, the folds one after another."""
    parts = []
    for fit, test in folds(len(states[0][sites[0]])):
        sides = [[rows_of(side, rows, sites) for side in states] for rows in (fit, test)]
        parts.append(found_by_site(*sides))
    return {method: torch.cat([part[method] for part in parts], 1) for method in METHODS}


def lines_of(x: HiddenStates, y: HiddenStates) -> dict[str, Alignment]:
    """The maps and every control, from the same pairs."""
    maps = fit_states(x, y, estimator="affine_ridge", lam=LAM, progress=False)
    return {"INCLINE": maps} | fit_controls(x, y, estimator="affine_ridge", lam=LAM, seed=SEED)


def label_logits(run: Run, task: LabelTask, states: Sequence[HiddenStates], sites: Sequence[int]) -> dict[Line, Tensor]:
    """Line -> logits ``[n, K]`` of the JavaScript prompts, in the order of the task."""
    logits: dict[Line, Tensor] = {}
    for fit, test in folds(len(task)):
        lines = lines_of(*(rows_of(side, fit, sites) for side in states))
        variants = {("plain", 0.0): PLAIN} | {
            (name, alpha): Variant(f"{name} {alpha}", maps, alpha, tuple(sites))
            for name, maps in lines.items()
            for alpha in ALPHAS
        }
        part = task.select(test)
        scorer = LabelScorer(run.model, run.tokenizer, part, sites=sites, content_free=False, progress=False)
        for line, scored in zip(variants, scorer.score(list(variants.values())).logits, strict=True):
            logits.setdefault(line, torch.zeros(len(task), len(KINDS)))[test] = scored
    return logits


def label_rows(logits: Mapping[Line, Tensor], target: Tensor, task: LabelTask) -> list[dict[str, Any]]:
    """One row per line, strength and calibration, each against the plain prompt.

    Args:
        logits: line -> ``[n, K]`` of the source prompts, ``("plain", 0.0)`` among them.
        target: ``[n, K]`` of the target prompts.
        task: with the answers.
    """
    answers = torch.tensor(task.answers)
    rows = []
    for calibration, scores in (("raw", lambda own: own), ("batch", batch_calibrated)):
        right = {line: scores(own).argmax(-1) == answers for line, own in logits.items()}
        goal = scores(target).argmax(-1) == answers
        for (name, alpha), own in right.items():
            about = {"line": name, "alpha": alpha, "calibration": calibration}
            rows.append(about | result_row(own, right["plain", 0.0], goal, task.ids, SEED))
            if calibration == "raw":
                rows[-1] |= divergence(logits[name, alpha], logits["plain", 0.0], target)
        about = {"line": "prompt in Python", "alpha": 0.0, "calibration": calibration}
        rows.append(about | result_row(goal, right["plain", 0.0], goal, task.ids, SEED))
    return [{**dict.fromkeys(("kl", "kl_change", "kl_low", "kl_high"), ""), **row} for row in rows]


def divergence(own: Tensor, plain: Tensor, target: Tensor) -> dict[str, float]:
    """Mean KL to the target prompts over the labels, and its change against the plain prompts with interval."""
    a, b = (-label_kl(logits, target, None) for logits in (own, plain))
    change = paired_bootstrap(a, b, seed=SEED)
    values = {"kl": float(a.mean()), "kl_change": change.mean, "kl_low": change.low, "kl_high": change.high}
    return {name: round(value, 4) for name, value in values.items()}


def main() -> None:
    """Run as a command."""
    run = start(__doc__)
    tasks = read_tasks()
    late = last_third(run.num_layers)
    measured = list(range(run.num_layers, 0, -EVERY))[::-1]
    states = [
        collect(run.model, run.tokenizer, task.sentences, template=TEMPLATE, layers=sorted({*late, *measured}))
        for task in tasks
    ]
    after = {"pairs": len(folds(len(tasks[0]))[0][0]), "seed": SEED, "data_hash": tasks[0].data_hash}
    right = retrieval(states, measured)
    run.write("code-retrieval", table(right, measured, {"language": "javascript"}, after), ("site", "method"))
    logits = label_logits(run, tasks[0], states, late)
    scorer = LabelScorer(run.model, run.tokenizer, tasks[1], sites=late[-1:], content_free=False, progress=False)
    rows = label_rows(logits, scorer.score([PLAIN]).logits[0], tasks[0])
    where = {"sites": f"{late[0]}-{late[-1]}"}
    run.write("code-labels", [row | where | after for row in rows], ("calibration", "line", "alpha"))
    for row in rows:
        print(*(row[name] for name in ("calibration", "line", "alpha", "accuracy", "difference", "low", "high", "kl")))


if __name__ == "__main__":
    main()
