"""Libraries that were brought along are used if they load and belong to these sources; otherwise they are built."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.gpu import libraries
from benchmarks.gpu.libraries import install, make_debug_package, unpack_wheels, why_not_loadable
from benchmarks.gpu.pack_contents import LIBRARIES, Manifest, sources_digest
from benchmarks.gpu.tables import read

SETUP = """
from pathlib import Path
import os
for name in ("_C.abi3.so", "_cuda.abi3.so"):
    (Path("incline_fast") / name).write_text("built for " + os.environ["INCLINE_FAST_CUDA_ARCHS"])
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source tree with something to compile, and a package without libraries."""
    root = tmp_path / "root"
    for folder in ("csrc", "incline_fast"):
        (root / folder).mkdir(parents=True)
    (root / "csrc" / "kernel.cu").write_text("kernel")
    (root / "setup.py").write_text(SETUP)
    return root


@pytest.fixture
def pack(tmp_path: Path, root: Path) -> Path:
    """What was brought along, built from these sources."""
    pack = tmp_path / "pack"
    for folder in ("lib", "lib-debug", "wheels"):
        (pack / folder).mkdir(parents=True)
    for name in LIBRARIES:
        (pack / "lib" / name).write_text("brought along")
    (pack / "lib-debug" / LIBRARIES[1]).write_text("debug")
    Manifest("abc", sources_digest(root), "2.11", "13.0").write(pack)
    return pack


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are taken for libraries that load unless they say that they do not."""

    def why(paths: list[Path]) -> str:
        return next((f"{path.name} is bad" for path in paths if not path.exists() or "bad" in path.read_text()), "")

    monkeypatch.setattr(libraries, "why_not_loadable", why)


def content(package: Path) -> list[str]:
    return [(package / name).read_text() for name in LIBRARIES if (package / name).exists()]


def test_a_file_that_is_no_library_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "_C.abi3.so").write_text("this is not a library")
    assert "file too short" in why_not_loadable([tmp_path / "_C.abi3.so"])
    assert why_not_loadable([tmp_path / "_C.abi3.so", tmp_path / "absent.so"]) == "not there: absent.so"
    assert "No such file" in why_not_loadable([tmp_path / "_C.abi3.so"], python="/no/such/python")


def test_what_was_brought_along_is_used_if_it_loads(root: Path, pack: Path, loadable: None) -> None:
    found = install(root / "incline_fast", pack, root, build=True)
    assert found == {"brought along": "used", "problem": ""}
    assert content(root / "incline_fast") == ["brought along"] * 2


def test_what_does_not_load_is_built(root: Path, pack: Path, loadable: None) -> None:
    (pack / "lib" / LIBRARIES[1]).write_text("bad")
    found = install(root / "incline_fast", pack, root, build=True)
    assert found == {"brought along": "_cuda.abi3.so is bad", "built": "yes", "problem": ""}
    assert content(root / "incline_fast") == ["built for 90"] * 2


@pytest.mark.parametrize("change", ["source", "manifest", "no pack"])
def test_what_belongs_to_other_sources_is_built(change: str, root: Path, pack: Path, loadable: None) -> None:
    if change == "source":
        (root / "csrc" / "kernel.cu").write_text("another kernel")
    elif change == "manifest":
        (pack / "manifest.json").write_text("{")
    found = install(root / "incline_fast", None if change == "no pack" else pack, root, build=True)
    assert found["built"] == "yes"
    assert found["brought along"] == ("none" if change == "no pack" else "built from other sources than these")


def test_a_build_that_fails_leaves_a_package_that_imports(root: Path, loadable: None) -> None:
    (root / "setup.py").write_text(SETUP.replace("built for", "bad") + "raise SystemExit(3)")
    found = install(root / "incline_fast", None, root, build=True)
    assert found["problem"] == "the build ended with status 3"
    assert not (root / "incline_fast" / LIBRARIES[0]).exists()


def test_nothing_is_built_if_that_was_not_asked_for(root: Path, loadable: None) -> None:
    found = install(root / "incline_fast", None, root, build=False)
    assert (found["built"], found["problem"]) == ("no, as asked", "")
    assert not content(root / "incline_fast")


def test_wheels_are_unpacked_and_a_broken_one_is_left_out(pack: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack / "wheels" / "peer-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("peer/__init__.py", "")
    (pack / "wheels" / "broken-1-py3-none-any.whl").write_text("broken")
    assert unpack_wheels(pack, tmp_path / "site") == ["peer-1-py3-none-any.whl"]
    assert (tmp_path / "site" / "peer" / "__init__.py").exists()


def test_the_debug_build_has_a_package_of_its_own(root: Path, pack: Path, tmp_path: Path, loadable: None) -> None:
    package = root / "incline_fast"
    (package / "ops").mkdir()
    (package / "ops" / "a.py").write_text("a")
    install(package, pack, root, build=True)
    assert make_debug_package(package, pack, tmp_path / "debug") == ""
    assert content(tmp_path / "debug" / "incline_fast") == ["brought along", "debug"]
    assert (tmp_path / "debug" / "incline_fast" / "ops" / "a.py").read_text() == "a"
    assert content(package) == ["brought along"] * 2
    (pack / "lib-debug" / LIBRARIES[1]).unlink()
    assert "is bad" in make_debug_package(package, pack, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_stage_writes_down_what_happened(
    root: Path, pack: Path, tmp_path: Path, loadable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "ROOT", root)
    arguments = Namespace(package=root / "incline_fast", pack=pack, output=tmp_path, work=tmp_path, no_build=False)
    assert libraries.main(arguments) == 0
    facts = {row["name"]: row["value"] for row in read(tmp_path / "environment.csv")}
    assert facts["brought along"] == "used"
    assert facts["debug build"] == "used by the small checks"
    (root / "setup.py").write_text("raise SystemExit('no compiler')")
    assert libraries.main(arguments) == 1
