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
    peaks = {_key(row): row["peak_mib"] for row in _read(results / "cost-learn-memory.csv")}
    timed = {_problem(row) for row in rows}
    untimed = [f"{WORKS[key[0]]}: {key[2]} {mib}" for key, mib in peaks.items() if key[:2] not in timed]
    parts, less = [], []
    for work, kind in sorted(timed, key=lambda one: [*WORKS].index(one[0])):
        own = [row for row in rows if (row["work"], row["states"]) == (work, kind)]
        first = own[0]
        about = (
            f"{first['sites']} sites, n = {first['n']}, d = {first['d']}, {kind} states; {_machine(first)}; "
            f"medians of {first['rounds']} paired rounds, load average {first['load']}."
        )
        lines = [_way_to_learn(row, peaks.get(_key(row), "")) for row in own]
        parts.append(f"{about}\n\n{markdown([WORKS[work], 'seconds', 'time / ours', 'peak MiB', 'error'], lines)}")
        where = f"{WORKS[work].partition(',')[0]}, {kind}"
        less += [f"time of {row['provider']} ({where})" for row in own if row["ms_p50"] and _ratio(row) < 1]
        less += [f"memory of {row['provider']} ({where})" for row in own if _smaller(peaks, row, first)]
    if untimed:
        parts.append(f"Peak MiB of what was not yet timed on an idle machine: {'; '.join(untimed)}.\n")
    return "\n".join([*parts, f"Less than ours: {'; '.join(less) if less else 'nothing'}.\n"])


def _problem(row: Row) -> tuple[str, str]:
    return row["work"], row["states"]


def _key(row: Row) -> tuple[str, str, str]:
    return row["work"], row["states"], row["provider"]


def _ratio(row: Row) -> float:
    return float(row["ratio_to_first"])


def _smaller(peaks: dict[tuple[str, str, str], str], row: Row, ours: Row) -> bool:
    both = [peaks.get(_key(one)) for one in (row, ours)]
    return None not in both and float(both[0] or 0) < float(both[1] or 0)


def _way_to_learn(row: Row, peak: str) -> list[str]:
    """A line; a way that is wrong has no time."""
    name = "ours" if row["provider"] == "incline_fast" else row["provider"]
    if not row["ms_p50"]:
        return [name, "wrong", "", "", row["held_out_error"]]
    return [name, f"{float(row['ms_p50']) / 1e3:.2f}", f"{_ratio(row):.2f}x", peak, row["held_out_error"]]


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
        lines.append(
            [model.partition(" (")[0], CASES[case], ours["mean_tokens"], *each, *ratios, ours["rounds"], ours["load"]]
        )
        for row, name in ((published, "published"), (fair, "last logits only")):
            if float(row["ratio"]) < BAR:
                short.append(f"{model.partition(' (')[0]}, {CASES[case]}, against {name} ({float(row['ratio']):.2f}x)")
    first = rows[0]
    about = (
        f"{first['sentences']} sentences, fp32; {_machine(first)}; medians of paired rounds. Ratios are of the other "
        "way's time to ours."
    )
    each = ["ours, ms each", "published", "last logits only"]
    head = ["model", "text", "tokens", *each, "published / ours", "last logits only / ours", "rounds", "load"]
    below = f"Below {BAR:g}x: {'; '.join(short)}." if short else f"No case is below {BAR:g}x."
    return f"{about}\n\n{markdown(head, lines)}\n{below}\n"
