"""Files are whole or not there, whatever is under their name: links, permissions, pipes, devices, long names."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from incline_fast.files import check_writable, is_temporary, replacing

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and gives files away")
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")


def write(path: Path, content: str = "new") -> None:
    with replacing(path) as temporary:
        temporary.write_text(content)


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_temporary(path)]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "half \ud800")
    assert path.read_text() == "old"
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_files_permissions_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


def test_a_new_file_gets_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write(tmp_path / "x")
    (tmp_path / "y").write_text("")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


@root_only
def test_a_files_owner_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    os.chown(path, 12345, 54321)
    path.chmod(0o640)
    write(path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 54321, 0o640)


def test_extended_attributes_are_kept_and_the_time_is_new(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    os.utime(path, (0, 0))
    try:
        os.setxattr(path, "user.origin", b"here")
    except OSError as error:
        pytest.skip(f"this file system has no extended attributes: {error}")
    write(path)
    assert os.getxattr(path, "user.origin") == b"here"
    assert path.stat().st_mtime > 0


@pytest.mark.parametrize("chain", [1, 3])
def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path, chain: int) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file"
    target.write_text("old")
    link = tmp_path / "link0"
    link.symlink_to("elsewhere/file")  # relative to the link's own folder
    for i in range(1, chain):
        link = tmp_path / f"link{i}"
        link.symlink_to(f"link{i - 1}")
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert left_behind(tmp_path / "elsewhere") == []


def test_a_link_to_nothing_makes_the_file_and_a_link_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("later")
    write(tmp_path / "link")
    assert (tmp_path / "later").read_text() == "new"
    (tmp_path / "lost").symlink_to("no/where")
    with pytest.raises(FileNotFoundError, match="lost"):
        write(tmp_path / "lost")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=r"circle|symbolic links"):
        write(tmp_path / "a")


def test_the_longest_name_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write(path)
    assert path.read_text() == "new"
    with pytest.raises(OSError, match="too long"):
        write(tmp_path / ("n" * 256))


def test_a_pipe_takes_the_content_as_a_stream(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    taken: list[str] = []
    reader = threading.Thread(target=lambda: taken.append(pipe.read_text()))
    reader.start()
    while True:  # until the reader has opened its end
        try:
            write(pipe, "through" * 20_000)
            break
        except OSError as error:
            assert "no process reads" in str(error)  # noqa: PT017 - a race with the reader, not the test
    reader.join(timeout=30)
    assert taken == ["through" * 20_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_without_a_reader_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")  # a reader may still come
    with pytest.raises(OSError, match="no process reads it"), replacing(tmp_path / "pipe"):
        pytest.fail("refused before the block")


@root_only
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_text("")
    except OSError as error:
        pytest.skip(f"no devices may be made here: {error}")
    write(device)
    assert stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.parametrize("redirected", [True, False])
def test_standard_output_is_written_where_it_goes(tmp_path: Path, redirected: bool) -> None:
    (tmp_path / "out").symlink_to("/proc/self/fd/1")
    program = (
        "import sys; from incline_fast.files import replacing\n"
        "print('before', flush=True)\n"
        "for path in ('/dev/stdout', sys.argv[1]):\n"
        "    with replacing(path) as temporary: temporary.write_text('whole\\n')\n"
        "print('after')"
    )
    with (tmp_path / "log").open("w") as log:
        output = log if redirected else subprocess.PIPE
        found = subprocess.run([sys.executable, "-c", program, tmp_path / "out"], stdout=output, text=True, check=True)
    text = (tmp_path / "log").read_text() if redirected else found.stdout
    assert text == "before\nwhole\nwhole\nafter\n"
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("check", [check_writable, write])
def test_what_cannot_be_written_is_refused(tmp_path: Path, check) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing is not a folder"):
        check(tmp_path / "missing" / "x")
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileNotFoundError, match="file is not a folder"):
        check(tmp_path / "file" / "x")
    assert left_behind(tmp_path) == []


@not_root
@pytest.mark.parametrize("check", [check_writable, write])
def test_a_write_protected_file_or_folder_is_refused(tmp_path: Path, check) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="write-protected"):
        check(path)
    path.chmod(0o644)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="no files may be made"):
            check(path)
    finally:
        tmp_path.chmod(0o755)


def test_protection_is_asked_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root passes every permission check, so the answer is planted.
    path = tmp_path / "x"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda place, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match="write-protected"):
        check_writable(path)
    monkeypatch.setattr(os, "access", lambda place, mode: mode == os.W_OK)
    with pytest.raises(PermissionError, match="no files may be made"):
        check_writable(path)


def test_a_file_that_is_mounted_by_itself_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Containers mount single files; the kernel then refuses to rename over them.
    path = tmp_path / "x"
    path.write_text("a longer old content")

    def busy(self: Path, target: Path) -> Path:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(Path, "replace", busy)
    write(path)
    assert path.read_text() == "new"
    assert left_behind(tmp_path) == []


def test_checking_leaves_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    check_writable(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_makes_its_own_file_does_not_change_the_permissions(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as temporary:
        temporary.unlink()
        temporary.write_text("new")
        temporary.chmod(0o600)
    (tmp_path / "y").write_text("")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode
