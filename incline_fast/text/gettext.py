r"""Parallel sentences from gettext catalogs (``.po``, ``.mo``), also inside wheels, which are read as data.

Free software translated by its users carries thousands of sentences with their translations. To be sentences again, the
messages are cleaned by these rules, in this order; each counts what it leaves out:

1. ``untranslated``: no translation, marked fuzzy or obsolete; ``plural``: a message with plural forms, whose wording
   depends on a number.
2. Markup is removed, HTML entities are decoded, white space is collapsed.
3. Placeholders (``%(name)s``, ``%d``, ``{name}``) are replaced by small numbers, the same on both sides;
   ``placeholders``: the two sides have different ones, or template code, a URL or an escape remains.
4. ``short``: the original has fewer than ``min_words`` words; ``same``: the translation is the original.
5. ``duplicate``: the original or the translation was seen before.
"""

from __future__ import annotations

import html
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import polib

from incline_fast.text.lines import Problem, TextError

__all__ = ["Messages", "messages"]

Entry: TypeAlias = polib.POEntry | polib.MOEntry

_TAG = re.compile(r"<[^<>]*>")
_PLACEHOLDER = re.compile(r"%\(\w+\)[sdif]|%[sdif]|\{\w*\}")
_CODE = re.compile(r"[%{}\\$<>]|\w+://")


@dataclass
class Messages:
    """Cleaned pairs ``(original, translation)`` and, per rule, how many messages it left out."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def messages(paths: Sequence[Path], language: str, min_words: int) -> Messages:
    """Read and clean every catalog of a language.

    Args:
        paths: catalogs, folders or zip files. In folders and zip files the catalogs of the language are those below
            ``<language>/LC_MESSAGES/``; a ``.mo`` file counts only where its ``.po`` file is missing.
        language: name of that folder.
        min_words: see the rules.

    Raises:
        TextError: there is no catalog of this language, or a file is damaged.
    """
    found = Messages()
    catalogs = 0
    seen: set[str] = set()
    for path in paths:
        for name, data in _catalogs(path, language):
            catalogs += 1
            for entry in _parse(name, data):
                _add(found, entry, min_words, seen)
    if not catalogs:
        names = ", ".join(str(path) for path in paths)
        raise TextError([Problem(names, None, f"no catalog of the language {language!r}")])
    return found


def _catalogs(path: Path, language: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every catalog of the language."""
    if not path.exists():
        raise TextError([Problem(str(path), None, "no such file or folder")])
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        for name in _chosen(list(files), language):
            yield str(files[name]), files[name].read_bytes()
    elif path.suffix.lower() in (".po", ".mo"):
        yield str(path), path.read_bytes()
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                for name in _chosen(archive.namelist(), language):
                    yield f"{path}/{name}", archive.read(name)
        # RuntimeError: a password; NotImplementedError: a compression that Python does not have.
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            message = f"neither a .po or .mo catalog nor a readable zip file: {error}"
            raise TextError([Problem(str(path), None, message)]) from error


def _chosen(names: list[str], language: str) -> list[str]:
    wanted = [PurePosixPath(name) for name in names if PurePosixPath(name).parts[-3:-1] == (language, "LC_MESSAGES")]
    sources = {path for path in wanted if path.suffix.lower() == ".po"}
    translated = {path.with_suffix("") for path in sources}
    compiled = {path for path in wanted if path.suffix.lower() == ".mo" and path.with_suffix("") not in translated}
    return sorted(map(str, sources | compiled))


def _parse(name: str, data: bytes) -> list[Entry]:
    encoding = polib.detect_encoding(data)
    try:
        if name.lower().endswith(".mo"):
            return list(polib.mofile(data, encoding=encoding))
        return list(polib.pofile(data.decode(encoding), encoding=encoding))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextError([Problem(name, line, f"not {encoding}, which the catalog declares: {error.reason}")]) from error
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise TextError([Problem(name, None, f"the catalog is damaged: {error}")]) from error
    except LookupError as error:
        raise TextError(
            [Problem(name, None, f"the catalog declares an encoding that is not known: {error}")]
        ) from error


def _add(found: Messages, entry: Entry, min_words: int, seen: set[str]) -> None:
    """Put a message into ``found``, as a pair or as left out; ``seen`` are the sides of all pairs, case folded."""
    reason, original, translation = _clean(entry, min_words)
    keys = {original.casefold(), translation.casefold()}
    if not reason and keys & seen:
        reason = "duplicate"
    if reason:
        found.left_out[reason] += 1
        return
    seen |= keys
    found.pairs.append((original, translation))


def _clean(entry: Entry, min_words: int) -> tuple[str, str, str]:
    """The first rule that leaves the message out ("" for none), and the cleaned sides."""
    if entry.msgid_plural:
        return "plural", "", ""
    if entry.obsolete or "fuzzy" in (entry.flags or ()) or not entry.msgstr:  # a .mo entry has no flags
        return "untranslated", "", ""
    original, translation = _plain(entry.msgid), _plain(entry.msgstr)
    names = Counter(_PLACEHOLDER.findall(original))
    if names != Counter(_PLACEHOLDER.findall(translation)):
        return "placeholders", original, translation
    # From 3: "1" and "2" would ask for singular and dual forms that the sentence does not have.
    numbers = {name: str(number) for number, name in enumerate(names, 3)}
    original, translation = (
        _PLACEHOLDER.sub(lambda match: numbers[match.group()], side) for side in (original, translation)
    )
    if _CODE.search(original) or _CODE.search(translation):
        return "placeholders", original, translation
    if len(original.split()) < min_words:
        return "short", original, translation
    if original.casefold() == translation.casefold():
        return "same", original, translation
    return "", original, translation


def _plain(message: str) -> str:
    """The message without markup and entities, on one line."""
    return " ".join(html.unescape(_TAG.sub(" ", message)).split())
