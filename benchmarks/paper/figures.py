"""The paper's figures on a task that everyone can fetch: ``python -m benchmarks.paper.figures``.

The names of emoji and their kinds (see ``demo/emoji_names.py``), fitted in the scored prompt on the same rows for every
line, measured on other rows. Nothing is chosen: every line of ``figure_lines.py`` stands at fixed strengths, so no line
is at an advantage. Small models give many rows the same label, and raw scores stand at chance then: the same logits are
also calibrated over the rows (``batch``).

Edits of the residual stream are scored by passes that begin behind the block; edits of the FFN and of attention heads
by passes of the last token through the whole model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.common import Run, start
from benchmarks.paper.figure_lines import Lines, head_lines, map_lines, preset_lines, span
from benchmarks.paper.last_tokens import LastTokens
from demo.emoji_names import emoji_names
from incline_fast.evaluation import PLAIN, LabelScorer, LabelTask, Variant, few_shot_template
from incline_fast.evaluation.calibration import batch_calibrated
from incline_fast.evaluation.report import result_row
from incline_fast.evaluation.sites import last_third
from incline_fast.states import collect

__all__ = ["CALIBRATIONS", "Key", "Parts", "all_rows", "label_logits", "right_answers", "table"]

SEED = 0
CALIBRATIONS = ("raw", "batch")

Key = tuple[str, str, float]
"""Figure, line and alpha."""

PLAIN_KEY: Key = ("", "plain", 0.0)


@dataclass(frozen=True)
class Parts:
    """Rows to fit and rows to report on, by language; the same emoji in each."""

    fit: dict[str, LabelTask]
    test: dict[str, LabelTask]


def read_parts(run: Run) -> Parts:
    """The task's rows, in a prompt that may begin with labelled examples of the target language."""
    arguments = run.arguments
    languages = sorted({"en", arguments.target, *arguments.languages.split(",")})
    tasks = emoji_names(run.prepared.names, run.prepared.kinds, languages)
    order = torch.randperm(len(tasks["en"]), generator=torch.Generator().manual_seed(SEED)).tolist()
    template = tasks["en"].template
    if arguments.shots:
        template = few_shot_template(tasks[arguments.target].select(order[: arguments.shots]))
    order = order[arguments.shots :]
    tasks = {name: task.with_template(template) for name, task in tasks.items()}
    return Parts(
        fit={name: task.select(order[arguments.test :][: arguments.pairs]) for name, task in tasks.items()},
        test={name: task.select(order[: arguments.test]) for name, task in tasks.items()},
    )


def all_lines(run: Run, parts: Parts, names: Sequence[str], sites: Sequence[int]) -> dict[str, Lines]:
    """The lines of every language."""
    model, tokenizer, target = run.model, run.tokenizer, run.arguments.target
    states = {
        name: collect(model, tokenizer, parts.fit[name].sentences, template=parts.fit[name].template, layers=sites)
        for name in (target, *names)
    }
    found = {}
    for name in names:
        others = [states[other] for other in names if other != name]
        sides = parts.fit[name], parts.fit[target]
        found[name] = (
            map_lines(states[name], states[target], others)
            | preset_lines(model, tokenizer, *sides, sites)
            | head_lines(model, tokenizer, *sides)
        )
    return found


def label_logits(model: Any, tokenizer: Any, task: LabelTask, lines: Lines) -> dict[Key, Tensor]:
    """fp32 ``[n, K]`` of the plain prompt and of every line at every strength: logits of the label words."""
    last = model.config.get_text_config().num_hidden_layers
    variants = {PLAIN_KEY: PLAIN} | {
        (*key, alpha): Variant(f"{key} {alpha}", line.states, alpha, line.sites)
        for key, line in lines.items()
        if line.states is not None
        for alpha in line.alphas
    }
    first = min((variant.sites[0] for variant in variants.values() if variant.sites), default=last)
    scorer = LabelScorer(model, tokenizer, task, sites=range(first, last + 1), content_free=False, progress=False)
    found = dict(zip(variants, scorer.score(list(variants.values())).logits, strict=True))
    others = {key: line for key, line in lines.items() if line.states is None}
    if others:
        prompts = LastTokens(model, tokenizer, task)
        for key, line in others.items():
            for alpha in line.alphas:
                with line.applied(model, alpha) as edit:
                    found[(*key, alpha)] = prompts.logits(scorer.tokens, edit)
    return found


def right_answers(logits: Mapping[Key, Tensor], task: LabelTask, calibration: str) -> dict[Key, Tensor]:
    """Bool ``[n]`` of every key: which answers are right, by raw scores or calibrated over the rows (``"batch"``)."""
    answers = torch.tensor(task.answers)
    scores = {key: batch_calibrated(own) if calibration == "batch" else own for key, own in logits.items()}
    return {key: own.argmax(-1) == answers for key, own in scores.items()}


def table(
    right: Mapping[Key, Tensor], target: Tensor, ids: Sequence[str], where: Mapping[Any, str]
) -> list[dict[str, Any]]:
    """One row per figure, line and alpha, each against the plain prompt.

    Args:
        right: key -> bool ``[n]``.
        target: the same of the target language's prompt.
        ids: n identifiers; rows with the same one are drawn together.
        where: (figure, line) -> sites.
    """
    return [
        {"figure": key[0], "line": key[1], "alpha": key[2], "sites": where.get(key[:2], "")}
        | result_row(own, right[PLAIN_KEY], target, ids, SEED)
        for key, own in right.items()
    ]


def all_rows(
    logits: Mapping[str, Mapping[Key, Tensor]], pivot: Mapping[Key, Tensor], parts: Parts, where: Mapping[Any, str]
) -> list[dict[str, Any]]:
    """The tables of every language, of all together and of the target's own prompt, by both scores.

    Args:
        logits: language -> :func:`label_logits`.
        pivot: the same of the target language, plain.
        parts: the rows.
        where: (figure, line) -> sites.
    """
    names, rows = list(logits), []
    task = parts.test[names[0]]
    for calibration in CALIBRATIONS:
        target = right_answers(pivot, task, calibration)
        right = {name: right_answers(logits[name], task, calibration) for name in names}
        pooled = {key: torch.cat([right[name][key] for name in names]) for key in right[names[0]]}
        tables = {name: table(right[name], target[PLAIN_KEY], task.ids, where) for name in names}
        tables["all"] = table(pooled, target[PLAIN_KEY].repeat(len(names)), task.ids * len(names), where)
        tables["target"] = [row | {"line": "target prompt"} for row in table(target, target[PLAIN_KEY], task.ids, {})]
        rows += [{"language": name, "calibration": calibration} | row for name, own in tables.items() for row in own]
    return rows


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
    names, target = arguments.languages.split(","), arguments.target
    parts, sites = read_parts(run), last_third(run.num_layers)
    lines = all_lines(run, parts, names, sites)
    logits = {name: label_logits(run.model, run.tokenizer, parts.test[name], lines[name]) for name in names}
    pivot = label_logits(run.model, run.tokenizer, parts.test[target], {})
    where = {key: line.where for key, line in lines[names[0]].items()} | {PLAIN_KEY[:2]: span(sites)}
    rows = all_rows(logits, pivot, parts, where)
    about = {"task": "emoji names", "shots": arguments.shots, "target": target}
    after = {"pairs": len(parts.fit[target]), "seed": SEED}
    key = ("shots", "target", "language", "calibration", "figure", "line", "alpha")
    run.write("figures", [about | row | after for row in rows], key)
    shown = ("calibration", "figure", "line", "alpha", "accuracy", "difference", "low", "high")
    for row in rows:
        if row["language"] == "all":
            print(*(row[name] for name in shown))


if __name__ == "__main__":
    main()
