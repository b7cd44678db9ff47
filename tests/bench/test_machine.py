"""What a row says about the code and the machine that it was measured on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from incline_fast.bench import machine
from incline_fast.bench.machine import commit


def test_the_commit_is_what_git_says() -> None:
    git = ["git", "rev-parse", "--short", "HEAD"]
    try:
        wanted = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    assert commit().removesuffix("-dirty") == wanted.strip()


@pytest.mark.parametrize(
    ("path", "dirty"), [("code.py", True), ("docs/page.md", False), ("benchmarks/results/a.csv", False)]
)
def test_changed_code_is_another_commit(
    path: str, dirty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    package = tmp_path / "package" / "machine.py"
    package.parent.mkdir()
    for one in (file, package):
        one.write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "before")
    monkeypatch.setattr(machine, "__file__", str(package))
    (tmp_path / "untracked.csv").write_text("a result")
    assert not commit().endswith("-dirty")
    file.write_text("after")
    assert commit().endswith("-dirty") == dirty


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")])
def test_without_git_the_environment_says_it(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(machine.subprocess, "run", absent)
    monkeypatch.delenv("INCLINE_FAST_COMMIT", raising=False)
    assert commit() == "unknown"
    monkeypatch.setenv("INCLINE_FAST_COMMIT", " ")
    assert commit() == "unknown"
    monkeypatch.setenv("INCLINE_FAST_COMMIT", "abc1234")
    assert commit() == "abc1234"
