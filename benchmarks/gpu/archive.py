"""One archive of a run's logs and tables, packed again and again, so that a run stopped at any moment leaves one.

It is written under another name and renamed, so that there is always a whole one. Standard library alone.
"""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["LARGEST_BYTES", "Packer"]

LARGEST_BYTES = 12 << 20
"""Files beyond this, in the order of their names, are left out by name; of a long log its two ends stay."""
LARGEST_LOG = 1 << 20


class Packer:
    """Packs ``folders`` into ``target`` whenever ``every`` seconds have gone by since the last time."""

    def __init__(
        self, target: Path, folders: tuple[Path, ...], every: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._target, self._folders, self._every, self._clock = target, folders, every, clock
        self._last = clock()

    def tick(self) -> None:
        """Pack if it is time to."""
        if self._clock() - self._last >= self._every:
            self.pack()

    def pack(self) -> None:
        """Pack now. What cannot be read, or is being removed, is left out; a full disk must not end the run either."""
        self._last = self._clock()
        temporary = self._target.with_name(f"{self._target.name}.part")
        try:
            with tarfile.open(temporary, "w:gz", compresslevel=3) as archive:
                self._add_all(archive)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self._target)
        except OSError as error:
            print(f"{self._target.name} was not packed: {error}", flush=True)

    def _add_all(self, archive: tarfile.TarFile) -> None:
        left, omitted = LARGEST_BYTES, []
        own = (self._target.name, f"{self._target.name}.part")
        for folder in self._folders:
            for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in own):
                name = f"{folder.name}/{path.relative_to(folder)}"
                try:
                    data = _content(path, left)
                except OSError:
                    continue
                if data is None:
                    omitted.append(name)
                    continue
                left -= len(data)
                _add(archive, name, data)
        if omitted:
            _add(archive, "left-out.txt", "\n".join(omitted).encode())


def _content(path: Path, left: int) -> bytes | None:
    """What the archive gets of a file, None if that is too much."""
    size = path.stat().st_size
    if path.suffix == ".log" and size > LARGEST_LOG:
        with path.open("rb") as file:
            beginning = file.read(LARGEST_LOG // 2)
            file.seek(size - LARGEST_LOG // 2)
            data = beginning + b"\n... cut here ...\n" + file.read(LARGEST_LOG // 2)
    elif size > left:
        return None
    else:
        data = path.read_bytes()
    return data if len(data) <= left else None


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(data), int(time.time())
    archive.addfile(entry, io.BytesIO(data))
