"""The demo's experiment: maps from several languages to English, chosen and measured on a task, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.emoji_names import emoji_names
from demo.fetch import Prepared
from incline_fast.evaluation import LabelTask, sib200
from incline_fast.evaluation.comparison import INCLINE, Comparison, Parts, compare_languages

__all__ = ["CALIBRATION", "ENGLISH", "EXAMPLES", "LANGUAGES", "changed_answers", "measure", "read_task"]

LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish", "tr": "Turkish", "id": "Indonesian"}
ENGLISH = "en"
# Folders of SIB-200, which `make demo DATA=...` reads instead.
SIB200 = {"fr": "fra_Latn", "de": "deu_Latn", "tr": "tur_Latn"}

DEV, TEST = 100, 200
LAMS = (0.3, 1.0, 3.0)
EXAMPLES = 6

CALIBRATION = "batch"
"""Of the answers that settings are chosen by and that the report shows first: uncalibrated, a small model says one of
ten label words nearly always."""


def read_task(prepared: Prepared, data: Path | None) -> dict[str, LabelTask]:
    """Language -> the whole task, English among them: the names of emoji, or SIB-200 from a folder.

    Args:
        prepared: the wheels.
        data: folder with the folders of SIB-200.
    """
    if data is None:
        return emoji_names(prepared.names, prepared.kinds, [ENGLISH, *LANGUAGES])
    folders = {ENGLISH: "eng_Latn", **SIB200}
    tasks = {language: sib200(data, folder, ["train", "dev", "test"]) for language, folder in folders.items()}
    order = tasks[ENGLISH].ids
    places = {language: {row: i for i, row in enumerate(task.ids)} for language, task in tasks.items()}
    return {language: task.select([places[language][row] for row in order]) for language, task in tasks.items()}


def measure(model: Any, tokenizer: Any, tasks: dict[str, LabelTask], cache: Path) -> Comparison:
    """Choose on development rows, for all languages together, and measure on test rows."""
    parts = {language: Parts.drawn(task, development=DEV, test=TEST) for language, task in tasks.items()}
    english = parts.pop(ENGLISH)
    return compare_languages(model, tokenizer, parts, english, lams=LAMS, metric="calibrated_accuracy", resume=cache)


def changed_answers(
    found: Comparison, english: Sequence[str], language: str, count: int = EXAMPLES
) -> list[dict[str, str]]:
    """Test rows whose answer the intervention changes: made right, made wrong and still wrong, in proportion.

    Args:
        found: of :func:`measure`.
        english: the English sentences of the test rows.
        language: code.
        count: how many rows; the first of each kind in the order of the draw.
    """
    scores = found.scores[language]
    task = scores.task
    names = [variant.name for variant in scores.variants]
    answered = scores.calibrated(CALIBRATION).argmax(-1)
    before, after = (answered[names.index(name)].tolist() for name in ("plain", INCLINE))
    answers = task.answers or []
    kinds: dict[str, list[dict[str, str]]] = {"now right": [], "now wrong": [], "still wrong": []}
    for i, (old, new, answer) in enumerate(zip(before, after, answers, strict=True)):
        if old != new:
            kind = "now right" if new == answer else "now wrong" if old == answer else "still wrong"
            words = {"plain": old, "INCLINE": new, "answer": answer}
            shown = {name: task.labels[label] for name, label in words.items()}
            kinds[kind].append({"kind": kind, "sentence": task.sentences[i], "English": english[i], **shown})
    total = sum(map(len, kinds.values()))
    shares = {kind: round(count * len(rows) / total) if total else 0 for kind, rows in kinds.items()}
    return [row for kind, rows in kinds.items() for row in rows[: shares[kind]]]
