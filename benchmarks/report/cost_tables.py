"""The tables of docs/benchmarks/cost.md, from results/cost-*.csv and the times of results/intervene-gemma-2t.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.report.markdown import table as markdown

__all__ = ["cost_blocks"]

RESULTS = Path(__file__).parents[1] / "results"
BAR = 3.0
"""What is asked of ``collect``: so many times as fast as one sentence a pass."""
WORKS = {
    "min_norm": "minimum norm, the published recipe",
    "loo": "ridge, 20 lambdas by leave-one-out, our default",
}
WAYS = {
    "plain": "the plain model",
    "hook": "hook",
    "ours": "ours",
    "ours+": "ours, entering and leaving too",
    "twice": "two passes, published",
    "pyvene": "pyvene",
    "nnsight": "nnsight",
    "steering-vectors": "steering-vectors (a vector)",
}
PROMPTS = ("20", "60")
CASES = {"names": "names of emoji", "news": "news", "few-shot": "names behind ten examples"}

Row = dict[str, str]


def cost_blocks(results: Path = RESULTS) -> dict[str, str]:
    """Every generated block by name."""
    return {"cost-learn": _learn(results), "cost-apply": _apply(results), "cost-states": _states(results)}


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _machine(row: Row) -> str:
    return f"{row['device']}, {row['threads']} threads, torch {row['torch']}"


def _learn(results: Path) -> str:
    rows = _read(results / "cost-learn.csv")
    if not rows:
        return "Not yet measured: `python -m benchmarks.cost learn`.\n"
    peaks = {(row["work"], row["provider"]): row["peak_mib"] for row in _read(results / "cost-learn-memory.csv")}
    parts, lost = [], []
    for work, words in WORKS.items():
        own = [row for row in rows if row["work"] == work]
        if not own:
            continue
        first, ours = own[0], peaks.get((work, own[0]["provider"]))
        lines = []
        for row in own:
            peak = peaks.get((work, row["provider"]), "")
            name = {"incline_fast": "ours"}.get(row["provider"], row["provider"])
            ratio = float(row["ratio_to_first"])
            lines.append([name, f"{float(row['ms_p50']) / 1e3:.2f}", f"{ratio:.2f}x", peak, row["held_out_error"]])
            lost += [f"{words.partition(',')[0]}, {name}, time"] if ratio < 1 else []
            lost += (
                [f"{words.partition(',')[0]}, {name}, memory"] if peak and ours and float(peak) < float(ours) else []
            )
        about = (
            f"{first['sites']} sites, n = {first['n']}, d = {first['d']}, {first['states']} states; {_machine(first)}; "
            f"medians of {first['rounds']} paired rounds, load average {first['load']}."
        )
        head = [words, "seconds", "time / ours", "peak MiB", "error"]
        parts.append(f"{about}\n\n{markdown(head, lines)}")
    return "\n".join([*parts, f"Less than ours: {'; '.join(lost) if lost else 'nothing'}.\n"])


def _apply(results: Path) -> str:
    times = _read(results / "intervene-gemma-2t.csv")
    peaks = {row["way"]: row for row in _read(results / "cost-apply-memory.csv")}
    of = {(row["way"], row["prompt_tokens"]): row for row in times if row["batch"] == "1"}
    lines = []
    for way, name in WAYS.items():
        own = [of.get((way, tokens)) for tokens in PROMPTS]
        cells = [_extra(row, field) for field in ("prompt_ms", "extra_prompt_ms", "extra_token_ms") for row in own]
        lines.append([name, *cells, peaks[way]["peak_mib"] if way in peaks else ""])
    head = [
        "way",
        *(f"{what}, {tokens}" for what in ("ms a prompt", "extra ms", "extra ms a token") for tokens in PROMPTS),
    ]
    first = times[0]
    about = (
        f"{first['layers']} dense maps, d = {first['hidden_size']}, {first['dtype']}, batch 1, prompts of 20 and 60 "
        f"tokens; {_machine(first)}; medians of {first['rounds']} paired rounds."
    )
    memory = next(iter(peaks.values()), None)
    if memory is not None:
        batch, tokens = memory["prompt"].split("x")
        about += (
            f" Memory: batch {batch}, {tokens} tokens and {memory['new_tokens']} generated, median of "
            f"{memory['processes']} fresh processes."
        )
    return f"{about}\n\n{markdown([*head, 'peak MiB'], lines)}"


def _extra(row: Row | None, field: str) -> str:
    """A cell of a way that was measured; nothing where the plain model is compared with itself."""
    return "" if row is None or (row["way"] == "plain" and field != "prompt_ms") else row[field]


def _states(results: Path) -> str:
    rows = _read(results / "cost-states.csv")
    if not rows:
        return "Not yet measured: `python -m benchmarks.states --data DIR`.\n"
    found = {(row["model"], row["case"], row["way"]): row for row in rows}
    lines, short = [], []
    for model, case in dict.fromkeys((row["model"], row["case"]) for row in rows):
        ours, published, fair = (found[model, case, way] for way in ("ours", "published", "fair"))
        each = [f"{1e3 * float(row['seconds']) / int(row['sentences']):.0f}" for row in (ours, published, fair)]
        ratios = [f"{float(row['ratio']):.2f}x" for row in (published, fair)]
        lines.append([model.partition(" (")[0], CASES[case], ours["mean_tokens"], *each, *ratios, ours["load"]])
        for row, name in ((published, "published"), (fair, "last logits only")):
            if float(row["ratio"]) < BAR:
                short.append(f"{model.partition(' (')[0]}, {CASES[case]}, against {name} ({float(row['ratio']):.2f}x)")
    first = rows[0]
    about = (
        f"{first['sentences']} sentences, fp32; {_machine(first)}; medians of {first['rounds']} paired rounds. Ratios "
        "are the other way's time over ours."
    )
    head = ["model", "text", "tokens", "ours, ms each", "published", "last logits only", "ratio", "ratio", "load"]
    below = f"Below {BAR:g}x: {'; '.join(short)}." if short else f"No case is below {BAR:g}x."
    return f"{about}\n\n{markdown(head, lines)}\n{below}\n"
