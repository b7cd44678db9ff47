"""The table of docs/lm_eval.md, from results/lm-eval.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.report.markdown import table as markdown

__all__ = ["lm_eval_blocks"]

RESULTS = Path(__file__).parents[1] / "results"

Row = dict[str, str]


def lm_eval_blocks(results: Path = RESULTS) -> dict[str, str]:
    """Every generated block by name."""
    path = results / "lm-eval.csv"
    if not path.exists():
        return {"lm-eval": "Not yet measured: `python -m benchmarks.lm_eval --data DIR`.\n"}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {"lm-eval": "\n".join(_of_model(rows, name) for name in dict.fromkeys(row["model"] for row in rows))}


def _of_model(rows: list[Row], model: str) -> str:
    """A line for every task and strength."""
    own = [row for row in rows if row["model"] == model]
    plain = {row["task"]: row for row in own if float(row["alpha"]) == 0}
    edited = [row for row in own if float(row["alpha"]) != 0]
    lines = [_line(plain[row["task"]], row) for row in edited]
    first = edited[0]
    about = (
        f"{model}, preset `{first['preset']}`, {first['pairs']} pairs of news, lm-eval {first['lm_eval']}, torch "
        f"{first['torch']}, {first['cpu']}."
    )
    head = ["task", "metric", "n", "alpha", "plain", "INCLINE", "difference, points"]
    return f"{about}\n\n{markdown(head, lines)}"


def _line(plain: Row, edited: Row) -> list[str]:
    what = [
        f"`incline_{edited['task']}`",
        edited["metric"].replace("_", " "),
        edited["n"],
        f"{float(edited['alpha']):g}",
    ]
    mean, low, high = (f"{100 * float(edited[name]):+.1f}".replace("-", "−") for name in ("difference", "low", "high"))
    return [*what, _score(plain), _score(edited), f"{mean} [{low}, {high}]"]


def _score(row: Row) -> str:
    return f"{100 * float(row['score']):.1f}% ± {100 * float(row['stderr']):.1f}"
