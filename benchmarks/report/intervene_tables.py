"""Tables of docs/benchmarks/intervene.md, from results/intervene-*.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.report.markdown import table as markdown

__all__ = ["intervene_blocks"]

RESULTS = Path(__file__).parents[1] / "results"
NAMES = {
    "hook": "hook",
    "ours": "ours",
    "ours+": "ours, entering and leaving too",
    "mixed": "ours, two alignments",
    "twice": "two passes",
    "pyvene": "pyvene",
    "nnsight": "nnsight",
    "steering-vectors": "steering-vectors (a vector)",
}

Rows = list[dict[str, str]]


def intervene_blocks() -> dict[str, str]:
    """Every generated block by name."""
    blocks = {}
    for model in ("gemma", "llama", "hollow-gemma"):
        path = RESULTS / f"intervene-{model}-2t.csv"
        options = "--hollow" if model.startswith("hollow") else f"--model {model} --rivals"
        command = f"python -m benchmarks.intervene {options} -o benchmarks/results/{path.name}"
        blocks[f"intervene-{model}"] = _page(path) if path.exists() else f"Not yet measured: `{command}`.\n"
    return blocks


def _page(path: Path) -> str:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    entering = ", ".join(row["enter_ms"] for row in rows if row["enter_ms"])
    where = (
        f"{first['layers']} maps, d = {first['hidden_size']}, {first['dtype']}, {first['threads']} threads, "
        f"{first['device']}, torch {first['torch']}, medians of {first['rounds']} paired rounds. "
        f"Entering and leaving alone: {entering} ms."
    )
    prompt = _table(rows, "extra_prompt_ms", "extra ms a prompt")
    if not any(row["extra_token_ms"] for row in rows):
        return f"{where}\n\n{prompt}"
    token = _table(rows, "extra_token_ms", "extra ms a generated token")
    return f"{where}\n\n{prompt}\n{token}"


def _table(rows: Rows, field: str, title: str) -> str:
    sizes = list(dict.fromkeys((row["batch"], row["prompt_tokens"], row["padding"]) for row in rows))
    found = {(row["way"], row["batch"], row["prompt_tokens"], row["padding"]): row for row in rows}
    shown = [way for way in NAMES if any(row["way"] == way for row in rows)]
    lines = [
        [NAMES[way], *(found[way, *size][field] if (way, *size) in found else "" for size in sizes)] for way in shown
    ]
    if field == "extra_prompt_ms":
        lines.insert(0, ["the plain prompt itself", *(found["plain", *size]["prompt_ms"] for size in sizes)])
    heads = [f"{batch} x {tokens}{', right' if side == 'right' else ''}" for batch, tokens, side in sizes]
    return markdown([title, *heads], lines)
