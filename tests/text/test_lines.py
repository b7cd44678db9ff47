"""The one reader of lines: encodings under every name, packed files, marks, line ends, JSON, odd rows."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
from encodings.aliases import aliases
from pathlib import Path

import pytest

from incline_fast.text.lines import bare_suffix, read_lines
from incline_fast.text.parallel_text import ParallelText, TextError


def lines(path: Path, encoding: str = "utf-8") -> list[str]:
    return [row.sides[0] for row in read_lines(path, encoding) if row.sides is not None]


def put(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


ENCODINGS = (
    "utf-8", "UTF8", "utf_8_sig", "utf-16", "utf_16", "U16", "utf16", "utf-16-le", "utf_16_be", "UTF-16LE", "utf-32",
    "utf_32_le", "U32", "utf-7", "unicode-1-1-utf-7", "latin-1", "L1", "cp1252", "windows-1252", "mac_roman", "cp037",
    "IBM500", "cp1140", "iso8859_15",
)  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_name_of_an_encoding_reads_the_same_lines(tmp_path: Path, encoding: str, end: str) -> None:
    path = put(tmp_path / "x", f"école\tschool{end}garçon\tboy{end}".encode(encoding))
    assert lines(path, encoding) == ["école\tschool", "garçon\tboy"]
    assert list(ParallelText.from_tsv(path, encoding=encoding)) == [("école", "school"), ("garçon", "boy")]


@pytest.mark.parametrize(
    "encoding", ["shift_jis", "euc_jp", "iso2022_jp", "iso-2022-jp-2", "cp932", "gb18030", "utf-16"]
)
def test_lines_of_encodings_of_several_bytes(tmp_path: Path, encoding: str) -> None:
    wanted = ["日本語のファイル", "表示ソ能", "ascii"]
    assert lines(put(tmp_path / "x", "\n".join(wanted).encode(encoding)), encoding) == wanted


def test_a_state_that_outlives_its_line_is_kept(tmp_path: Path) -> None:
    # The designation at the beginning holds for the whole file; later lines cannot be decoded by themselves.
    wanted = ["안녕하세요", "세계"]
    assert lines(put(tmp_path / "x", "\n".join(wanted).encode("iso2022_kr")), "iso2022_kr") == wanted


def test_every_text_encoding_of_python_reads_ascii(tmp_path: Path) -> None:
    for name in sorted(set(aliases.values())):
        try:
            data = "one\ntwo\n".encode(name)
        except (LookupError, UnicodeError, TypeError):
            with pytest.raises((ValueError, TextError)):
                read_lines(put(tmp_path / "x", b"one\n"), name)
            continue
        assert lines(put(tmp_path / "x", data), name) == ["one", "two"], name


@pytest.mark.parametrize("encoding", ["utf-9", "", "hex", "rot13", "zlib", "base64", "\0", None, 8])
def test_what_is_no_text_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(ValueError, match=r"encoding is .* allowed are such as utf-8"):
        read_lines(put(tmp_path / "x", "x\n"), encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-7"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, encoding: str) -> None:
    assert lines(put(tmp_path / "x", "\ufeffone\ntwo\ufeff".encode(encoding)), encoding) == ["one", "two\ufeff"]


def test_marks_of_other_encodings_are_refused(tmp_path: Path) -> None:
    cases = [
        ("utf-8", "utf-16", "UTF-16 byte order mark"),
        ("latin-1", "utf-16", "UTF-16 byte order mark"),
        ("latin-1", "utf-8-sig", "UTF-8 byte order mark"),
        ("cp1252", "utf-8-sig", "UTF-8 byte order mark"),
        ("utf-16-be", "utf-16", "the other order of bytes"),
    ]
    for asked, stored, reason in cases:
        if stored == "utf-16" and sys.byteorder == "big":
            continue
        with pytest.raises(TextError, match=reason):
            read_lines(put(tmp_path / "x", "école\n".encode(stored)), asked)


@pytest.mark.parametrize("text", ["ÿþ in Latin", "þÿ", "ï»¿ é"])
def test_text_that_begins_like_a_mark_is_text(tmp_path: Path, text: str) -> None:
    assert lines(put(tmp_path / "x", text.encode("latin-1")), "latin-1") == [text]


def test_a_file_that_is_not_in_its_encoding_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"x:3: not utf-16-le: .* at byte"):
        read_lines(put(tmp_path / "x", "a\nb\n".encode("utf-16-le") + b"\x00\xd8\x00"), "utf-16-le")
    rows = read_lines(put(tmp_path / "y", b"good\nb\xffd\ngood\n"))
    assert [row.wrong != "" for row in rows] == [False, True, False]


def test_carriage_returns_alone_end_no_line(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(TextError, match="carriage returns and no line feed"):
            read_lines(put(tmp_path / "x", "one\rtwo\r".encode(encoding)), encoding)
    assert lines(put(tmp_path / "x", "one\r")) == ["one"]
    assert lines(put(tmp_path / "x", "")) == []
    assert lines(put(tmp_path / "x", "\n\na")) == ["", "", "a"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_no_other_character_ends_a_line(tmp_path: Path, character: str) -> None:
    assert lines(put(tmp_path / "x", f"a{character}b\nc")) == [f"a{character}b", "c"]


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", [*PACKERS, ".GZ", ".Xz"])
@pytest.mark.parametrize("kind", [".tsv", ".jsonl", ".ndjson", ".TSV", ".NDJSON", ""])
def test_packed_files_and_suffixes_in_any_case(tmp_path: Path, suffix: str, kind: str) -> None:
    as_json = kind.lower() in (".jsonl", ".ndjson")
    text = json.dumps({"source": "école", "target": "school"}) if as_json else "école\tschool\n"
    for name, data in ((f"p{kind}{suffix}", PACKERS[suffix.lower()](text.encode())), (f"q{kind}", text.encode())):
        path = put(tmp_path / name, data)
        assert list(ParallelText.from_pairs(path)) == [("école", "school")]
        assert bare_suffix(path) == kind.lower()


@pytest.mark.parametrize("suffix", PACKERS)
def test_damaged_packed_files_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = PACKERS[suffix](b"one\n" * 1000)
    for data in (b"one\n", whole[:-5], whole[: len(whole) // 2], whole[:10] + b"\xff" * 20 + whole[30:]):
        with pytest.raises(TextError, match=f"not a whole {suffix} file"):
            read_lines(put(tmp_path / f"x{suffix}", data))


@pytest.mark.parametrize("suffix", [".zst", ".zip", ".7Z", ".lz4"])
def test_other_packed_files_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(TextError, match=r"not unpacked; allowed: \.gz, \.bz2, \.xz"):
        read_lines(put(tmp_path / f"x{suffix}", "x\n"))


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet", ".CSV", ".csv.gz"])
def test_pairs_of_other_kinds_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ValueError, match="expected lines of source, tab, target"):
        ParallelText.from_pairs(put(tmp_path / f"x{suffix}", "a\tb\n"))


def test_standard_input_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffune\u2028deux\r\nträs\n".encode())))
    assert lines(Path("-")) == ["une\u2028deux", "träs"]


class TestJson:
    good = '{"source": "bonjour", "target": "hello"}'

    def bad(self, tmp_path: Path, line: str) -> str:
        """The problem that a second line has, while the first one is read."""
        text = ParallelText.from_jsonl(put(tmp_path / "j.jsonl", f"{self.good}\n{line}\n"), on_problem="skip")
        assert list(text) == [("bonjour", "hello")]
        (problem,) = text.problems
        assert (problem.line, problem.file) == (2, str(tmp_path / "j.jsonl"))
        return problem.message

    def test_what_stands_beside_the_fields_does_not_matter(self, tmp_path: Path) -> None:
        beside = ("9" * 4400, "-" + "9" * 9000, "1e999", "NaN", "1.5", "[1, [2]]", '{"a": null}', '"\\ud800"')
        for value in beside:
            line = f'{{"source": "a", "target": "b", "x": {value}}}'
            assert list(ParallelText.from_jsonl(put(tmp_path / "j", line))) == [("a", "b")]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"source": "a", "target": "b", "x": ' + "[" * 200_000 + "]" * 200_000 + "}", "JSON that cannot be read"),
            ('{"source": "a", "target": "\\ud800"}', "target sentence is not valid Unicode"),
            ('{"source": "\\udc00x", "target": "b"}', "source sentence is not valid Unicode"),
            ('{"source": "a", "target": "b", "target": "c"}', "the field 'target' is there twice"),
            ('{"source": "a", "target": 5}', "'target' is a int; expected a string"),
            ('{"source": "a", "target": ' + "9" * 5000 + "}", "'target' is a int; expected a string"),
            ('{"source": "a", "target": null}', "'target' is a NoneType"),
            ('{"source": "a"}', "no field 'target'"),
            ('["a", "b"]', "leads into a list"),
            ('"a"', "leads into a str"),
            ("5", "leads into a int"),
            ("null", "leads into a NoneType"),
            ("{", "not JSON"),
            ("", "not JSON"),
            ("{'source': 'a'}", "not JSON"),
            (good + good, "not JSON: Extra data"),
        ],
    )
    def test_a_bad_line_is_named_and_the_rest_is_read(self, tmp_path: Path, line: str, message: str) -> None:
        assert message in self.bad(tmp_path, line)

    def test_fields_are_two_names(self, tmp_path: Path) -> None:
        for fields in (("source",), "st", ("a", "b", "c"), ("a", 1)):
            with pytest.raises(ValueError, match="expected the names of two fields"):
                ParallelText.from_jsonl(put(tmp_path / "j", self.good), fields=fields)


class TestRows:
    def test_rows_of_a_dataset_that_cannot_be_used_are_named(self) -> None:
        rows = [
            {1: "x", "a": "y"},
            None,
            "text",
            ["a", "b"],
            {"source": b"a", "target": "b"},
            {"source": "a\ud800", "target": "b"},
        ]
        text = ParallelText.from_dataset([*rows, {"source": "a", "target": "b"}], on_problem="skip")
        assert list(text) == [("a", "b")]
        assert [problem.line for problem in text.problems] == [1, 2, 3, 4, 5, 6]

    def test_a_flattened_name_is_a_name(self) -> None:
        rows = [{"translation.fr": "un", "translation.en": "one"}, {"translation": {"fr": "deux", "en": "two"}}]
        text = ParallelText.from_dataset(rows, fields=("translation.fr", "translation.en"))
        assert list(text) == [("un", "one"), ("deux", "two")]


class TestColumns:
    @pytest.mark.parametrize("columns", [(0, -1), (-2, 0), (0,), (0, 1, 2), "ab", (True, 0), (0, 1.0), (None, 1)])
    def test_columns_that_name_none_are_refused(self, tmp_path: Path, columns) -> None:
        with pytest.raises((TypeError, ValueError), match="column"):
            ParallelText.from_tsv(put(tmp_path / "p", "a\tb\n"), columns=columns)

    def test_a_number_beside_a_name_is_a_number(self, tmp_path: Path) -> None:
        path = put(tmp_path / "p", "id\ten\tfr\n1\tone\tun\n")
        assert list(ParallelText.from_tsv(path, columns=("fr", 1))) == [("un", "one")]

    def test_a_name_that_two_columns_have_and_a_header_that_is_not_text_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TextError, match="several columns named 'fr'"):
            ParallelText.from_tsv(put(tmp_path / "p", "fr\ten\tfr\na\tb\tc\n"), columns=("fr", "en"))
        with pytest.raises(TextError, match=r"p:1: not utf-8"):
            ParallelText.from_tsv(put(tmp_path / "p", b"fr\xff\ten\na\tb\n"), columns=("fr", "en"))
