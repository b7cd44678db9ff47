"""Parallel text: pairs of sentences from line-aligned files, TSV, JSONL, datasets and gettext catalogs.

Every reader goes through one gate. A row that cannot be used - an empty side, a wrong number of fields, bytes that are
not the declared encoding, a pair seen before - is a :class:`Problem` with its file and line number. ``on_problem``
decides what becomes of it: ``"error"`` raises a :class:`TextError` that lists them all, ``"skip"`` leaves the row out
and keeps the list in ``ParallelText.problems``. What makes the alignment itself doubtful (files of unequal length, a
file that is not text) is always an error.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from incline_fast.text.columns import column_number, two_columns, two_fields
from incline_fast.text.gettext import messages
from incline_fast.text.lines import (
    Problem,
    TextError,
    TextRow,
    aligned,
    bare_suffix,
    json_object,
    mapping,
    read_lines,
    tab_separated,
)

__all__ = ["OnProblem", "ParallelText", "Problem", "Split", "TextError"]

OnProblem = Literal["error", "skip"]

_OTHER_KINDS = (".csv", ".json", ".parquet", ".arrow", ".xlsx", ".xml", ".tmx", ".html", ".po", ".mo", ".safetensors")


class Split(NamedTuple):
    """Three disjoint parts of a parallel text."""

    fit: ParallelText
    dev: ParallelText
    test: ParallelText


@dataclass(frozen=True)
class ParallelText:
    """n sentences and their n translations.

    Attributes:
        source: sentences of the source language.
        target: their translations; ``target[i]`` belongs to ``source[i]``.
        source_language: code or name, None if unknown.
        target_language: code or name, None if unknown.
        provenance: where the text comes from, in words.
        problems: rows that were left out because of ``on_problem="skip"``.
        left_out: reason -> number of catalog entries that the cleaning rules left out.
    """

    source: list[str]
    target: list[str]
    source_language: str | None = None
    target_language: str | None = None
    provenance: str = ""
    problems: tuple[Problem, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise ValueError(
                f"source has {len(self.source)} sentences, target {len(self.target)}; they must be parallel"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(zip(self.source, self.target, strict=True))

    @classmethod
    def from_files(
        cls,
        source: str | PathLike[str],
        target: str | PathLike[str],
        *,
        encoding: str = "utf-8",
        on_problem: OnProblem = "error",
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> Self:
        """Read two line-aligned files: line i of one is the translation of line i of the other.

        Args:
            source: file of the source language.
            target: file of the target language.
            encoding: of both files. A UTF-8 byte order mark is dropped.
            on_problem: ``"error"`` or ``"skip"``.
            source_language: recorded.
            target_language: recorded.

        Raises:
            TextError: the files have unequal numbers of lines, are not text, or have unusable lines (see the module).
        """
        sides = [read_lines(Path(path), encoding) for path in (source, target)]
        counts = [len(lines) for lines in sides]
        if counts[0] != counts[1]:
            raise TextError(
                [
                    Problem(
                        str(path),
                        count,
                        f"the file ends after {count} lines, the other one after {other}; "
                        "which lines belong together cannot be known",
                    )
                    for path, count, other in ((source, counts[0], counts[1]), (target, counts[1], counts[0]))
                ]
            )
        rows = (aligned(left, right) for left, right in zip(*sides, strict=True))
        return cls._gather(rows, on_problem, f"{source} and {target}", source_language, target_language)

    @classmethod
    def from_tsv(
        cls,
        path: str | PathLike[str],
        *,
        columns: tuple[int | str, int | str] = (0, 1),
        encoding: str = "utf-8",
        on_problem: OnProblem = "error",
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> Self:
        r"""Read one file of lines ``source TAB target``. Quotes mean nothing; further columns are ignored.

        Args:
            path: the file.
            columns: numbers of the two columns from 0, or their names in the first line, which then is a header.
            encoding: of the file.
            on_problem: ``"error"`` or ``"skip"``.
            source_language: recorded.
            target_language: recorded.

        Raises:
            TypeError, ValueError: columns is not two numbers >= 0 or names.
            TextError: a column is not in the header, or unusable lines (see the module).
        """
        wanted = two_columns(columns)
        lines = read_lines(Path(path), encoding)
        if any(isinstance(column, str) for column in wanted):
            header, lines = lines[:1], lines[1:]
            if header and header[0].sides is None:
                raise TextError([Problem(str(path), 1, header[0].wrong)])
            names = header[0].sides[0].split("\t") if header and header[0].sides else []
            wanted = [column_number(str(path), names, column) for column in wanted]
        rows = (tab_separated(line, int(wanted[0]), int(wanted[1])) for line in lines)
        return cls._gather(rows, on_problem, str(path), source_language, target_language)

    @classmethod
    def from_jsonl(
        cls,
        path: str | PathLike[str],
        *,
        fields: tuple[str, str] = ("source", "target"),
        encoding: str = "utf-8",
        on_problem: OnProblem = "error",
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> Self:
        """Read one JSON object per line.

        Args:
            path: the file.
            fields: names of the two fields; a dot goes into a nested object (``"translation.fr"``).
            encoding: of the file.
            on_problem: ``"error"`` or ``"skip"``.
            source_language: recorded.
            target_language: recorded.

        Raises:
            TextError: unusable lines (see the module).
        """
        names = two_fields(fields)
        rows = (json_object(line, names) for line in read_lines(Path(path), encoding))
        return cls._gather(rows, on_problem, str(path), source_language, target_language)

    @classmethod
    def from_pairs(cls, path: str | PathLike[str], **options: Any) -> Self:
        """Read one file of pairs by its suffix: ``.jsonl`` and ``.ndjson`` as JSON lines, any other as TSV.

        Suffixes count in any case, and before ``.gz``, ``.bz2`` or ``.xz``, which are unpacked.

        Args:
            path: the file.
            **options: those of :meth:`from_jsonl` or :meth:`from_tsv`.

        Raises:
            ValueError: a suffix of a kind that is neither (``.csv``, ``.json``, ``.parquet``, ...).
            TextError: unusable lines (see the module).
        """
        suffix = bare_suffix(Path(path))
        if suffix in _OTHER_KINDS:
            raise ValueError(
                f"{path} ends in {suffix}; expected lines of source, tab, target (.tsv) or of JSON (.jsonl, .ndjson)"
            )
        return (cls.from_jsonl if suffix in (".jsonl", ".ndjson") else cls.from_tsv)(path, **options)

    @classmethod
    def from_dataset(
        cls,
        dataset: Iterable[Any],
        *,
        fields: tuple[str, str] = ("source", "target"),
        name: str = "dataset",
        on_problem: OnProblem = "error",
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> Self:
        """Take the pairs of a ``datasets.Dataset``, streaming or not, or of any iterable of mappings.

        Args:
            dataset: its rows.
            fields: names of the two columns; a dot goes into a nested column (``"translation.fr"``).
            name: what messages call the dataset.
            on_problem: ``"error"`` or ``"skip"``.
            source_language: recorded.
            target_language: recorded.

        Raises:
            TextError: unusable rows (see the module), counted from 1.
        """
        names = two_fields(fields)
        rows = (mapping(name, number, row, names) for number, row in enumerate(dataset, 1))
        return cls._gather(rows, on_problem, name, source_language, target_language)

    @classmethod
    def from_gettext(
        cls,
        paths: str | PathLike[str] | Sequence[str | PathLike[str]],
        language: str,
        *,
        original_language: str = "en",
        min_words: int = 3,
    ) -> Self:
        """Take translated messages out of gettext catalogs: source = translations, target = originals.

        See :mod:`incline_fast.text.gettext` for where catalogs are looked for and for the cleaning rules.

        Args:
            paths: ``.po`` or ``.mo`` files, folders, or wheels and other zip files, read as data and never imported.
            language: which translation, as folders name it: ``fr``, ``pt_BR``, ``zh_Hans``.
            original_language: recorded as the target language.
            min_words: shorter originals are left out.

        Raises:
            TextError: a file is damaged, or there is no catalog of this language.
        """
        places = [paths] if isinstance(paths, str | PathLike) else list(paths)
        found = messages([Path(place) for place in places], language, min_words)
        provenance = ", ".join(Path(place).name for place in places)
        return cls(
            [translation for _, translation in found.pairs],
            [original for original, _ in found.pairs],
            language,
            original_language,
            f"gettext catalogs of {provenance}",
            left_out=dict(found.left_out),
        )

    def select(self, indices: Iterable[int]) -> ParallelText:
        """The pairs with these indices, in this order."""
        chosen = list(indices)
        return ParallelText(
            [self.source[i] for i in chosen],
            [self.target[i] for i in chosen],
            self.source_language,
            self.target_language,
            self.provenance,
        )

    def split(self, *, dev: int, test: int, fit: int | None = None, seed: int = 0) -> Split:
        """Draw disjoint parts at random, such that no sentence of one side occurs in two parts.

        Pairs that share a source or a target sentence (up to case and white space) stay together, so a held-out
        sentence was never seen, in either language, during the fit.

        Args:
            dev: number of pairs to choose alpha and lambda on.
            test: number of pairs to report on.
            fit: number of pairs to fit; None for all that remain.
            seed: of the draw.

        Raises:
            ValueError: there are too few pairs.
        """
        wanted = {"test": test, "dev": dev, "fit": len(self) if fit is None else fit}
        if min(wanted.values()) < 0:
            raise ValueError(f"fit={fit}, dev={dev}, test={test}; expected numbers of pairs >= 0")
        groups = self._groups()
        random.Random(seed).shuffle(groups)
        parts: dict[str, list[int]] = {name: [] for name in wanted}
        for group in groups:
            room = (name for name, size in wanted.items() if len(parts[name]) + len(group) <= size)
            part = next(room, None)
            if part is not None:
                parts[part] += group
        short = {n: len(p) for n, p in parts.items() if len(p) < wanted[n] and not (n == "fit" and fit is None)}
        if short or not parts["fit"]:
            raise ValueError(
                f"fit={fit}, dev={dev}, test={test} of {len(self)} pairs; without sharing a sentence the parts would "
                f"have {', '.join(f'{name} {len(part)}' for name, part in parts.items())}"
            )
        return Split(self.select(parts["fit"]), self.select(parts["dev"]), self.select(parts["test"]))

    def _groups(self) -> list[list[int]]:
        """Indices of pairs connected by a common sentence, smallest index first."""
        parent = list(range(len(self)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        first: dict[tuple[int, str], int] = {}
        for i, pair in enumerate(self):
            for side, sentence in enumerate(pair):
                j = first.setdefault((side, _key(sentence)), i)
                low, high = sorted((root(i), root(j)))
                parent[high] = low
        groups: dict[int, list[int]] = {}
        for i in range(len(self)):
            groups.setdefault(root(i), []).append(i)
        return list(groups.values())

    @classmethod
    def _gather(
        cls,
        rows: Iterable[TextRow],
        on_problem: OnProblem,
        provenance: str,
        source_language: str | None,
        target_language: str | None,
    ) -> Self:
        """Check every row, as the module describes."""
        if on_problem not in get_args(OnProblem):
            raise ValueError(f"on_problem is {on_problem!r}; allowed: {', '.join(map(repr, get_args(OnProblem)))}")
        problems: list[Problem] = []
        seen: dict[tuple[str, str], int | None] = {}
        for row in rows:
            wrong = row.wrong
            if row.sides is not None:
                pair = (row.sides[0].strip(), row.sides[1].strip())
                wrong = _unusable(pair)
                if not wrong and pair in seen:
                    wrong = f"the same pair is in line {seen[pair]}"
                if not wrong:
                    seen[pair] = row.line
            if wrong:
                problems.append(Problem(row.file, row.line, wrong))
        if problems and on_problem == "error":
            raise TextError(problems)
        sources, targets = [source for source, _ in seen], [target for _, target in seen]
        return cls(sources, targets, source_language, target_language, provenance, tuple(problems))


def _unusable(pair: tuple[str, str]) -> str:
    for side, text in zip(("source", "target"), pair, strict=True):
        if not text:
            return f"the {side} sentence is empty"
        if "\0" in text:
            return f"the {side} sentence has a NUL character; is this file text?"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # JSON can write halves of a surrogate pair, which no tokenizer takes.
            return f"the {side} sentence is not valid Unicode: {error.reason} at position {error.start}"
    return ""


def _key(sentence: str) -> str:
    return " ".join(sentence.casefold().split())
