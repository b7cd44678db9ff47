"""Rows of public sets for the harness, read from files in the layout of their releases; nothing is downloaded.

The folder is named by ``--metadata '{"data": "DIR"}'`` or by the environment variable ``INCLINE_FAST_DATA``. Every
reader returns ``{"test": rows}``, as the harness's ``custom_dataset`` requires; its docstring names the files.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from incline_fast.evaluation.metrics import exact_match, token_f1
from incline_fast.evaluation.tasks import TaskError, winograd_rows
from incline_fast.text.lines import text_lines

__all__ = ["flores", "mgsm", "mzsre", "mzsre_scores", "wmt23", "xcopa", "xcsqa", "xnli", "xstorycloze", "xwinograd"]

Document = dict[str, Any]

LANGUAGE_NAMES = {
    "ar": "Arabic", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi",
    "ja": "Japanese", "ru": "Russian", "sw": "Swahili", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def _local(read: Callable[[Path, str], list[Document]]) -> Callable[..., Any]:
    """A reader of rows, as a ``custom_dataset`` of the harness."""

    @wraps(read)
    def dataset(language: str, data: str | None = None, **about: Any) -> Any:
        import datasets

        folder = data or os.environ.get("INCLINE_FAST_DATA")
        if not folder:
            raise TaskError(
                f"{read.__name__}: no folder with data is named; set INCLINE_FAST_DATA, or add "
                '--metadata \'{"data": "DIR"}\''
            )
        rows = read(Path(folder), language)
        if not rows:
            raise TaskError(f"{read.__name__}: {folder} has no row of {language!r}")
        return {"test": datasets.Dataset.from_list(rows)}

    return dataset


@_local
def xcopa(folder: Path, language: str) -> list[Document]:
    """``xcopa/LANGUAGE/test.LANGUAGE.jsonl``, or ``val`` where there is no test file."""
    place = folder / "xcopa" / language
    test = place / f"test.{language}.jsonl"
    return _objects(test if test.exists() else place / f"val.{language}.jsonl")


@_local
def xwinograd(folder: Path, language: str) -> list[Document]:
    """``xwinograd/dataset.tsv`` of Tikhonov and Ryabinin; ``_`` stands in the place of the pronoun."""
    return [
        {"sentence": row.before + "_" + row.after, "options": list(row.candidates), "label": row.answer}
        for row in winograd_rows(folder / "xwinograd" / "dataset.tsv", language)
    ]


@_local
def mgsm(folder: Path, language: str) -> list[Document]:
    """``mgsm/mgsm_LANGUAGE.tsv``: question, answer."""
    rows = csv.reader(text_lines(folder / "mgsm" / f"mgsm_{language}.tsv"), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [
        {"question": question, "answer": answer.replace(",", ""), "language": LANGUAGE_NAMES[language]}
        for question, answer in rows
    ]


@_local
def xstorycloze(folder: Path, language: str) -> list[Document]:
    """``xstorycloze/spring2016.val.LANGUAGE.tsv.split_20_80_eval.tsv``: 4 sentences, 2 endings, the right one."""
    path = folder / "xstorycloze" / f"spring2016.val.{language}.tsv.split_20_80_eval.tsv"
    return [
        {"story": " ".join(row[1:5]), "endings": row[5:7], "label": int(row[7]) - 1}
        for row in list(csv.reader(text_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    ]


@_local
def xnli(folder: Path, language: str) -> list[Document]:
    """``xnli/xnli.test.tsv``, all languages in one file."""
    labels = ["entailment", "contradiction", "neutral"]
    return [
        {"premise": row["sentence1"], "hypothesis": row["sentence2"], "label": labels.index(row["gold_label"])}
        for row in csv.DictReader(text_lines(folder / "xnli" / "xnli.test.tsv"), delimiter="\t", quoting=csv.QUOTE_NONE)
        if row["language"] == language
    ]


@_local
def xcsqa(folder: Path, language: str) -> list[Document]:
    """``xcsqa/dev-LANGUAGE.jsonl``: the answers of the test part are not public."""
    found = []
    for row in _objects(folder / "xcsqa" / f"dev-{language}.jsonl"):
        choices = row["question"]["choices"]
        letters = [choice["label"] for choice in choices]
        shown = " ".join(f"{choice['label']}: {choice['text']}" for choice in choices)
        stem, answer = row["question"]["stem"], letters.index(row["answerKey"])
        found.append({"question": stem, "shown": shown, "letters": letters, "label": answer})
    return found


@_local
def flores(folder: Path, language: str) -> list[Document]:
    """``flores101_dataset/devtest/CODE.devtest``, line by line."""
    codes = {"ar": "ara", "el": "ell", "es": "spa", "fr": "fra", "hi": "hin", "ru": "rus", "tr": "tur", "vi": "vie"}
    code = {**codes, "zh": "zho_simpl"}[language]
    place = folder / "flores101_dataset" / "devtest"
    return _translations(place / f"{code}.devtest", place / "eng.devtest", language)


@_local
def wmt23(folder: Path, language: str) -> list[Document]:
    """``wmt23/generaltest2023.LANGUAGE-en.src.LANGUAGE`` and its ``.ref.refA.en``."""
    place = folder / "wmt23"
    source, target = f"{language}-en.src.{language}", f"{language}-en.ref.refA.en"
    return _translations(place / f"generaltest2023.{source}", place / f"generaltest2023.{target}", language)


@_local
def mzsre(folder: Path, language: str) -> list[Document]:
    """``mzsre/mzsre_test_LANGUAGE.jsonl``: objects with ``question`` and ``answer``, made from the release."""
    return [
        {"question": row["question"], "answer": str(row["answer"])}
        for row in _objects(folder / "mzsre" / f"mzsre_test_{language}.jsonl")
    ]


def mzsre_scores(row: Document, results: list[str]) -> dict[str, float]:
    """Exact match and F1 of one generated answer."""
    answer = results[0].strip().split("\n")[0]
    return {"exact_match": exact_match(answer, [row["answer"]]), "token_f1": token_f1(answer, [row["answer"]])}


def _objects(path: Path) -> list[Document]:
    return [json.loads(line) for line in text_lines(path) if line.strip()]


def _translations(source: Path, target: Path, language: str) -> list[Document]:
    sides = [list(text_lines(path)) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise TaskError(f"{source} has {len(sides[0])} lines, {target} {len(sides[1])}; line i belongs to line i")
    name = LANGUAGE_NAMES[language]
    return [{"source": s, "target": t, "language": name} for s, t in zip(*sides, strict=True)]
