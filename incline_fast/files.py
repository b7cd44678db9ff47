"""Files that are written whole or not at all, whether the name is that of a file, a link, a pipe or a device."""

from __future__ import annotations

import csv
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["check_writable", "is_temporary", "replacing", "write_table"]

# Short, so that a name of any allowed length has a temporary one beside it.
_TEMPORARY = re.compile(r"\.incline-[0-9a-f]{16}\.tmp")
_DESCRIPTOR = re.compile(r"/proc/(?:\d+|self|thread-self)(?:/task/\d+)?/fd")
_MOST_LINKS = 40


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name whose content is under ``path`` when the block ends without an exception.

    What is at ``path`` decides how:

    * Nothing or a file: the temporary file is in the same folder, is flushed to the disk and renamed, and the folder is
      flushed after it, so that a crash at any moment leaves the old file or the new one, never a part. An older file's
      permissions and extended attributes are kept, its owner where this process may set it. Its other hard links keep
      the old content.
    * A symbolic link: the file that it leads to is replaced; the link stays.
    * A pipe, a terminal or another character device, an open descriptor such as ``/dev/stdout``: the finished content
      is copied into it. So is it into a file that cannot be renamed over because it is a mount point.

    On an exception inside the block nothing is written and the temporary file is removed.

    Raises:
        OSError: ``path`` cannot be written, see :func:`check_writable`, or is a named pipe that nobody reads; found
            before the block begins.
    """
    place, into = _destination(Path(path))
    if into:
        with _opened(Path(path), place) as handle, _temporary(Path(tempfile.gettempdir())) as temporary:
            yield temporary
            _copy(temporary, handle)
        return
    with _temporary(place.parent) as temporary:
        usual = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(usual)  # some writers put another file, which only its owner can read, under the same name
        if place.exists():
            _keep_attributes(place, temporary)
        _flush(temporary)
        try:
            temporary.replace(place)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            with _opened(Path(path), place) as handle:
                os.truncate(handle, 0)
                _copy(temporary, handle)
        _flush(place.parent)


def write_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: str | PathLike[str]) -> None:
    """Write rows, each column -> value, as CSV with these columns in this order, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def check_writable(path: str | PathLike[str]) -> None:
    """Refuse now what :func:`replacing` would refuse later, before hours of work; nothing is left behind.

    Raises:
        FileNotFoundError: the folder does not exist.
        IsADirectoryError: there is a folder of that name.
        PermissionError: the file, its folder or its file system must not be written.
        OSError: it is a socket or a block device; its links lead in a circle; a name is too long. Whether a named pipe
            has a reader is not checked before writing begins.
    """
    place, into = _destination(Path(path))
    if not into:
        with _temporary(place.parent):
            pass


def is_temporary(path: Path) -> bool:
    """Whether :func:`replacing` left this where a process was killed between opening a file and naming it."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _destination(path: Path) -> tuple[Path, bool]:
    """What to write, with links followed, and whether to write into it (True) or in its place."""
    place, descriptor = _follow(path)
    try:
        found: os.stat_result | None = place.stat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or (stat.S_ISREG(found.st_mode) and not descriptor):
        if not place.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: {place.parent} is not a folder")
        if found is not None and not os.access(place, os.W_OK):
            raise PermissionError(f"cannot write {path}: the file is write-protected")
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"cannot write {path}: no files may be made in {place.parent}")
        return place, False
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if kind in (stat.S_IFSOCK, stat.S_IFBLK):
        raise OSError(f"cannot write {path}: it is a {'socket' if kind == stat.S_IFSOCK else 'block device'}")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"cannot write {path}: it is write-protected")
    return place, True


def _follow(path: Path) -> tuple[Path, bool]:
    """The end of a chain of links, and whether it is an open file of a process, which has no name to be renamed to."""
    place = path
    for _ in range(_MOST_LINKS):
        # Not Path.resolve, which answers a circle of folders with a RuntimeError.
        folder = Path(os.path.realpath(place.parent))
        if _DESCRIPTOR.fullmatch(str(folder)):
            return folder / place.name, True
        if not place.is_symlink():
            return place, False
        place = folder / place.readlink()
    raise OSError(f"cannot write {path}: its links lead in a circle")


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A new empty file with the permissions that any new file gets there (umask, and what the folder passes on)."""
    path = folder / f".incline-{secrets.token_hex(8)}.tmp"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path, place: Path) -> Iterator[int]:
    """A descriptor to write into an existing file, pipe or device."""
    if place.parent in (Path(f"/proc/{os.getpid()}/fd"), Path(f"/proc/{os.getpid()}/task/{os.getpid()}/fd")):
        handle = os.dup(int(place.name))  # shares its position, so that earlier and later output stays
    else:
        try:
            # Opening a named pipe would wait for a reader, for ever if none comes.
            handle = os.open(place, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise OSError(f"cannot write {path}: it is a pipe, and no process reads it") from error
        os.set_blocking(handle, True)
    try:
        yield handle
    finally:
        os.close(handle)


def _keep_attributes(old: Path, new: Path) -> None:
    status = old.stat()
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        with suppress(PermissionError):  # only root may change the owner, others some groups
            os.chown(new, -1, status.st_gid)
            os.chown(new, status.st_uid, -1)
    shutil.copystat(old, new)
    os.utime(new)


def _copy(source: Path, handle: int) -> None:
    with source.open("rb") as content, os.fdopen(handle, "wb", closefd=False) as place:
        shutil.copyfileobj(content, place)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
