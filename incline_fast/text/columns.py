"""Which columns of a table, or fields of an object, are source and target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from incline_fast.arguments import whole
from incline_fast.text.lines import Problem, TextError

__all__ = ["column_number", "two_columns", "two_fields"]


def two_columns(columns: Sequence[Any]) -> list[int | str]:
    """The columns of source and target, by number or by name.

    Raises:
        TypeError, ValueError: not two numbers >= 0 or names.
    """
    if isinstance(columns, str) or len(columns) != 2:
        raise ValueError(f"columns is {columns!r}; expected two numbers from 0 or two names")
    wanted = [column if isinstance(column, str) else whole("a column", column) for column in columns]
    if any(not isinstance(column, str) and column < 0 for column in wanted):
        raise ValueError(f"columns is {columns!r}; columns are counted from 0, from the left")
    return wanted


def column_number(file: str, names: list[str], column: int | str) -> int:
    """The number of a column, which the header may name.

    Raises:
        TextError: the header does not name it exactly once.
    """
    if not isinstance(column, str):
        return column
    if names.count(column) != 1:
        wrong = f"no column named {column!r}" if column not in names else f"several columns named {column!r}"
        raise TextError([Problem(file, 1, f"{wrong}; the header has {names}")])
    return names.index(column)


def two_fields(fields: Sequence[str]) -> tuple[str, str]:
    """The fields of source and target.

    Raises:
        ValueError: not two names.
    """
    if isinstance(fields, str) or len(fields) != 2 or not all(isinstance(name, str) for name in fields):
        raise ValueError(f"fields is {fields!r}; expected the names of two fields")
    return fields[0], fields[1]
