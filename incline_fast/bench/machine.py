"""What a measurement depends on beside the code: the processor, the threads, the commit."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["commit", "cpu_name", "cpu_slug", "threads"]


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
    """The commit of the source tree that is running.

    Without git or its history (an installed package), the value of the environment variable INCLINE_FAST_COMMIT, or
    "unknown".
    """
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        answer = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        answer = ""
    return answer or os.environ.get("INCLINE_FAST_COMMIT", "").strip() or "unknown"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch's pool ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
