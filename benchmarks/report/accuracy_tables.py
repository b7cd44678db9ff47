"""Tables of accuracy for README.md and docs/benchmarks/accuracy.md, from results/sib200.csv, scoring.csv, tune.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.report.markdown import table as markdown
from incline_fast.evaluation.comparison import INCLINE, OVER_CONTROL, TARGET, UNLABELLED
from incline_fast.evaluation.controls import CONTROLS

__all__ = ["accuracy_blocks"]

RESULTS = Path(__file__).parents[1] / "results"
_ABSENT = "Not yet measured by this code: `{}` writes the table.\n"

Rows = list[dict[str, str]]


def accuracy_blocks() -> dict[str, str]:
    """Every generated block by name."""
    rows, oracle, speed, tuned = (
        _read(RESULTS / f"{name}.csv") for name in ("sib200", "sib200-oracle", "scoring", "tune")
    )
    return {
        "accuracy": _summary(rows),
        "sib200": _full(rows),
        "oracle": _oracle(oracle),
        "scoring": _speed(speed),
        "tune": _tuned(tuned),
    }


def _read(path: Path) -> Rows:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _experiments(rows: Rows) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["model"], row["prompt"]) for row in rows))


def _find(rows: Rows, about: tuple[str, str], language: str, line: str, calibration: str) -> dict[str, str] | None:
    wanted = {"model": about[0], "prompt": about[1], "language": language, "line": line, "calibration": calibration}
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _share(row: dict[str, str] | None) -> str:
    return "" if row is None else f"{100 * float(row['accuracy']):.1f}%"


def _points(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    mean, low, high = (
        f"{100 * float(row[name]):+.1f}".replace("-", "\u2212") for name in ("difference", "low", "high")
    )
    return f"{mean} [{low}, {high}]"


def _summary(rows: Rows) -> str:
    """README.md: two lines per model and prompt, all languages pooled: raw, then batch-calibrated."""
    if not rows:
        return _ABSENT.format("python -m benchmarks.sib200 --data DIR")
    lines = []
    prompts = {prompt for _, prompt in _experiments(rows)}
    for about in _experiments(rows):
        name = about[0].split("(")[0].strip() + (f", {about[1]}" if len(prompts) > 1 else "")
        for calibration in ("raw", "batch"):
            found = {
                line: _find(rows, about, "all", line, calibration) for line in ("plain", INCLINE, TARGET, OVER_CONTROL)
            }
            ours = found[INCLINE]
            size = "" if ours is None else f"n = {int(ours['n']):,}, "
            lines.append(
                [
                    name if calibration == "raw" else f"{size}calibrated",
                    _share(found["plain"]),
                    f"**{_share(ours)}** {_points(ours)}",
                    _share(found[TARGET]),
                    _points(found[OVER_CONTROL]),
                ]
            )
    head = prompts.pop() if len(prompts) == 1 else ""
    return markdown([head, "plain", "INCLINE", "English", "over best control"], lines)


def _full(rows: Rows) -> str:
    """docs/benchmarks/accuracy.md: every line, language and calibration."""
    parts = []
    for about in _experiments(rows):
        own = [row for row in rows if (row["model"], row["prompt"]) == about]
        languages = list(dict.fromkeys(row["language"] for row in own))
        setting = _find(rows, about, "all", INCLINE, "raw")
        by_kl = _find(rows, about, "all", UNLABELLED, "raw")
        if setting is None or by_kl is None:
            continue
        parts.append(
            f"**{about[0]}, {about[1]}.** {setting['pairs']} pairs; of {setting['settings_tried']} settings, chosen on "
            f"{setting['development_rows']} rows: {setting['setting']}; without labels: {by_kl['setting']}.\n"
        )
        for calibration in dict.fromkeys(row["calibration"] for row in own):
            lines = []
            for line in ("plain", INCLINE, UNLABELLED, *CONTROLS, TARGET):
                found = [_find(rows, about, language, line, calibration) for language in languages]
                cells = [_share(row) + ("" if line == "plain" else f"<br>{_points(row)}") for row in found]
                lines.append([line, *cells, found[0]["cpc"] if found[0] else "", found[0]["kl"] if found[0] else ""])
            parts.append(markdown([calibration, *languages, "CPC, all", "KL, all"], lines))
    return "\n".join(parts) if parts else _ABSENT.format("python -m benchmarks.sib200 --data DIR")


def _oracle(rows: Rows) -> str:
    """What the true English state gains per site, the mean over the languages."""
    parts = []
    for about in _experiments(rows):
        sites: dict[int, list[float]] = {}
        for row in rows:
            if (row["model"], row["prompt"]) == about:
                sites.setdefault(int(row["site"]), []).append(100 * float(row["gain"]))
        cells = [f"{sum(gains) / len(gains):+.0f}" for _, gains in sorted(sites.items())]
        parts.append(markdown([f"{about[0]}, {about[1]}: site", *map(str, sorted(sites))], [["points", *cells]]))
    return "\n".join(parts) if parts else _ABSENT.format("python -m benchmarks.sib200 --data DIR")


def _speed(rows: Rows) -> str:
    if not rows:
        return _ABSENT.format("python -m benchmarks.scoring")
    head = ["model", "prompts (tokens)", "strengths x sites", "ours, s", "separate passes, s", "ratio (least, most)"]
    lines = [
        [
            row["model"],
            f"{row['prompts']} ({row['tokens']})",
            row["variants"],
            row["seconds_ours"],
            row["seconds_separate"],
            f"{row['ratio']}x ({row['ratio_low']}, {row['ratio_high']})",
        ]
        for row in rows
    ]
    threads = ", ".join(sorted({f"{row['threads']} threads of {row['cpu']}" for row in rows}))
    return markdown(head, lines) + f"\n{threads}, torch {rows[0]['torch']}.\n"


def _tuned(rows: Rows) -> str:
    if not rows:
        return _ABSENT.format("python -m benchmarks.tune --data DIR")
    head = ["model", "states", "sites", "settings x rows", "choosing", "chosen"]
    lines = [
        [
            row["model"],
            f"{float(row['states_seconds']):.0f} s",
            f"{row['which']}: {row['sites']}",
            f"{row['settings']} x {row['rows']}",
            f"{float(row['seconds']):.0f} s",
            row["chosen"],
        ]
        for row in rows
    ]
    first = rows[0]
    return markdown(head, lines) + f"\n{first['threads']} threads of {first['device']}, torch {first['torch']}.\n"
