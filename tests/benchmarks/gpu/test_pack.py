"""What travels to a machine with a GPU: it belongs to the sources, it is small enough, and the command is printed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import pack
from benchmarks.gpu.pack_contents import LIBRARIES, Manifest, sources_digest

SETUP = """
import os, sys
from pathlib import Path
(target,) = (Path(word.partition("=")[2]) for word in sys.argv if word.startswith("--build-lib="))
(target / "incline_fast").mkdir(parents=True, exist_ok=True)
for name in ("_C.abi3.so", "_cuda.abi3.so"):
    about = [name, os.environ["INCLINE_FAST_CUDA_ARCHS"], os.environ["INCLINE_FAST_SPIN_LIMIT"]]
    (target / "incline_fast" / name).write_text(" ".join(about))
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with a setup.py that writes instead of compiling; nothing is fetched and nothing is stripped."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cu").write_text("kernel")
    (tmp_path / "setup.py").write_text(SETUP)
    (tmp_path / ".gitignore").write_text("build/\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(pack, "ROOT", tmp_path)
    monkeypatch.setattr(pack.shutil, "which", lambda tool: None)
    monkeypatch.setattr(pack, "download", lambda folder: None)
    real = pack._told

    def told(command: list[str]) -> str:
        answers = {sys.executable: "2.11.0", "nvcc": "nvcc\nrelease 13.0, V13\nbuild"}
        return answers.get(command[0]) or real(command)

    monkeypatch.setattr(pack, "_told", told)
    return tmp_path


def test_all_that_travels_is_prepared(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkout / "build" / "gpu-pack"
    assert pack.main(folder, limit=1) == 0
    assert [(folder / "lib" / name).read_text() for name in LIBRARIES] == [f"{name} 90 " for name in LIBRARIES]
    debug = folder / "lib-debug"
    assert [path.name for path in debug.iterdir()] == [LIBRARIES[1]]
    assert (debug / LIBRARIES[1]).read_text().split()[2] == pack.SPIN_LIMIT
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.sources == sources_digest(checkout)
    assert manifest.nvcc == "release 13.0, V13"
    assert "-dirty" not in manifest.commit
    printed = capsys.readouterr().out
    (command,) = (line.strip() for line in printed.splitlines() if "benchmarks.gpu" in line)
    assert len(command) < 2000
    words = shlex.split(command)
    assert words[0] == f"INCLINE_FAST_COMMIT={manifest.commit}"
    assert words[words.index("--pack") + 1] == "build/gpu-pack"
    assert "build/gpu-pack " in printed


def test_the_command_is_one_that_the_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import __main__ as script

    words = shlex.split(pack.command_for(Manifest("abc", "", "", ""), "build/gpu-pack"))
    monkeypatch.setattr(sys, "argv", words[words.index("benchmarks.gpu") :])
    given = script._arguments()
    assert (given.pack, given.dry_run) == (Path("build/gpu-pack"), False)


def test_sources_that_were_not_committed_are_named(checkout: Path) -> None:
    folder = checkout / "build" / "gpu-pack"
    folder.mkdir(parents=True)
    clean = pack.write_manifest(folder)
    (checkout / "csrc" / "a.cu").write_text("another kernel")
    changed = pack.write_manifest(folder)
    assert changed.commit == f"{clean.commit}-dirty"
    assert changed.sources != clean.sources
    assert Manifest.read(folder) == changed


def test_sources_that_change_during_the_compilation_are_refused(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pack, "download", lambda folder: (checkout / "csrc" / "a.cu").write_text("edited meanwhile"))
    assert pack.main(checkout / "build" / "gpu-pack", limit=1) == 1
    assert "changed during the compilation" in capsys.readouterr().err


def test_what_is_too_large_is_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "new.bin").write_bytes(b"0" * (2 << 20))  # not ignored, so it would travel
    assert pack.size_of_tree() > 2 << 20
    assert pack.main(checkout / "build" / "gpu-pack", limit=2) == 1
    assert "too large" in capsys.readouterr().err


def test_old_wheels_make_room_and_missing_ones_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "WHEELS", ("some-peer==2.0", "other==1.0"))
    for name in ("some_peer-1.0-py3-none-any.whl", "other-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    commands: list[list[str]] = []
    monkeypatch.setattr(pack.subprocess, "run", lambda command, check: commands.append(command))
    pack.download(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other-1.0-py3-none-any.whl"]
    (command,) = commands
    assert command[-1] == "some-peer==2.0"
    assert {"download", "--no-deps"} <= set(command)
