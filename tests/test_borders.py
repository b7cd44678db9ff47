"""The page of borders names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)*)`", (ROOT / "docs" / "borders.md").read_text("utf-8"))))


@pytest.mark.parametrize(("file", "path"), NAMED, ids=lambda value: value.rpartition("/")[2])
def test_the_page_names_tests_that_exist(file: str, path: str) -> None:
    scope: ast.AST = ast.parse((ROOT / file).read_text("utf-8"))
    for name in path.split("::")[1:]:
        named = (node for node in ast.walk(scope) if getattr(node, "name", None) == name)
        scope = next(named, None) or pytest.fail(f"{file} has no {name}")


def test_the_page_names_many() -> None:
    assert len(NAMED) > 40
