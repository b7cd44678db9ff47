"""The folders' design, read from the sources: imports run one way, and torch and inline PTX stay where they belong."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A part of the package imports from itself and from those before it.
PARTS = (
    *("arguments", "files", "distributed", "torch_modes", "packing", "maps", "ops", "nn", "solver", "text"),
    *("models", "states", "alignment", "fitting", "intervention", "evaluation", "serving", "bench", "cli"),
    *("incline_fast", "__main__"),
)
ABOVE = {"benchmarks", "demo", "docs", "emulator", "tests"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file and whether for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in MODULES else str(node.module)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


MODULES = {name_of(path): path for path in sorted((ROOT / "incline_fast").rglob("*.py"))}
IMPORTS = {module: set(imported(path)) - {module} for module, path in MODULES.items()}


def test_there_is_no_circle() -> None:
    inside = {module: found & MODULES.keys() for module, found in IMPORTS.items()}
    assert len(list(TopologicalSorter(inside).static_order())) == len(MODULES)


def test_nothing_imports_upward() -> None:
    upward = [
        f"{module} imports {other}"
        for module, found in IMPORTS.items()
        for other in found
        if other.split(".")[0] in ABOVE
        or (other in MODULES and PARTS.index(part_of(other)) > PARTS.index(part_of(module)))
    ]
    assert upward == []


def test_ops_and_solver_know_nothing_of_models() -> None:
    assert [module for module, found in IMPORTS.items() if "transformers" in {name.split(".")[0] for name in found}]
    for module, found in IMPORTS.items():
        if part_of(module) in ("ops", "solver", "maps", "packing", "nn"):
            assert {name.split(".")[0] for name in found} & {"transformers", "tokenizers"} == set(), module


def test_the_emulator_runs_without_pytest_and_without_the_tests() -> None:
    helpers = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"cuda", "pytest", "tests"}
    for path in (ROOT / "emulator").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & helpers, path


def folders_with(pattern: str) -> set[str]:
    """Folders below csrc whose sources hold a pattern."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
    assert len(sources) > 40
    return {
        str(path.parent.relative_to(ROOT / "csrc"))
        for path in sources
        if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_only_the_bindings_include_torch() -> None:
    assert folders_with(r'^\s*#\s*include\s*[<"](?:torch|ATen|c10)/') == {"bindings"}


def test_inline_ptx_is_in_one_folder() -> None:
    assert {folder for folder in folders_with(r"\basm\b") if folder.startswith("cuda")} == {"cuda/arch"}


def test_test_files_have_names_of_their_own() -> None:
    """They belong to no package: pytest imports the second of a name as the first, and collects nothing of it."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 100
    assert sorted({name for name in names if names.count(name) > 1}) == []
