"""The archive that is packed again and again: always a whole one, never too large, whatever happens to the files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu import archive
from benchmarks.gpu.archive import Packer


def content(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as packed:
        return {name: packed.extractfile(name).read() for name in packed.getnames()}  # type: ignore[union-attr]


def test_folders_are_packed_without_the_archive_itself(tmp_path: Path) -> None:
    output, logs = tmp_path / "output", tmp_path / "logs"
    (logs / "deep").mkdir(parents=True)
    output.mkdir()
    (output / "a.csv").write_text("a\n1\n")
    (logs / "deep" / "b.log").write_text("b")
    packer = Packer(output / "results.tar.gz", (output, logs, tmp_path / "absent"), 20)
    for _ in range(2):
        packer.pack()
        assert content(output / "results.tar.gz") == {"output/a.csv": b"a\n1\n", "logs/deep/b.log": b"b"}
    assert sorted(path.name for path in output.iterdir()) == ["a.csv", "results.tar.gz"]


def test_it_is_packed_when_its_time_has_come(tmp_path: Path) -> None:
    now = [100.0]
    (tmp_path / "a.csv").write_text("first")
    packer = Packer(tmp_path / "results.tar.gz", (tmp_path,), 20, clock=lambda: now[0])
    for when, there in ((119.0, False), (120.0, True)):
        now[0] = when
        packer.tick()
        assert (tmp_path / "results.tar.gz").exists() == there
    (tmp_path / "a.csv").write_text("second")
    for when, text in ((139.0, b"first"), (141.0, b"second")):
        now[0] = when
        packer.tick()
        assert list(content(tmp_path / "results.tar.gz").values()) == [text]


def test_long_logs_keep_their_ends_and_large_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST_LOG", 100)
    monkeypatch.setattr(archive, "LARGEST_BYTES", 1000)
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.log").write_text("begin" + "." * 500 + "end")
    (folder / "b.bin").write_bytes(b"b" * 2000)
    (folder / "c.csv").write_text("c")
    Packer(tmp_path / "results.tar.gz", (folder,), 20).pack()
    packed = content(tmp_path / "results.tar.gz")
    assert packed["logs/a.log"].startswith(b"begin")
    assert packed["logs/a.log"].endswith(b"end")
    assert len(packed["logs/a.log"]) < 130
    assert packed["logs/c.csv"] == b"c"
    assert packed["left-out.txt"] == b"logs/b.bin"


def test_a_disk_that_is_full_keeps_the_last_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("a")
    packer = Packer(tmp_path / "results.tar.gz", (tmp_path,), 20)
    packer.pack()
    before = (tmp_path / "results.tar.gz").read_bytes()

    def full(self: tarfile.TarFile, *arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    packer.pack()
    assert "No space left" in capsys.readouterr().out
    assert (tmp_path / "results.tar.gz").read_bytes() == before
