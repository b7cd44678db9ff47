"""CSV files that grow line by line and are whole after a kill at any moment. Standard library alone.

Every addition is one write and one flush to the disk. Should a crash cut a line short nevertheless, the next addition
removes the stump, and :func:`read` leaves it out.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["append", "read"]


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows to the table at ``path``, which begins with a line of its columns.

    Args:
        path: the file; made if it is not there.
        columns: names of the columns, the same in every call for this file.
        rows: values by column; floats keep five digits, None is empty.

    Raises:
        ValueError: a row has other columns, or the file was begun with other ones.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        header = _cut_to_whole_lines(handle)
        if not header:
            writer.writeheader()
        elif header != list(columns):
            raise ValueError(f"{path} has the columns {header}; expected {list(columns)}")
        writer.writerows({name: _written(value) for name, value in row.items()} for row in rows)
        os.write(handle, text.getvalue().encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table, without a last line that a crash has cut short; empty if there is no file."""
    if not path.exists():
        return []
    whole = _whole_lines(path.read_bytes())
    return list(csv.DictReader(io.StringIO(whole.decode(errors="replace"), newline="")))


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _cut_to_whole_lines(handle: int) -> list[str]:
    """The columns of a table that was begun, after what follows the last line break has been cut off."""
    data = os.pread(handle, os.fstat(handle).st_size, 0)
    whole = _whole_lines(data)
    if len(whole) < len(data):
        os.ftruncate(handle, len(whole))
    return next(csv.reader([whole.decode(errors="replace").partition("\n")[0]]), [])


def _written(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.5g}"
    # A line break inside a value would let a reader take a part of a line for a whole one.
    return " / ".join(value.split("\n")) if isinstance(value, str) else value
