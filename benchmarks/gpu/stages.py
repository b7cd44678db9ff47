"""Stages with a time limit each, in process groups of their own. One that fails is reported, and the others go on.

The parent imports nothing but the standard library: no fault of torch, of a driver or of a library of ours can end it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["NO_DEVICE", "RESTART", "Outcome", "Stage", "run_stage"]

RESTART = 75
"""Exit status of a stage whose device context is lost: a new process can go on behind the work that lost it."""
NO_DEVICE = 69
"""Exit status of a stage that found no GPU."""
REPORTED_LINES = 15
"""Last lines of a failed stage's output that are shown."""
AFTER_KILL_SECONDS = 10.0
"""How long a killed stage is waited for. A process inside a driver may never end; the run then goes on without it."""
TICK_SECONDS = 0.1


@dataclass(frozen=True)
class Stage:
    """A command and what limits it.

    Attributes:
        name: names the log, the rows of the table of stages, and the journal of a resumable stage.
        command: the arguments; ``{seconds}`` in one of them is replaced by the time that the stage is given.
        seconds: the most that it may take.
        least: with less time left than this it is not begun.
        silence: seconds without a line in its log or its journal after which it counts as hung; None: never.
        journal: a file by which the stage, once crashed, goes on where it was; None: it is not begun again.
        produces: files that must be there when it has ended.
        tool: a program that not every machine has; without it the stage is not run, which is a failure too.
        environment: variables beside those of the parent.
        folder: where it runs; None is the parent's choice.
    """

    name: str
    command: Sequence[str]
    seconds: float
    least: float = 1.0
    silence: float | None = None
    journal: Path | None = None
    produces: tuple[Path, ...] = ()
    tool: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """``status``: passed, failed, crashed, hung, timed out, no GPU or not run; ``detail`` says why it did not pass."""

    stage: str
    status: str
    seconds: float = 0.0
    limit: float = 0.0
    detail: str = ""

    @property
    def resumable(self) -> bool:
        """Whether a new process could go on: the old one was ended, or ended before its work was done."""
        return self.status in ("crashed", "hung")


def run_stage(stage: Stage, folder: Path, log: Path, limit: float, tick: Callable[[], None]) -> Outcome:
    """Run one stage to its end, or end it; ``tick`` is called all the while. Output is added to ``log``."""
    begin = time.monotonic()
    command = [part.replace("{seconds}", f"{limit:.0f}") for part in stage.command]
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=stage.folder or folder,
                env={**os.environ, **stage.environment},
                process_group=0,  # so that a compiler, or a sanitizer's child, ends with it
                preexec_fn=_end_with(os.getpid()),
            )
        except OSError as error:
            return Outcome(stage.name, "failed", 0.0, limit, f"cannot start: {error}")
    try:
        ended = _watch(process, stage, log, begin, limit, tick)
    finally:  # also when the parent itself is told to stop
        survived = _kill(process)
    spent = time.monotonic() - begin

    def outcome(status: str, why: str) -> Outcome:
        left = f"; it did not end within {AFTER_KILL_SECONDS:.0f} s of being killed" if survived else ""
        return Outcome(stage.name, status, spent, limit, f"{why}{left}; {_tail(log)}")

    if ended:
        return outcome("hung" if ended == "hung" else "timed out", f"{ended} after {spent:.0f} s")
    code = process.returncode
    if code == RESTART or code < 0:
        why = "the device's context was lost" if code == RESTART else f"killed by {_signal_name(-code)}"
        return outcome("crashed", why)
    if code == NO_DEVICE:
        return outcome("no GPU", "no GPU was found")
    if code != 0:
        return outcome("failed", f"exit status {code}")
    missing = [path.name for path in stage.produces if not path.exists()]
    if missing:
        return outcome("failed", f"did not produce {', '.join(missing)}")
    return Outcome(stage.name, "passed", spent, limit)


def _watch(
    process: subprocess.Popen[bytes], stage: Stage, log: Path, begin: float, limit: float, tick: Callable[[], None]
) -> str:
    """Why the process has to be ended; empty if it has ended by itself."""
    seen, since = (0, 0), begin
    while process.poll() is None:
        tick()
        now = time.monotonic()
        if now - begin > limit:
            return "timed out"
        sizes = (_size(log), 0 if stage.journal is None else _size(stage.journal))
        if sizes != seen:
            seen, since = sizes, now
        if stage.silence is not None and now - since > stage.silence:
            return "hung"
        time.sleep(TICK_SECONDS)
    return ""


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """End the process and what is left of its group; whether the process is still there afterwards."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(AFTER_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end_with(parent: int) -> Callable[[], None]:
    """For a child: the kernel kills it when its parent ends, in whatever way that is."""
    libc, set_death_signal = ctypes.CDLL(None), 1

    def prepare() -> None:
        libc.prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)

    return prepare


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, _size(log) - 8192))
        lines = file.read().decode(errors="replace").splitlines()[-REPORTED_LINES:]
    return "\n".join([f"the end of {log.name}:", *lines])
