"""Readers of parallel text: what they take, and where they say a row is bad."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import datasets
import polib
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from incline_fast.text.parallel_text import ParallelText, TextError


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def complaints(error: pytest.ExceptionInfo[TextError]) -> list[tuple[str, int | None]]:
    return [(Path(problem.file).name, problem.line) for problem in error.value.problems]


class TestFiles:
    def test_reads_pairs_and_languages(self, tmp_path: Path) -> None:
        source, target = write(tmp_path / "fr", "un\ndeux\n"), write(tmp_path / "en", "one\ntwo\n")
        text = ParallelText.from_files(source, target, source_language="fr", target_language="en")
        assert list(text) == [("un", "one"), ("deux", "two")]
        assert (text.source_language, text.target_language) == ("fr", "en")
        assert str(source) in text.provenance

    def test_lines_end_at_line_feeds_alone(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a", "one\u2028still one\r\ntwo\x0bstill two\x85\n")
        text = ParallelText.from_files(source, write(tmp_path / "b", "1\r\n2\r\n"))
        assert text.source == ["one\u2028still one", "two\x0bstill two"]
        assert text.target == ["1", "2"]

    def test_last_line_needs_no_line_feed_and_a_byte_order_mark_is_dropped(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a", b"\xef\xbb\xbfone\ntwo")
        assert ParallelText.from_files(source, write(tmp_path / "b", "1\n2\n")).source == ["one", "two"]

    @pytest.mark.parametrize("on_problem", ["error", "skip"])
    def test_unequal_lengths_are_always_an_error(self, tmp_path: Path, on_problem: str) -> None:
        files = write(tmp_path / "a", "one\ntwo\nthree\n"), write(tmp_path / "b", "1\n2\n")
        with pytest.raises(TextError, match="ends after 3 lines, the other one after 2") as error:
            ParallelText.from_files(*files, on_problem=on_problem)
        assert complaints(error) == [("a", 3), ("b", 2)]

    def test_empty_lines_name_the_file_that_has_them(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", "one\n \nthree\n"), write(tmp_path / "b", "1\n2\n\n")
        with pytest.raises(TextError, match=r"a:2: the source sentence is empty") as error:
            ParallelText.from_files(*files)
        assert complaints(error) == [("a", 2), ("b", 3)]

    def test_skip_keeps_the_rest_aligned_and_reports(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", "one\n\nthree\n"), write(tmp_path / "b", "1\n2\n3\n")
        text = ParallelText.from_files(*files, on_problem="skip")
        assert list(text) == [("one", "1"), ("three", "3")]
        assert [problem.line for problem in text.problems] == [2]

    def test_duplicates_name_both_lines(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", "x\ny\nx \n"), write(tmp_path / "b", "1\n2\n1\n")
        with pytest.raises(TextError, match=r"a:3: the same pair is in line 1"):
            ParallelText.from_files(*files)

    def test_two_translations_of_one_sentence_are_no_duplicates(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", "x\nx\n"), write(tmp_path / "b", "1\n2\n")
        assert len(ParallelText.from_files(*files)) == 2

    def test_wrong_encoding_names_line_and_byte(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", "gut\nschön\n".encode("latin-1")), write(tmp_path / "b", "good\nnice\n")
        with pytest.raises(TextError, match=r"a:2: not utf-8: byte 0xf6 at position 3"):
            ParallelText.from_files(*files)
        assert ParallelText.from_files(*files, encoding="latin-1").source == ["gut", "schön"]

    def test_utf16_is_recognised_and_can_be_asked_for(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", "eins\nzwei\n".encode("utf-16")), write(tmp_path / "b", "1\n2\n".encode("utf-16"))
        with pytest.raises(TextError, match="UTF-16 byte order mark"):
            ParallelText.from_files(*files)
        assert list(ParallelText.from_files(*files, encoding="utf-16")) == [("eins", "1"), ("zwei", "2")]

    def test_binary_is_refused(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", b"a\0b\n"), write(tmp_path / "b", "1\n")
        with pytest.raises(TextError, match="NUL character"):
            ParallelText.from_files(*files)

    def test_long_lists_of_problems_are_cut_in_the_message_only(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", "\n" * 25), write(tmp_path / "b", "x\n" * 25)
        with pytest.raises(TextError, match=r"and 15 more") as error:
            ParallelText.from_files(*files)
        assert len(error.value.problems) == 25

    def test_unknown_policy(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a", "x\n"), write(tmp_path / "b", "1\n")
        with pytest.raises(ValueError, match="on_problem is 'ignore'; allowed: 'error', 'skip'"):
            ParallelText.from_files(*files, on_problem="ignore")  # type: ignore[arg-type]


class TestTsv:
    def test_quotes_mean_nothing_and_more_columns_are_ignored(self, tmp_path: Path) -> None:
        path = write(tmp_path / "p.tsv", 'il dit "oui\the says "yes\tnote\n')
        assert list(ParallelText.from_tsv(path)) == [('il dit "oui', 'he says "yes')]

    def test_columns_by_number_and_by_name(self, tmp_path: Path) -> None:
        path = write(tmp_path / "p.tsv", "id\ten\tfr\n1\tone\tun\n")
        assert list(ParallelText.from_tsv(path, columns=("fr", "en"))) == [("un", "one")]
        assert list(ParallelText.from_tsv(path, columns=(2, 1))) == [("fr", "en"), ("un", "one")]

    def test_missing_column_name_and_short_rows(self, tmp_path: Path) -> None:
        path = write(tmp_path / "p.tsv", "fr\ten\nun\tone\ndeux\n")
        with pytest.raises(TextError, match=r"no column named 'de'; the header has \['fr', 'en'\]"):
            ParallelText.from_tsv(path, columns=("de", "en"))
        with pytest.raises(TextError, match=r"p.tsv:3: 1 columns; expected at least 2"):
            ParallelText.from_tsv(path, columns=("fr", "en"))


class TestJsonLines:
    def test_nested_fields(self, tmp_path: Path) -> None:
        path = write(tmp_path / "p.jsonl", json.dumps({"translation": {"fr": "un", "en": "one"}}) + "\n")
        text = ParallelText.from_jsonl(path, fields=("translation.fr", "translation.en"))
        assert list(text) == [("un", "one")]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"source": "a", "target": ', r"p.jsonl:2: not JSON: .* at column"),
            ('["a", "b"]', r"p.jsonl:2: 'source' leads into a list"),
            ('{"source": "a"}', r"p.jsonl:2: no field 'target'; there are \['source'\]"),
            ('{"source": "a", "target": 3}', r"p.jsonl:2: 'target' is a int"),
            ("", r"p.jsonl:2: not JSON"),
        ],
    )
    def test_malformed_lines(self, tmp_path: Path, line: str, message: str) -> None:
        good = json.dumps({"source": "x", "target": "y"})
        path = write(tmp_path / "p.jsonl", f"{good}\n{line}\n")
        with pytest.raises(TextError, match=message):
            ParallelText.from_jsonl(path)
        assert list(ParallelText.from_jsonl(path, on_problem="skip")) == [("x", "y")]


class TestDataset:
    def test_map_style_and_streaming(self) -> None:
        dataset = datasets.Dataset.from_dict({"fr": ["un", "deux"], "en": ["one", "two"]})
        for rows in (dataset, dataset.to_iterable_dataset()):
            text = ParallelText.from_dataset(rows, fields=("fr", "en"))
            assert list(text) == [("un", "one"), ("deux", "two")]

    def test_bad_rows_are_numbered_from_one(self) -> None:
        dataset = datasets.Dataset.from_dict({"source": ["un", None], "target": ["one", "two"]})
        with pytest.raises(TextError, match=r"numbers:2: 'source' is a NoneType"):
            ParallelText.from_dataset(dataset, name="numbers")


def catalog(*entries: polib.POEntry) -> polib.POFile:
    po = polib.POFile()
    po.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    po.extend(entries)
    return po


def entry(original: str, translation: str, **more: object) -> polib.POEntry:
    return polib.POEntry(msgid=original, msgstr=translation, **more)


class TestGettext:
    def test_cleaning_rules(self, tmp_path: Path) -> None:
        po = catalog(
            entry("Choose a\n file.", "Choisissez un\n fichier."),
            entry("Delete <b>all %(n)d</b> pages &amp; files?", "Supprimer les <b>%(n)d</b> pages &amp; fichiers ?"),
            entry("The page is gone.", ""),
            entry("Not sure about this.", "Pas sûr de ça.", flags=["fuzzy"]),
            entry("Too short", "Trop court"),
            entry("All the same words", "all the same words"),
            entry("Has one %(name)s here", "N'a rien ici"),
            entry("See https://example.org for more", "Voir https://example.org pour plus"),
            entry("choose a file.", "Choisir un autre fichier."),
            polib.POEntry(msgid="%d page here", msgid_plural="%d pages here", msgstr_plural={0: "%d a", 1: "%d b"}),
        )
        path = tmp_path / "fr.po"
        po.save(str(path))
        text = ParallelText.from_gettext(path, "fr")
        assert list(text) == [
            ("Choisissez un fichier.", "Choose a file."),
            ("Supprimer les 3 pages & fichiers ?", "Delete all 3 pages & files?"),
        ]
        assert text.left_out == {
            "untranslated": 2, "short": 1, "same": 1, "placeholders": 2, "duplicate": 1, "plural": 1,
        }  # fmt: skip
        assert (text.source_language, text.target_language) == ("fr", "en")

    def test_a_placeholder_gets_one_number_wherever_it_stands(self, tmp_path: Path) -> None:
        path = tmp_path / "de.po"
        catalog(entry("Move {a} into {b} now", "{b} soll {a} aufnehmen")).save(str(path))
        assert list(ParallelText.from_gettext(path, "de")) == [("4 soll 3 aufnehmen", "Move 3 into 4 now")]

    def test_wheels_are_read_as_data_and_po_wins_over_mo(self, tmp_path: Path) -> None:
        old, new = catalog(entry("one two three", "alt alt alt")), catalog(entry("one two three", "eins zwei drei"))
        other = catalog(entry("four five six", "vier fünf sechs"))
        folder = "package/locale/de/LC_MESSAGES"
        wheel = tmp_path / "package-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{folder}/django.mo", old.to_binary())
            archive.writestr(f"{folder}/django.po", str(new))
            archive.writestr(f"{folder}/djangojs.mo", other.to_binary())
            archive.writestr("package/locale/de_AT/LC_MESSAGES/django.po", str(old))
            archive.writestr("package/__init__.py", "raise RuntimeError('imported')")
        text = ParallelText.from_gettext([wheel], "de")
        assert text.source == ["eins zwei drei", "vier fünf sechs"]
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "unpacked")
        assert ParallelText.from_gettext(tmp_path / "unpacked", "de").source == text.source

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(TextError, match="no such file"):
            ParallelText.from_gettext(tmp_path / "none.whl", "de")
        with pytest.raises(TextError, match="nor a readable zip file"):
            ParallelText.from_gettext(write(tmp_path / "broken.whl", "PK no"), "de")
        with pytest.raises(TextError, match="no catalog of the language 'de'"):
            ParallelText.from_gettext(tmp_path, "de")
        with pytest.raises(TextError, match=r"x\.mo: the catalog is damaged"):
            ParallelText.from_gettext(write(tmp_path / "x.mo", b"not a catalog"), "de")
        latin = str(catalog(entry("one two three", "drei schöne Wörter"))).encode("latin-1")
        with pytest.raises(TextError, match=r"x\.po:\d+: not utf-8, which the catalog declares"):
            ParallelText.from_gettext(write(tmp_path / "x.po", latin), "de")


class TestSplit:
    def test_sizes_and_reproducibility(self) -> None:
        text = ParallelText([f"s{i}" for i in range(50)], [f"t{i}" for i in range(50)], "xx", "en", "here")
        split = text.split(dev=10, test=15)
        assert [len(part) for part in split] == [25, 10, 15]
        assert [list(part) for part in split] == [list(part) for part in text.split(dev=10, test=15)]
        assert list(split.test) != list(text.split(dev=10, test=15, seed=1).test)
        assert sorted(pair for part in split for pair in part) == sorted(text)
        assert split.dev.source_language == "xx"

    @given(st.integers(0, 2**32), st.integers(10, 60))
    def test_no_sentence_is_in_two_parts(self, seed: int, n: int) -> None:
        choose = random.Random(seed)
        source = [choose.choice(["a", "A ", "b", "c"]) + str(choose.randrange(n)) for _ in range(n)]
        text = ParallelText(source, [f"t{choose.randrange(3 * n)}" for _ in range(n)])
        assume(sum(len(group) == 1 for group in text._groups()) > 2)
        split = text.split(dev=1, test=1, seed=seed)
        for side in ("source", "target"):
            parts = [{" ".join(s.casefold().split()) for s in getattr(part, side)} for part in split]
            assert not parts[0] & parts[1]
            assert not parts[0] & parts[2]
            assert not parts[1] & parts[2]

    def test_too_few_pairs(self) -> None:
        text = ParallelText(["a", "A", "b", "c"], ["1", "2", "3", "4"])
        with pytest.raises(ValueError, match="without sharing a sentence the parts would have"):
            text.split(fit=2, dev=1, test=2)
        with pytest.raises(ValueError, match="expected numbers of pairs >= 0"):
            text.split(dev=-1, test=1)

    def test_unequal_lists(self) -> None:
        with pytest.raises(ValueError, match="source has 1 sentences, target 2"):
            ParallelText(["a"], ["b", "c"])
