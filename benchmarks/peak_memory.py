"""Peak memory of a piece of work, measured in a fresh process (Linux)."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["in_fresh_process", "peak_increase"]

_KIB_PER_MIB = 1024


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """``work(*arguments)`` in a new interpreter, so that nothing that an earlier piece of work freed is used again.

    Args:
        work: a function of a module.
        arguments: what can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak_increase(run: Callable[[], Any]) -> float:
    """MiB by which the resident memory of this process rises above what it was, at most, while ``run`` runs.

    Its result is held until the peak has been read. Memory that was freed before is given back to the system first,
    because what is taken from it again would not be seen.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _resident("VmRSS")
    result = run()
    peak = _resident("VmHWM")
    del result
    return (peak - before) / _KIB_PER_MIB


def _resident(field: str) -> int:
    """A line of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
