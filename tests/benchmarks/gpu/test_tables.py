"""Tables that grow line by line, and the journal by which a crashed stage goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.journal import ATTEMPTS, Journal
from benchmarks.gpu.tables import append, read

COLUMNS = ("name", "value")


def test_rows_are_added_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append(path, COLUMNS, [{"name": "a, b", "value": 2.123456789}, {"name": "two\nlines", "value": None}])
    append(path, COLUMNS, [{"name": 'a "quoted" one', "value": 3}])
    assert read(path) == [
        {"name": "a, b", "value": "2.1235"},
        {"name": "two / lines", "value": ""},
        {"name": 'a "quoted" one', "value": "3"},
    ]
    assert len(path.read_text().splitlines()) == 4
    assert read(tmp_path / "absent.csv") == []


def test_a_line_cut_short_is_left_out_and_then_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append(path, COLUMNS, [{"name": "whole", "value": 1}])
    with path.open("a") as file:
        file.write("cut,")
    assert [row["name"] for row in read(path)] == ["whole"]
    append(path, COLUMNS, [{"name": "next", "value": 2}])
    assert path.read_text() == "name,value\nwhole,1\nnext,2\n"
    path.write_text("name,val")  # cut inside its first line
    append(path, COLUMNS, [{"name": "first", "value": 1}])
    assert path.read_text() == "name,value\nfirst,1\n"


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append(path, COLUMNS, [{"name": "a", "value": 1}])
    with pytest.raises(ValueError, match="expected"):
        append(path, ("name", "other"), [{"name": "a", "other": 1}])
    with pytest.raises(ValueError, match="fields not in"):
        append(path, COLUMNS, [{"name": "a", "surprise": 1}])
    assert len(read(path)) == 1


def test_whoever_is_killed_leaves_whole_lines(tmp_path: Path) -> None:
    """Killed in the middle of writing long lines, several times over; nothing is lost and no line is broken."""
    path = tmp_path / "a.csv"
    code = (
        "import sys\nfrom pathlib import Path\nfrom benchmarks.gpu.tables import append\n"
        "for i in range(10**6): append(Path(sys.argv[1]), ('name', 'value'), [{'name': i, 'value': 'x' * 20000}])"
    )
    root = Path(__file__).resolve().parents[3]
    count = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root)
        while len(read(path)) < count + 20:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        rows = read(path)
        assert all(row["value"] == "x" * 20000 for row in rows)
        count = len(rows)


def test_the_journal_names_the_culprit(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path)
    assert (first.finished, first.culprits, first.abandoned) == (set(), {}, set())
    first.begin("one", "a")
    first.begin("one", "b")
    first.finish("one")
    first.begin("two", "a")
    first.begin("two", "b")  # and here the process ended
    second = Journal(path)
    assert second.finished == {"one"}
    assert second.culprits == {"two": ["b"]}
    assert not second.abandoned
    second.begin("two", "a")
    second.finish("two")
    third = Journal(path)
    assert third.finished == {"one", "two"}
    assert not third.abandoned


def test_a_job_that_crashes_again_and_again_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for attempt in range(ATTEMPTS):
        journal = Journal(path)
        assert not journal.abandoned
        journal.begin("job", f"part {attempt}")
    assert Journal(path).abandoned == {"job"}


def test_a_job_that_crashes_outside_of_its_parts_is_given_up(tmp_path: Path) -> None:
    Journal(tmp_path / "journal").begin("job")
    assert Journal(tmp_path / "journal").abandoned == {"job"}


def test_a_torn_line_of_the_journal_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).begin("job", "part")
    with path.open("a") as file:
        file.write("torn\tli")
    assert Journal(path).culprits == {"job": ["part"]}
