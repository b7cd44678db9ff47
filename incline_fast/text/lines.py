"""Rows of text as readers return them: where each was read, and its two sides or what is wrong with it.

The one reader of lines: parallel text, lists of prompts and JSON lines all come through :func:`read_lines`.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "Problem",
    "TextError",
    "TextRow",
    "aligned",
    "bare_suffix",
    "json_object",
    "mapping",
    "read_lines",
    "tab_separated",
    "text_lines",
]

_LISTED = 10
_UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
_PACKED = (".zst", ".zip", ".7z", ".lz4", ".br", ".tar", ".tgz")
# In these encodings a line cannot be decoded alone: it may begin in the state in which the line before it ended.
_STATEFUL = ("iso2022", "hz", "utf_7", "utf-7")


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


class TextRow(NamedTuple):
    """What a reader yields: where it read, and either the two sides or what is wrong."""

    file: str
    line: int | None
    sides: tuple[str, str] | None
    wrong: str = ""


def bare_suffix(path: Path) -> str:
    """The suffix in lower case, without one of compression: ``.jsonl`` of ``TRAIN.JSONL.GZ``."""
    return (Path(path.stem) if path.suffix.lower() in _UNPACK else path).suffix.lower()


def read_lines(path: Path, encoding: str = "utf-8") -> list[TextRow]:
    """The lines of a file (``-``: of standard input) as rows whose two sides are the whole line.

    Lines end at LF or CRLF alone: ``str.splitlines`` would also split at U+2028 and others that occur inside sentences,
    and shift every later line against the other file. A byte order mark is dropped. Files that end in ``.gz``, ``.bz2``
    or ``.xz`` are unpacked.

    Args:
        path: the file.
        encoding: any name of a text encoding that Python knows.

    Raises:
        ValueError: the encoding is unknown.
        TextError: the file as a whole is not text in this encoding. A single line that is not is reported in its row.
        OSError: there is no such file.
    """
    codec = _codec(encoding)
    data = _content(path)
    _check_marks(str(path), data, codec)
    # Splitting bytes finds every bad line. It is right where a line feed is the byte 10 and nothing else has that byte.
    if "\n".encode(codec) == b"\n" and not codec.startswith(_STATEFUL):
        pieces = data.removeprefix(codecs.BOM_UTF8 if codec == "utf-8" else b"").split(b"\n")
        if len(pieces) == 1 and b"\r" in data.rstrip(b"\r\n"):
            raise TextError([_only_returns(str(path))])
        if not pieces[-1]:
            pieces.pop()
        return [_decoded(str(path), number, piece, codec) for number, piece in enumerate(pieces, 1)]
    text = _decoded_whole(str(path), data, codec)
    lines = text.removeprefix("\ufeff").split("\n")
    if len(lines) == 1 and "\r" in text.rstrip("\r\n"):
        raise TextError([_only_returns(str(path))])
    if not lines[-1]:
        lines.pop()
    stripped = (line.removesuffix("\r") for line in lines)
    return [TextRow(str(path), number, (line, line)) for number, line in enumerate(stripped, 1)]


def text_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a file (``-``: of standard input), every one of which must be text; see :func:`read_lines`.

    Raises:
        TextError: a line is not text in this encoding.
    """
    rows = read_lines(path, encoding)
    problems = [Problem(row.file, row.line, row.wrong) for row in rows if row.sides is None]
    if problems:
        raise TextError(problems)
    return [row.sides[0] for row in rows if row.sides is not None]


def _codec(encoding: str) -> str:
    """The name under which Python keeps an encoding that has many: ``utf_16``, ``U16``, ``utf16``."""
    try:
        info = codecs.lookup(encoding)
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"encoding is {encoding!r}, which Python does not know; allowed are such as utf-8") from None
    if not info._is_text_encoding:
        raise ValueError(f"encoding is {encoding!r}, which does not turn bytes into text; allowed are such as utf-8")
    return "utf-8" if info.name == "utf-8-sig" else info.name  # a mark is dropped either way


def _content(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        raise TextError([Problem(str(path), None, f"{suffix} files are not unpacked; allowed: {', '.join(_UNPACK)}")])
    data = path.read_bytes()
    if suffix not in _UNPACK:
        return data
    try:
        return _UNPACK[suffix](data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise TextError([Problem(str(path), None, f"not a whole {suffix} file: {error}")]) from error


def _check_marks(file: str, data: bytes, codec: str) -> None:
    """Refuse a byte order mark of another encoding where nothing in this one begins like it."""
    wide = codec.startswith(("utf-16", "utf-32"))
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and not wide and (codec == "utf-8" or b"\0" in data):
        raise TextError([Problem(file, None, f"the file starts with a UTF-16 byte order mark, not {codec}")])
    if data.startswith(codecs.BOM_UTF8) and codec != "utf-8":
        try:
            data.decode()
        except UnicodeDecodeError:
            return  # by chance the first three characters of another encoding
        raise TextError(
            [Problem(file, None, f"the file starts with a UTF-8 byte order mark and is UTF-8, not {codec}")]
        )


def _only_returns(file: str) -> Problem:
    return Problem(file, 1, "the file has carriage returns and no line feed; lines end at LF or CRLF")


def _decoded(file: str, number: int, line: bytes, codec: str) -> TextRow:
    try:
        text = line.removesuffix(b"\r").decode(codec)
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return TextRow(file, number, None, f"not {codec}: byte 0x{byte:02x} at position {error.start} ({error.reason})")
    except UnicodeError as error:  # what some codecs raise instead
        return TextRow(file, number, None, f"not {codec}: {error}")
    return TextRow(file, number, (text, text))


def _decoded_whole(file: str, data: bytes, codec: str) -> str:
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(codec, "replace").count("\n") + 1
        message = f"not {codec}: {error.reason} at byte {error.start}"
        raise TextError([Problem(file, line, message)]) from None
    except UnicodeError as error:
        raise TextError([Problem(file, None, f"not {codec}: {error}")]) from None
    if text.startswith("\ufffe"):
        raise TextError([Problem(file, None, f"not {codec}: its byte order mark says the other order of bytes")])
    return text


def aligned(left: TextRow, right: TextRow) -> TextRow:
    """One row of two files: the left line with the right line as its other side."""
    if left.sides is None:
        return left
    if right.sides is None:
        return right
    if not right.sides[0].strip():
        return right._replace(sides=None, wrong="the target sentence is empty")
    return left._replace(sides=(left.sides[0], right.sides[0]))


def tab_separated(line: TextRow, source: int, target: int) -> TextRow:
    """The columns ``source`` and ``target`` of a line, counted from 0."""
    if line.sides is None:
        return line
    cells = line.sides[0].split("\t")
    if len(cells) <= max(source, target):
        needed = max(source, target) + 1
        return line._replace(sides=None, wrong=f"{len(cells)} columns; expected at least {needed} divided by tabs")
    return line._replace(sides=(cells[source], cells[target]))


def json_object(line: TextRow, fields: tuple[str, str]) -> TextRow:
    """A line's JSON object and its two fields."""
    if line.sides is None:
        return line
    try:
        # Numbers are of no use here, and one of many digits would be refused by int().
        value = json.loads(line.sides[0], parse_int=lambda digits: 0, object_pairs_hook=_Members)
    except json.JSONDecodeError as error:
        return line._replace(sides=None, wrong=f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return line._replace(sides=None, wrong=f"JSON that cannot be read: {error}")
    return mapping(line.file, line.line, value, fields)


class _Members(dict[str, Any]):
    """A JSON object that remembers which names came twice, of which JSON says nothing and Python takes the last."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.twice = {name for name in self if names.count(name) > 1} if len(self) < len(names) else set()


def mapping(file: str, line: int | None, row: Any, fields: tuple[str, str]) -> TextRow:
    """The two fields of the mapping ``row``, text each; a dot in a field's name leads into a mapping inside it."""
    found = []
    for name in fields:
        value = row
        # A flattened table has a dot in the name itself.
        for part in [name] if hasattr(row, "keys") and name in row else name.split("."):
            if not hasattr(value, "keys"):
                return TextRow(file, line, None, f"{name!r} leads into a {type(value).__name__}; expected an object")
            if part not in value:
                return TextRow(file, line, None, f"no field {name!r}; there are {list(value.keys())}")
            if part in getattr(value, "twice", ()):
                return TextRow(file, line, None, f"the field {name!r} is there twice")
            value = value[part]
        if not isinstance(value, str):
            return TextRow(file, line, None, f"{name!r} is a {type(value).__name__}; expected a string")
        found.append(value)
    return TextRow(file, line, (found[0], found[1]))
