"""What a stage has begun and finished, so that a stage which crashed goes on behind the work that made it crash.

A line is written before every part of every job. After a crash the last line names the culprit: a provider whose kernel
hung or ended the context, say. The next attempt leaves that part out. A job is given up when it crashed ``ATTEMPTS``
times, or outside of any part.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ATTEMPTS", "Journal"]

ATTEMPTS = 3
_FINISHED = "finished"


class Journal:
    """The journal of one stage, in one file that all attempts at the stage share.

    Attributes:
        finished: jobs that are done.
        culprits: job -> parts during which it crashed; "" is the job outside of its parts.
        abandoned: jobs that are given up.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.finished: set[str] = set()
        self.culprits: dict[str, list[str]] = {}
        self._attempt = 1
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        open_part: tuple[str, str] | None = None
        for job, part, number in (fields for line in lines if len(fields := line.split("\t")) == 3):
            if int(number) >= self._attempt:
                self._blame(open_part)
                open_part, self._attempt = None, int(number) + 1
            if part == _FINISHED:
                self.finished.add(job)
            open_part = None if part == _FINISHED else (job, part)
        self._blame(open_part)
        hopeless = {job for job, parts in self.culprits.items() if len(parts) >= ATTEMPTS or "" in parts}
        self.abandoned = hopeless - self.finished

    def begin(self, job: str, part: str = "") -> None:
        """Write down what is about to be done."""
        self._write(job, part)

    def finish(self, job: str) -> None:
        """Write down that a job's results are on the disk."""
        self.finished.add(job)
        self._write(job, _FINISHED)

    def _blame(self, open_part: tuple[str, str] | None) -> None:
        if open_part is not None:
            job, part = open_part
            self.culprits.setdefault(job, []).append(part)

    def _write(self, job: str, part: str) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, f"{job}\t{part}\t{self._attempt}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)
