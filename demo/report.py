"""The page: ``python -m demo.report results.json`` writes ``demo/report.html`` and its pictures from the numbers alone.

``--snapshot FOLDER`` also writes what the README shows: the picture, the numbers, and a table of them as CSV.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from demo import charts

__all__ = ["write_report"]

HERE = Path(__file__).parent
SIB200 = HERE.parent / "benchmarks" / "results" / "sib200.csv"


def write_report(numbers: dict[str, Any]) -> Path:
    """Write the page and its pictures; returns the page's path."""
    pictures = {"kl": charts.kl_over_alpha, "fit_error": charts.fit_error, "latency": charts.latency}
    drawn = {name: draw(numbers) for name, draw in pictures.items()}
    for name, figure in drawn.items():
        charts.to_png(figure, HERE / f"report-{name}.png")
    languages = list(numbers["languages"].values())
    names = [language["name"] for language in languages]
    fields = {
        "model": escape(numbers["model"]),
        "language_list": f"{', '.join(names[:-1])} and {names[-1]}",
        "cards": _cards(numbers),
        "n_test": languages[0]["pairs"]["test"],
        "n_dev": languages[0]["pairs"]["dev"],
        "table_head": "".join(f"<th>{name}</th>" for name in names),
        "table": _table(numbers),
        "template": escape(numbers["template"].replace("\n", "\\n")),
        "samples": _samples(numbers),
        "latency_text": _latency_text(numbers),
        "losses": "".join(f"<li>{item}</li>" for item in _losses(numbers)),
        "method": "".join(f"<li>{item}</li>" for item in _method(numbers)),
        "footer": _footer(numbers),
        **{name: charts.to_svg(figure) for name, figure in drawn.items()},
    }
    page = HERE / "report.html"
    page.write_text(Template((HERE / "page.html").read_text()).substitute(fields), encoding="utf-8")
    return page


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the smallest divergence among those with an edit that did not blow up; else the least harmful."""
    edited = [row for row in rows if row["alpha"] != 0 and row["kl_mean"] is not None]
    return min([row for row in edited if not row["blown_up"]] or edited, key=lambda row: row["kl_mean"])


def chosen_row(numbers: dict[str, Any], language: dict[str, Any]) -> dict[str, Any]:
    """The held-out row of our line at the alpha that the development pairs chose."""
    rows = language["held_out"][numbers["lines"]["ours"]]
    return next(row for row in rows if row["alpha"] == language["alpha"])


def best_control(language: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The control that lowered the divergence most, at its own best alpha."""
    rows = {name: best_row(language["held_out"][name]) for name in charts.CONTROLS}
    return min(rows.items(), key=lambda item: item[1]["change"])


def _cards(numbers: dict[str, Any]) -> str:
    cards = []
    for language in numbers["languages"].values():
        row, (control, control_row) = chosen_row(numbers, language), best_control(language)
        note = f"KL to the English prompt, {_interval(row)}<br>best control ({control}): "
        cards.append(_card(language["name"], _percent(row["change"]), note + _percent(control_row["change"])))
    ways = numbers["latency"]["ways"]
    cards.append(
        _card(
            "Time to generate",
            _percent(ways["fused"]["ratio"] - 1, 1),
            f"{numbers['latency']['new_tokens']} tokens, fused into the norms<br>"
            f"two passes and hooks: {_percent(ways['two-pass hooks']['ratio'] - 1, 1)}",
        )
    )
    return "".join(cards)


def _card(title: str, value: str, note: str) -> str:
    return f'<div class="card"><span>{title}</span><b>{value}</b><small>{note}</small></div>'


def _table(numbers: dict[str, Any]) -> str:
    lines = numbers["lines"]
    about = {
        lines["ours"]: "preset robust: template, interpolated, all layers",
        lines["last_layer"]: "the same map, at the last layer alone",
        lines["paper"]: f"preset paper: bare sentences, minimum norm, n = {lines['paper_pairs']}, added",
    }
    order = [lines["ours"], lines["last_layer"], *charts.CONTROLS, lines["paper"]]
    rows = []
    for line in order:
        cells = []
        for language in numbers["languages"].values():
            ours = line == lines["ours"]
            row = chosen_row(numbers, language) if ours else best_row(language["held_out"][line])
            style = ' class="bad"' if row["change"] > 0 else ""
            note = f"{_interval(row)}<br>alpha {row['alpha']:g}" + (f", lambda {language['lam']:g}" if ours else "")
            cells.append(f"<td><span{style}>{_percent(row['change'], 1)}</span><small>{note}</small></td>")
        name = f"{line}<small>{about.get(line, 'control')}</small>"
        rows.append(f"<tr{' class=ours' if line == lines['ours'] else ''}><td>{name}</td>{''.join(cells)}</tr>")
    return "".join(rows)


def _samples(numbers: dict[str, Any]) -> str:
    parts = []
    for language in numbers["languages"].values():
        parts.append(f"<h3>{language['name']}, alpha {language['alpha']:g}</h3>")
        for sample in language["samples"]:
            values = {name: escape(" ".join(text.split())) for name, text in sample.items()}
            parts.append(
                f'<dl class="sample"><dt>{language["name"]}</dt><dd>{values["source"]}</dd>'
                f"<dt>plain continues</dt><dd>{values['plain']}</dd>"
                f'<dt>intervened continues</dt><dd class="edited">{values["intervened"]}</dd>'
                f"<dt>English</dt><dd>{values['english']}</dd>"
                f"<dt>English continues</dt><dd>{values['english prompt']}</dd></dl>"
            )
    return "".join(parts)


def _latency_text(numbers: dict[str, Any]) -> str:
    latency = numbers["latency"]
    return (
        f"Greedy generation of {latency['new_tokens']} tokens after {latency['prompt_tokens']} prompt tokens, batch of "
        f"one, fp32, {latency['threads']} threads, all layers edited at the last prompt token. {latency['rounds']} "
        "rounds, each way once per round in changing order; medians, and medians of the ratios within a round. The "
        "two-pass version runs the prompt once to see the states, and again with a hook at every layer that writes the "
        "edited ones. A difference of a percent or two is within the machine's noise."
    )


def _losses(numbers: dict[str, Any]) -> list[str]:
    lines = numbers["lines"]
    paper = {
        language["name"]: best_row(language["held_out"][lines["paper"]]) for language in numbers["languages"].values()
    }
    harm = "only did harm" if all(row["change"] > 0 for row in paper.values()) else "did not always help"
    worst = "; ".join(
        f"{name} {_percent(row['change'])} {_interval(row)} at alpha {row['alpha']:g}" for name, row in paper.items()
    )
    last = [best_row(language["held_out"][lines["last_layer"]])["change"] for language in numbers["languages"].values()]
    ours = [chosen_row(numbers, language)["change"] for language in numbers["languages"].values()]
    items = [
        f"<b>The paper's own recipe</b> (preset <code>paper</code>: last token of bare sentences, minimum norm, n = "
        f"{lines['paper_pairs']} pairs, <code>h + alpha W h</code>) {harm} on this model, even at the best of the "
        f"strengths tried: {worst}.",
        f"<b>Editing every layer is not what matters here.</b> The same maps at the last layer alone change the KL by "
        f"{_list(last)}, against {_list(ours)} with all layers. This measure looks at one next token only.",
        "<b>A smaller KL is not a better answer.</b> The measure says that the model behaves more as it does on the "
        "English prompt, no more than that.",
    ]
    sib = _sib200()
    if sib:
        items.append(sib)
    return items


def _sib200() -> str:
    """One sentence about topic accuracy, from the committed table of a separate run."""
    if not SIB200.is_file():
        return ""
    with SIB200.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["line"] == "intervened"]
    parts = [
        f"{row['language']} {float(row['accuracy']):.1%}, {float(row['difference']) * 100:+.1f} points "
        f"[{float(row['low']) * 100:+.1f}, {float(row['high']) * 100:+.1f}]"
        for row in rows
    ]
    return (
        f"<b>Topic accuracy on SIB-200</b> ({rows[0]['n']} test sentences, {rows[0]['model']}, preset "
        f"{rows[0]['preset']}, label log-likelihood; a separate run of <code>benchmarks.eval_sib200</code>): "
        f"{'; '.join(parts)}. The differences are to the same prompt without intervention, with 95% intervals."
    )


def _method(numbers: dict[str, Any]) -> list[str]:
    sizes = "; ".join(
        f"{language['name']} {p['fit']} to fit, {p['dev']} to choose alpha and lambda, {p['test']} held out"
        for language in numbers["languages"].values()
        for p in [language["pairs"]]
    )
    return [
        f"Model: {escape(numbers['model'])}, fp32. {escape(numbers['licence'])}.",
        f"Pairs: translated messages of Django and wagtail, cleaned; no sentence of one side is in two parts. {sizes}.",
        "Maps: preset <code>robust</code> - states of the prompt template, last token, standardised affine ridge, "
        "<code>(1 - alpha) h + alpha (W h + b)</code> at the input of every norm that reads the residual stream. After "
        "the choice the maps are fitted again on fit and development pairs together. BOS is never fitted or edited.",
        "Intervals: percentile bootstrap over held-out pairs, 2000 resamples, of the ratio of means.",
        "Controls: the mean English state (no sentence), the same ridge on shuffled pairs, the mean difference added.",
    ]


def _footer(numbers: dict[str, Any]) -> str:
    machine = numbers["machine"]
    return escape(
        f"{machine['date']} · {machine['cpu']}, {machine['cores']} cores · torch {machine['torch']}, transformers "
        f"{machine['transformers']}, incline_fast {machine['incline_fast']} · {machine['backend'].split(':')[0]} · "
        f"the whole run took {numbers['seconds']['all'] / 60:.1f} minutes"
    )


def _interval(row: dict[str, Any]) -> str:
    return f"[{_percent(row['change_low'], 1)}, {_percent(row['change_high'], 1)}]"


def _list(changes: list[float]) -> str:
    return " / ".join(_percent(change) for change in changes)


def _percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:+,.{digits}f}%".replace("-", "\u2212")


def write_snapshot(numbers: dict[str, Any], folder: Path) -> None:
    """The picture, the numbers and their table, small enough to be committed."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "report-kl.png", folder / "kl.png")
    (folder / "results.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with (folder / "held_out.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        rows = [
            {"language": code, "line": line, **row}
            for code, language in numbers["languages"].items()
            for line, rows in language["held_out"].items()
            for row in rows
        ]
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)


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
