"""The one writer of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table, ending in a line break; lines without any value beside their first cell are left out."""
    kept = [line for line in lines if any(line[1:])]
    if not kept:
        return ""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *kept]) + "\n"
