"""Tables of docs/benchmarks/paper.md, from results/: continuations, rank-*, retrieval, figures and code-*."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report.markdown import table as markdown

__all__ = ["paper_blocks"]

RESULTS = Path(__file__).parents[1] / "results"
_ABSENT = "Not yet measured by this code: `{}` writes the table.\n"

Rows = list[dict[str, str]]


def paper_blocks(results: Path = RESULTS) -> dict[str, str]:
    """Every generated block by name."""
    ranks = [row | {"file": path.stem} for path in sorted(results.glob("rank-*.csv")) for row in _read(path)]
    return {
        "continuations": _continuations(_read(results / "continuations.csv")),
        "rank": _rank(ranks),
        "retrieval": _retrieval(_read(results / "retrieval.csv")),
        "figures": _figures(_read(results / "figures.csv")),
        "code": _code(_read(results / "code-retrieval.csv"), _read(results / "code-labels.csv")),
    }


def _read(path: Path) -> Rows:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _values(rows: Rows, name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))


def _one(rows: Rows, **wanted: str) -> dict[str, str] | None:
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _cell(row: dict[str, str] | None, plain: bool = False) -> str:
    """Accuracy and, but for the plain line, its difference with the interval in points."""
    if row is None:
        return ""
    share = f"{100 * float(row['accuracy']):.1f}%" if row["accuracy"] else ""
    return share if plain else f"{share} {_points(row)}".strip()


def _points(row: dict[str, str], names: Sequence[str] = ("difference", "low", "high")) -> str:
    mean, low, high = (f"{100 * float(row[name]):+.1f}".replace("-", "\u2212") for name in names)
    return f"{mean} [{low}, {high}]"


def _continuations(rows: Rows) -> str:
    parts = []
    for about in dict.fromkeys((row["model"], row["task"]) for row in rows):
        own = [row for row in rows if (row["model"], row["task"]) == about]
        chosen = _one(own, line="INCLINE", language="all", score="raw")
        if chosen is None:
            continue
        languages = [name for name in _values(own, "language") if name != "all"]
        parts.append(
            f"**{about[1]}, {about[0]}** ({', '.join(languages)}; n = {chosen['n']}). {chosen['pairs']} pairs; of "
            f"{chosen['settings_tried']} settings, chosen on {chosen['development_rows']} rows: {chosen['setting']}.\n"
        )
        scores = _values(own, "score")
        head = ["all languages", *scores, *(f"{language}, raw" for language in languages)]
        lines = []
        for line in _values(own, "line"):
            keys = [("all", score) for score in scores] + [(language, "raw") for language in languages]
            found = [_one(own, line=line, language=language, score=score) for language, score in keys]
            lines.append([line, *(_cell(row, line == "plain") for row in found)])
        parts.append(markdown(head, lines))
    return "\n".join(parts) if parts else _ABSENT.format("python -m benchmarks.continuations --data DIR --task xcopa")


def _rank(rows: Rows) -> str:
    parts = []
    for file in _values(rows, "file"):
        own = [row for row in rows if row["file"] == file]
        sites = sorted({int(row["site"]) for row in own})
        shown = sorted({sites[round(share * (len(sites) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)})
        lines = []
        for language in _values(own, "language"):
            of = {int(row["site"]): row for row in own if row["language"] == language}
            means = [sum(float(row[name]) for row in of.values()) / len(of) for name in ("cosine", "centred")]
            cells = [f"{float(of[site]['cosine']):.3f} / {float(of[site]['centred']):.3f}" for site in shown]
            lines.append([language, f"{means[0]:.3f} / {means[1]:.3f}", *cells])
        parts.append(f"**{file.removeprefix('rank-')}**, n = {own[0]['n']}; cosine / centred\n")
        parts.append(markdown(["language", "mean", *(f"site {site}" for site in shown)], lines))
    return "\n".join(parts) if parts else _ABSENT.format("incline-fast rank MODEL -o benchmarks/results/rank-MODEL.csv")


def _retrieval(rows: Rows) -> str:
    parts = []
    for model in _values(rows, "model"):
        own = [row for row in rows if row["model"] == model]
        sites = sorted((site for site in _values(own, "site") if site != "mean"), key=int)
        for language in _values(own, "language"):
            of = [row for row in own if row["language"] == language]
            parts.append(f"**{model}, {language}**, {of[0]['pairs']} pairs to fit, n = {of[0]['n']}\n")
            parts.append(_by_method(of, sites))
    return "\n".join(parts) if parts else _ABSENT.format("python -m benchmarks.paper.retrieval --data DIR")


def _by_method(rows: Rows, sites: Sequence[str]) -> str:
    """Shares of sentences found per method and site, and over the sites beside what scaling finds."""
    over = [f"over_scaled_{name}" for name in ("mean", "low", "high")]
    lines = []
    for method in _values(rows, "method"):
        mean = _one(rows, method=method, site="mean")
        cells = [_cell(_one(rows, method=method, site=site), plain=True) for site in sites]
        against = "" if mean is None or method == "scaled" else _points(mean, over)
        lines.append([method, *cells, _cell(mean, plain=True), against])
    return markdown(["method", *(f"site {site}" for site in sites), "mean", "mean over scaled"], lines)


def _figures(rows: Rows) -> str:
    parts = []
    for about in dict.fromkeys((row["model"], row["shots"], row["target"]) for row in rows):
        own = [row for row in rows if (row["model"], row["shots"], row["target"]) == about]
        languages = ", ".join(n for n in _values(own, "language") if n not in ("all", "target"))
        shots = f"{about[1]} examples in the prompt" if about[1] != "0" else "zero-shot"
        plain = _one(own, language="all", line="plain")
        if plain is None:
            continue
        setting = f"n = {plain['n']}, {plain['pairs']} pairs, sites {plain['sites']}"
        parts.append(f"**{about[0]}, {shots}, {languages} to {about[2]}**, {setting}.\n")
        for calibration in _values(own, "calibration"):
            parts += _lines([row for row in own if row["calibration"] == calibration], about[2])
    return "\n".join(parts) if parts else _ABSENT.format("python -m benchmarks.paper.figures")


def _lines(rows: Rows, target: str) -> list[str]:
    """Every figure of one run by one kind of score, all languages together."""
    plain, goal = _one(rows, language="all", line="plain"), _one(rows, language="target")
    parts = [f"{rows[0]['calibration']} scores: plain {_cell(plain, True)}, prompt in {target} {_cell(goal, True)}.\n"]
    pooled = [row for row in rows if row["language"] == "all" and row["figure"]]
    for figure in _values(pooled, "figure"):
        of = [row for row in pooled if row["figure"] == figure]
        # Over alpha as many columns as fit a page.
        shown = [row for row in of if figure != "alpha" or round(10 * float(row["alpha"])) % 2 == 0]
        parts.append(_by_strength(shown, figure, _cell))
    return parts


def _code(found: Rows, labels: Rows) -> str:
    parts = []
    for model in _values(labels, "model"):
        own = [row for row in labels if row["model"] == model]
        twins = [row for row in found if row["model"] == model]
        sites = sorted((site for site in _values(twins, "site") if site != "mean"), key=int)
        about = f"n = {own[0]['n']}, {own[0]['pairs']} pairs to fit in each of the folds"
        parts += [f"**{model}**, {about}. The Python function is found:\n", _by_method(twins, sites)]
        for calibration in _values(own, "calibration"):
            of = [row for row in own if row["calibration"] == calibration]
            plain, goal = _one(of, line="plain"), _one(of, line="prompt in Python")
            parts.append(
                f"What is returned, {calibration} scores, sites {of[0]['sites']}: plain {_cell(plain, True)}, prompt "
                f"in Python {_cell(goal)}.\n"
            )
            parts.append(_by_strength(of, "", _cell))
        raw = [row for row in own if row["calibration"] == "raw"]
        plain = _one(raw, line="plain")
        parts.append(f"KL to the Python prompt over the four words, in nats: plain {plain['kl'] if plain else ''}.\n")
        parts.append(_by_strength(raw, "", _nats))
    return "\n".join(parts) if parts else _ABSENT.format("python -m benchmarks.paper.code")


def _by_strength(rows: Rows, head: str, cell: Callable[[dict[str, str] | None], str]) -> str:
    """One line per edit, one column per strength."""
    edits = [row for row in rows if float(row["alpha"])]
    alphas = _values(edits, "alpha")
    lines = [[line, *(cell(_one(edits, line=line, alpha=a)) for a in alphas)] for line in _values(edits, "line")]
    return markdown([head, *(f"alpha {float(a):g}" for a in alphas)], lines)


def _nats(row: dict[str, str] | None) -> str:
    """A divergence and its change with the interval."""
    if row is None:
        return ""
    change, low, high = (
        f"{float(row[f'kl_{name}']):+.3f}".replace("-", "\u2212") for name in ("change", "low", "high")
    )
    return f"{float(row['kl']):.3f} {change} [{low}, {high}]"
