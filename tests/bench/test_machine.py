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
    assert commit() == wanted.strip()


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
