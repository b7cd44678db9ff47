"""What a measurement depends on beside the code: the processor, the threads, the commit."""

from __future__ import annotations

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
    """The commit of the source tree that is running, empty for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    answer = subprocess.run(git, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch's pool ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
