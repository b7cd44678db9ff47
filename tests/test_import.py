"""``import incline_fast`` costs little beyond torch, and every public name is there when it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import incline_fast

LOADED = """
import sys, torch
before = set(sys.modules)
import incline_fast
print(*sorted(set(sys.modules) - before))
"""


def test_nothing_but_torch_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "incline_fast.ops" in loaded
    others = {name.partition(".")[0] for name in loaded} - {"incline_fast", "torch"} - set(sys.stdlib_module_names)
    assert others == set()
    # torch's compiler takes seconds and is loaded by torch.compile itself.
    assert not {"torch._dynamo", "torch._inductor"} & loaded


@pytest.mark.parametrize("name", incline_fast.__all__)
def test_every_public_name_is_found_and_listed(name: str) -> None:
    assert getattr(incline_fast, name) is not None
    assert name in dir(incline_fast)


def test_type_checkers_see_the_names_where_they_are_loaded_from() -> None:
    tree = ast.parse(Path(incline_fast.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    seen = {node.module: tuple(alias.name for alias in node.names) for node in block.body}
    assert seen == {f"incline_fast.{module}": names for module, names in incline_fast._LAZY.items()}
    for module, names in seen.items():
        for name in names:
            assert getattr(incline_fast, name) is getattr(import_module(module), name)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'incline_fast' has no attribute 'fitt'"):
        incline_fast.fitt  # noqa: B018 - the look-up is what is tested
