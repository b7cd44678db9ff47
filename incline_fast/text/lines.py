"""Rows of parallel text as readers find them: each has its place, and two sides or what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Problem", "Row", "TextError", "aligned", "json_object", "mapping", "read_lines", "tab_separated"]

_LISTED = 10


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used, and where it is.

    Attributes:
        file: name of the file or dataset.
        line: line number from 1 (row number for a dataset), None where there is none.
        message: what is wrong.
    """

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}" if self.line is None else f"{self.file}:{self.line}: {self.message}"


class TextError(ValueError):
    """Text that cannot be used; ``problems`` says where and why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:_LISTED]]
        if len(self.problems) > _LISTED:
            lines.append(f"... and {len(self.problems) - _LISTED} more")
        super().__init__("\n".join(lines))


class Row(NamedTuple):
    """What a reader yields: where it read, and either the two sides or what is wrong."""

    file: str
    line: int | None
    sides: tuple[str, str] | None
    wrong: str = ""


def read_lines(path: Path, encoding: str) -> list[Row]:
    """The lines of a file as rows whose two sides are the whole line.

    Lines end at LF or CRLF alone: ``str.splitlines`` would also split at U+2028 and others that occur inside sentences,
    and shift every later line against the other file.
    """
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and not encoding.lower().startswith("utf-16"):
        raise TextError([Problem(str(path), None, f"the file starts with a UTF-16 byte order mark, not {encoding}")])
    if encoding.lower().replace("-", "").startswith(("utf16", "utf32")):
        # A line feed is more than one byte here: decode before splitting.
        try:
            data, encoding = data.decode(encoding).encode(), "utf-8"
        except UnicodeDecodeError as error:
            raise TextError(
                [Problem(str(path), None, f"not {encoding}: {error.reason} at byte {error.start}")]
            ) from None
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [_decoded(str(path), number, line, encoding) for number, line in enumerate(lines, 1)]


def _decoded(file: str, number: int, line: bytes, encoding: str) -> Row:
    try:
        text = line.removesuffix(b"\r").decode(encoding)
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return Row(file, number, None, f"not {encoding}: byte 0x{byte:02x} at position {error.start} ({error.reason})")
    return Row(file, number, (text, text))


def aligned(left: Row, right: Row) -> Row:
    """One row of two files: the left line with the right line as its other side."""
    if left.sides is None:
        return left
    if right.sides is None:
        return right
    if not right.sides[0].strip():
        return right._replace(sides=None, wrong="the target sentence is empty")
    return left._replace(sides=(left.sides[0], right.sides[0]))


def tab_separated(line: Row, source: int, target: int) -> Row:
    """A line's two columns, counted from 0."""
    if line.sides is None:
        return line
    cells = line.sides[0].split("\t")
    if len(cells) <= max(source, target):
        needed = max(source, target) + 1
        return line._replace(sides=None, wrong=f"{len(cells)} columns; expected at least {needed} divided by tabs")
    return line._replace(sides=(cells[source], cells[target]))


def json_object(line: Row, fields: tuple[str, str]) -> Row:
    """A line's JSON object and its two fields."""
    if line.sides is None:
        return line
    try:
        value = json.loads(line.sides[0])
    except json.JSONDecodeError as error:
        return line._replace(sides=None, wrong=f"not JSON: {error.msg} at column {error.colno}")
    return mapping(line.file, line.line, value, fields)


def mapping(file: str, line: int | None, row: Any, fields: tuple[str, str]) -> Row:
    """The two fields of a mapping."""
    found = []
    for name in fields:
        value = row
        for part in name.split("."):
            if not hasattr(value, "keys"):
                return Row(file, line, None, f"{name!r} leads into a {type(value).__name__}; expected an object")
            if part not in value:
                return Row(file, line, None, f"no field {name!r}; there are {sorted(value)}")
            value = value[part]
        if not isinstance(value, str):
            return Row(file, line, None, f"{name!r} is a {type(value).__name__}; expected a string")
        found.append(value)
    return Row(file, line, (found[0], found[1]))
