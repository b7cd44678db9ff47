"""Tasks: prompts whose answer is one of a few words, or one of a few continuations, and readers for public sets.

A reader takes the folder that the caller names; nothing is downloaded. Rows keep the identifiers of their set, so that
the same row can be found in another language.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from incline_fast.states.shards import text_hash
from incline_fast.text.lines import text_lines
from incline_fast.text.prompts import DEFAULT_TEMPLATE, fill

__all__ = [
    "ContinuationTask",
    "Development",
    "LabelTask",
    "TaskError",
    "few_shot_template",
    "sib200",
    "tsv_labels",
    "xcopa",
    "xwinograd",
]

SIB200_WORDS = {"science/technology": "science"}
"""Label -> the word that stands for it in a prompt; labels that are single words stand for themselves.

Every word is one token. A sum over the three tokens of "science/technology" would handicap that class."""

SIB200_TEMPLATE = DEFAULT_TEMPLATE


class TaskError(ValueError):
    """The rows of a task cannot be used; the message says which and why."""


@dataclass(frozen=True)
class LabelTask:
    """n sentences, each with one of K labels.

    Attributes:
        name: of the set and its part, for tables.
        language: code.
        sentences: n texts.
        template: the prompt around each, with ``{sentence}`` in it; it ends where the label begins.
        labels: K words; a prompt is continued by a space and one of them.
        answers: n indices into ``labels``, None where the answers are not known.
        ids: n identifiers of the rows, the same in every language.
    """

    name: str
    language: str
    sentences: list[str]
    template: str
    labels: tuple[str, ...]
    answers: list[int] | None
    ids: list[str]

    def __post_init__(self) -> None:
        counts = {len(self.sentences), len(self.ids), *([] if self.answers is None else [len(self.answers)])}
        if len(counts) != 1 or not self.sentences:
            raise TaskError(
                f"{self.name}: sentences, ids and answers have {sorted(counts)} rows; expected as many, >= 1"
            )
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise TaskError(f"{self.name}: labels is {self.labels}; expected at least two different ones")

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def data_hash(self) -> str:
        """First 16 hex digits of a SHA-256 over everything that decides the scores."""
        answers = [] if self.answers is None else map(str, self.answers)
        return text_hash([self.template, *self.labels, *self.sentences, *answers])

    def select(self, rows: Sequence[int]) -> LabelTask:
        """The rows with these numbers, in this order."""
        return replace(
            self,
            sentences=[self.sentences[i] for i in rows],
            answers=None if self.answers is None else [self.answers[i] for i in rows],
            ids=[self.ids[i] for i in rows],
        )

    def with_template(self, template: str) -> LabelTask:
        """The same rows in another prompt."""
        return replace(self, template=template)


@dataclass(frozen=True)
class Development:
    """What settings are chosen on: a task in the source language and the translations of its sentences.

    Attributes:
        task: source sentences in their template, label words, and the answers where they are known.
        target: n sentences, the translations.
    """

    task: LabelTask
    target: list[str]

    def __post_init__(self) -> None:
        if len(self.target) != len(self.task):
            raise TaskError(f"{self.task.name} has {len(self.task)} sentences and {len(self.target)} translations")


@dataclass(frozen=True)
class ContinuationTask:
    """n rows, each with K prompts and their continuations, of which one is right.

    Attributes:
        name, language: see :class:`LabelTask`.
        prompts: ``[n][K]``; equal within a row where only the continuation differs.
        continuations: ``[n][K]``, appended to the prompts as they are.
        answers: n indices of the right one.
        ids: n identifiers.
    """

    name: str
    language: str
    prompts: list[list[str]]
    continuations: list[list[str]]
    answers: list[int]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def data_hash(self) -> str:
        """First 16 hex digits of a SHA-256 over everything that decides the scores."""
        rows = zip(self.prompts, self.continuations, self.answers, strict=True)
        return text_hash(text for prompts, ends, answer in rows for text in (*prompts, *ends, str(answer)))


def few_shot_template(examples: LabelTask, separator: str = "\n\n") -> str:
    """A template that shows labelled examples first: a constant beginning, which runs once for all sentences.

    Args:
        examples: rows with answers, in the template that the sentence will have too.
        separator: between examples, and before the sentence.

    Raises:
        TaskError: an example has no answer, or contains ``{sentence}``.
    """
    if examples.answers is None:
        raise TaskError(f"{examples.name}: examples need answers")
    shown = [
        fill(examples.template, sentence) + " " + examples.labels[answer]
        for sentence, answer in zip(examples.sentences, examples.answers, strict=True)
    ]
    if any("{sentence}" in example for example in shown):
        raise TaskError(f"{examples.name}: an example contains {{sentence}}")
    return separator.join([*shown, examples.template])


def sib200(
    folder: str | PathLike[str], language: str, splits: Sequence[str], template: str = SIB200_TEMPLATE
) -> LabelTask:
    """Topic classification, SIB-200 (Adelani et al., EACL 2024, arXiv 2309.07445).

    Args:
        folder: with one folder per language.
        language: name of such a folder: ``fra_Latn``.
        splits: of ``train``, ``dev``, ``test``; read in this order.
        template: the prompt.

    Raises:
        TaskError: a file has other columns.
        FileNotFoundError: a file is missing.
    """
    rows = [row for split in splits for row in _table(Path(folder) / language / f"{split}.tsv")]
    try:
        found = [(row["index_id"], row["category"], row["text"]) for row in rows]
    except KeyError as error:
        raise TaskError(f"{Path(folder) / language}: no column {error}; expected index_id, category, text") from error
    names = sorted({category for _, category, _ in found})
    return LabelTask(
        f"sib200-{'+'.join(splits)}",
        language,
        [text for _, _, text in found],
        template,
        tuple(SIB200_WORDS.get(name, name) for name in names),
        [names.index(category) for _, category, _ in found],
        [index for index, _, _ in found],
    )


def tsv_labels(
    path: str | PathLike[str],
    template: str,
    *,
    columns: tuple[str, str | None] = ("source", "label"),
    labels: Sequence[str] = (),
    language: str = "",
) -> LabelTask:
    """Your own task: a tab-separated file with a header.

    Args:
        path: the file.
        template: the prompt.
        columns: names of the columns with the sentence and the label; None: no labels are known.
        labels: the words, in the order that the results use; by default those of the file, sorted.
        language: recorded.

    Raises:
        TaskError: a column is missing, or a label is not one of ``labels``; the message names the line.
    """
    rows = _table(Path(path))
    text, label = columns
    missing = [column for column in columns if column is not None and rows and column not in rows[0]]
    if missing or not rows:
        raise TaskError(f"{path}: no column {missing}; the header is {list(rows[0]) if rows else 'missing'}")
    words = tuple(labels) or tuple(sorted({row[label] for row in rows} if label else set()))
    answers = None
    if label is not None:
        for line, row in enumerate(rows, 2):
            if row[label] not in words:
                raise TaskError(f"{path}, line {line}: label {row[label]!r} is not one of {', '.join(words)}")
        answers = [words.index(row[label]) for row in rows]
    sentences = [row[text] for row in rows]
    return LabelTask(Path(path).stem, language, sentences, template, words, answers, [str(i) for i in range(len(rows))])


XCOPA_WORDS = {
    "en": ("because", "so"), "et": ("sest", "seega"), "id": ("karena", "maka"), "it": ("perché", "quindi"),
    "sw": ("kwa sababu", "kwa hiyo"), "ta": ("காரணமாக", "எனவே"), "th": ("เพราะ", "ดังนั้น"), "tr": ("çünkü", "bu yüzden"),
    "vi": ("bởi vì", "vì vậy"), "zh": ("因为", "所以"),
}  # fmt: skip
"""Language -> the words before a cause and before an effect."""


def xcopa(folder: str | PathLike[str], language: str, split: str) -> ContinuationTask:
    """Choice of a cause or an effect, XCOPA (Ponti et al., EMNLP 2020): ``premise, because | so, choice``.

    Args:
        folder: with one folder per language.
        language: two letters, one of :data:`XCOPA_WORDS`.
        split: ``val`` or ``test``.

    Raises:
        TaskError: the language has no connecting words here.
    """
    if language not in XCOPA_WORDS:
        raise TaskError(f"language is {language!r}; allowed: {', '.join(XCOPA_WORDS)}")
    rows = _objects(Path(folder) / language / f"{split}.{language}.jsonl")
    because, so = XCOPA_WORDS[language]
    prompts, ends = [], []
    for row in rows:
        word = because if row["question"] == "cause" else so
        prompts.append([f"{row['premise'].rstrip('.。')} {word}"] * 2)
        ends.append([" " + row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2")])
    return ContinuationTask(
        f"xcopa-{split}",
        language,
        prompts,
        ends,
        [int(row["label"]) for row in rows],
        [str(row["idx"]) for row in rows],
    )


def xwinograd(path: str | PathLike[str], language: str) -> ContinuationTask:
    """Pronoun resolution, XWinograd (Tikhonov and Ryabinin, Findings of ACL 2021).

    Each candidate stands in the place of the pronoun; what follows the pronoun is scored.

    Args:
        path: ``dataset.tsv``.
        language: ``en``, ``fr``, ``jp``, ``pt``, ``ru`` or ``zh``.

    Raises:
        TaskError: there is no row of this language.
    """
    rows = winograd_rows(path, language)
    return ContinuationTask(
        "xwinograd",
        language,
        [[row.before + candidate for candidate in row.candidates] for row in rows],
        [[row.after] * 2 for row in rows],
        [row.answer for row in rows],
        [str(i) for i in range(len(rows))],
    )


@dataclass(frozen=True)
class WinogradRow:
    """A sentence without its pronoun.

    Attributes:
        before, after: the text around the pronoun.
        candidates: two, one of which it stands for.
        answer: the number of that one.
    """

    before: str
    after: str
    candidates: tuple[str, str]
    answer: int


def winograd_rows(path: str | PathLike[str], language: str) -> list[WinogradRow]:
    """Rows of ``dataset.tsv`` with two candidates, one of them right, and a pronoun that is found in the sentence.

    Raises:
        TaskError: there is no such row of this language.
    """
    found = []
    for row in (line.split("\t") for line in text_lines(Path(path))):
        if row[0] != language:
            continue
        candidates = json.loads(row[6])
        right = [bool(candidate[3]) for candidate in candidates]
        place = _place(row[3], json.loads(row[4]), json.loads(row[5]))
        if len(candidates) == 2 and sum(right) == 1 and place is not None:
            found.append(WinogradRow(*place, (candidates[0][0], candidates[1][0]), right.index(True)))
    if not found:
        raise TaskError(f"{path} has no usable row of {language!r}")
    return found


def _place(sentence: str, tokens: Sequence[str], pronoun: Any) -> tuple[str, str] | None:
    """The text before and after the pronoun, found by its token number; None if the tokens do not fit the sentence."""
    position = 0
    for number, token in enumerate(tokens):
        found = sentence.find(token, position)
        if found < 0:
            return None
        if number == pronoun[1][0]:
            end = found + len(pronoun[0])
            matches = sentence[found:end] == pronoun[0] and sentence[end:].strip()
            return (sentence[:found], sentence[end:]) if matches else None
        position = found + len(token)
    return None


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(text_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE))


def _objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_lines(path) if line.strip()]
