"""What a measurement depends on beside the code: the processor, the threads, the commit."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["about", "commit", "cpu_name", "cpu_slug", "threads"]


def cpu_name() -> str:
    """The processor as the kernel of the operating system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def cpu_slug(name: str) -> str:
    """A processor's name for use in a file name: "Intel(R) Xeon(R) Processor" is "intel-xeon"."""
    plain = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "cpu"


def commit() -> str:
    """The commit of the source tree that is running, with "-dirty" where code was changed since.

    Without git or its history (an installed package), the value of the environment variable INCLINE_FAST_COMMIT, or
    "unknown". Pages and results are no code: a run that writes them does not change what the next one measures.
    """
    try:
        answer = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/docs", ":!/benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        answer = changed = ""
    dirty = "-dirty" if changed else ""
    return f"{answer}{dirty}" or os.environ.get("INCLINE_FAST_COMMIT", "").strip() or "unknown"


def about() -> dict[str, str | int]:
    """The last columns of a row of results."""
    return {
        "threads": torch.get_num_threads(),
        "device": cpu_name(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch's pool ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
