"""The page: ``python -m demo.report results.json`` writes ``demo/report.html`` and its pictures from the numbers alone.

``--snapshot FOLDER`` also writes what the README shows: the picture, the numbers, and a table of them as CSV.
"""

from __future__ import annotations

import argparse
import json
import shutil
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from demo import charts
from demo.charts import row_of
from demo.experiment import CALIBRATION
from incline_fast.evaluation.calibration import CALIBRATIONS
from incline_fast.evaluation.comparison import COLUMNS, INCLINE, OVER_CONTROL, TARGET, UNLABELLED
from incline_fast.evaluation.controls import CONTROLS
from incline_fast.files import write_table

__all__ = ["write_report"]

HERE = Path(__file__).parent


def write_report(numbers: dict[str, Any]) -> Path:
    """Write the page and its pictures; returns the page's path."""
    drawn = {
        "accuracy": charts.accuracy(numbers, CALIBRATION),
        "uncalibrated": charts.accuracy(numbers, "raw"),
        "divergence": charts.divergence(numbers),
        "oracle": charts.oracle(numbers),
        "latency": charts.latency(numbers),
    }
    for name, figure in drawn.items():
        charts.to_png(figure, HERE / f"report-{name}.png")
    names = list(numbers["languages"].values())
    fields = {
        "model": escape(numbers["model"]),
        "language_list": f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0],
        "cards": _cards(numbers),
        "n_test": row_of(numbers, next(iter(numbers["languages"])), "plain")["n"],
        "n_dev": row_of(numbers, "all", "plain")["development_rows"],
        "tried": row_of(numbers, "all", "plain")["settings_tried"],
        "chosen": escape(numbers["chosen"][0]),
        "task": escape(numbers["task"]),
        "labels": escape(", ".join(numbers["labels"])),
        "table_head": "".join(f"<th>{name}</th>" for name in ("all", *names)),
        "table": _table(numbers),
        "template": escape(numbers["template"].replace("\n", "\\n")),
        "examples": _examples(numbers),
        "latency_text": _latency_text(numbers),
        "limits": "".join(f"<li>{item}</li>" for item in _limits(numbers)),
        "method": "".join(f"<li>{item}</li>" for item in _method(numbers)),
        "footer": _footer(numbers),
        **{name: charts.to_svg(figure) for name, figure in drawn.items()},
    }
    page = HERE / "report.html"
    page.write_text(Template((HERE / "page.html").read_text()).substitute(fields), encoding="utf-8")
    return page


def _cards(numbers: dict[str, Any]) -> str:
    cards = []
    for calibration, title in ((CALIBRATION, "Right answers, all languages"), ("raw", "The same, not calibrated")):
        plain, ours, english = (row_of(numbers, "all", line, calibration) for line in ("plain", INCLINE, TARGET))
        note = f"{_points(ours)}<br>plain {_share(plain)}, intervened {_share(ours)}, English prompt {_share(english)}"
        cards.append(_card(title, f"{_signed(100 * ours['difference'])} points", note))
    over = row_of(numbers, "all", OVER_CONTROL, CALIBRATION)
    cards.append(
        _card(
            "Over the best control",
            f"{_signed(100 * over['difference'])} points",
            f"{_points(over)}<br>{escape(over['setting'])}",
        )
    )
    ways = numbers["latency"]["ways"]
    cards.append(
        _card(
            "Time to generate",
            f"{_signed(100 * (ways['fused']['ratio'] - 1))}%",
            f"{numbers['latency']['new_tokens']} tokens, fused into the norms<br>"
            f"two passes and hooks: {_signed(100 * (ways['two-pass hooks']['ratio'] - 1))}%",
        )
    )
    return "".join(cards)


def _card(title: str, value: str, note: str) -> str:
    return f'<div class="card"><span>{title}</span><b>{value}</b><small>{note}</small></div>'


def _table(numbers: dict[str, Any]) -> str:
    rows = []
    for line in ("plain", INCLINE, UNLABELLED, *CONTROLS, TARGET):
        for calibration in (CALIBRATION, "raw"):
            cells = []
            for language in ("all", *numbers["languages"]):
                row = row_of(numbers, language, line, calibration)
                style = ' class="bad"' if row["high"] < 0 else ""
                gain = "" if line == "plain" else f"<small>{_points(row)}</small>"
                cells.append(f"<td><span{style}>{_share(row)}</span>{gain}</td>")
            about = f"<small>{'not calibrated' if calibration == 'raw' else f'{calibration}-calibrated'}</small>"
            rows.append(f"<tr{' class=ours' if line == INCLINE else ''}><td>{line}{about}</td>{''.join(cells)}</tr>")
    return "".join(rows)


def _examples(numbers: dict[str, Any]) -> str:
    parts = []
    for language, examples in numbers["examples"].items():
        parts.append(f"<h3>{numbers['languages'][language]}</h3>")
        for example in examples:
            values = {name: escape(text) for name, text in example.items()}
            parts.append(
                f'<dl class="sample"><dt>{values["kind"]}</dt><dd>{values["sentence"]} <small>({values["English"]})'
                f'</small></dd><dt>answers</dt><dd>plain: {values["plain"]}, intervened: <span class="edited">'
                f"{values['INCLINE']}</span>, right: {values['answer']}</dd></dl>"
            )
    return "".join(parts)


def _latency_text(numbers: dict[str, Any]) -> str:
    latency = numbers["latency"]
    return (
        f"Greedy generation of {latency['new_tokens']} tokens after {latency['prompt_tokens']} prompt tokens, batch of "
        f"one, fp32, {latency['threads']} threads, the chosen sites edited at the last prompt token. "
        f"{latency['rounds']} rounds, each way once per round in changing order; medians, and medians of the ratios "
        "within a round. The "
        "two-pass version runs the prompt once to see the states, and again with a hook at every site that writes the "
        "edited ones. A difference of a percent or two is within the machine's noise."
    )


def _limits(numbers: dict[str, Any]) -> list[str]:
    items = [
        "<b>It distils the English prompt.</b> What the model does not know in English, the intervention does not add; "
        "a probe trained on labels does better where there are labels.",
    ]
    for calibration in CALIBRATIONS:
        if calibration == CALIBRATION:
            continue
        row, over = (row_of(numbers, "all", line, calibration) for line in (INCLINE, OVER_CONTROL))
        how = "Without calibration" if calibration == "raw" else f"With {calibration} calibration"
        items.append(f"<b>{how}</b> the gain is {_points(row)} points, and {_points(over)} over the best control.")
    harmed = [
        f"{numbers['languages'][language]} {_points(row_of(numbers, language, INCLINE, CALIBRATION))}"
        for language in numbers["languages"]
        if row_of(numbers, language, INCLINE, CALIBRATION)["low"] <= 0
    ]
    if harmed:
        items.append(f"<b>Not sure to help</b>, its interval includes zero or less: {'; '.join(harmed)}.")
    return items


def _method(numbers: dict[str, Any]) -> list[str]:
    row = row_of(numbers, "all", "plain")
    return [
        f"Model: {escape(numbers['model'])}, fp32. {escape(numbers['licence'])}.",
        f"Maps: fitted on {row['pairs']} parallel texts without labels, in the prompt that is scored. Chosen: "
        f"{escape(numbers['chosen'][0])} by {CALIBRATION}-calibrated accuracy, {escape(numbers['chosen'][1])} by KL "
        "without labels.",
        "Settings are the same for all languages. Controls get their best alpha on the test rows, which flatters them.",
        "Answers: the label word of the largest log-probability after the prompt, less the mean prediction over the "
        "rows where it is calibrated. Intervals: 95% paired bootstrap; the "
        "translations of one text are drawn together.",
    ]


def _footer(numbers: dict[str, Any]) -> str:
    machine = numbers["machine"]
    return escape(
        f"{machine['date']} \u00b7 {machine['cpu']}, {machine['cores']} cores \u00b7 torch {machine['torch']}, "
        f"transformers {machine['transformers']}, incline_fast {machine['incline_fast']} \u00b7 "
        f"{machine['backend'].split(':')[0]} \u00b7 "
        f"the whole run took {numbers['seconds']['all'] / 60:.1f} minutes"
    )


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f}%"


def _points(row: dict[str, Any]) -> str:
    values = (_signed(100 * row[name]) for name in ("difference", "low", "high"))
    return "{} [{}, {}]".format(*values)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\u2212")


def write_snapshot(numbers: dict[str, Any], folder: Path) -> None:
    """The picture, the numbers and their table, small enough to be committed."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "report-accuracy.png", folder / "accuracy.png")
    (folder / "results.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_table(numbers["rows"], COLUMNS, folder / "test_rows.csv")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file written by demo.run")
    parser.add_argument("--snapshot", type=Path, help="folder for the picture and tables of the README")
    arguments = parser.parse_args()
    numbers = json.loads(arguments.results.read_text(encoding="utf-8"))
    print(write_report(numbers))
    if arguments.snapshot:
        write_snapshot(numbers, arguments.snapshot)


if __name__ == "__main__":
    main()
