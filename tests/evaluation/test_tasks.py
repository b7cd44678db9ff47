"""Readers of tasks, on made-up rows in the formats of the sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from incline_fast.evaluation import LabelTask, TaskError, few_shot_template, sib200, tsv_labels, xcopa, xwinograd


def test_sib200(tmp_path: Path) -> None:
    (tmp_path / "xx").mkdir()
    for split, rows in (
        ("train", ["7\ttravel\tWe went.", '8\tscience/technology\tA "beam".']),
        ("dev", ["9\ttravel\tGo"]),
    ):
        text = "\n".join(["index_id\tcategory\ttext", *rows]) + "\n"
        (tmp_path / "xx" / f"{split}.tsv").write_text(text, encoding="utf-8")
    task = sib200(tmp_path, "xx", ["train", "dev"])
    assert task.labels == ("science", "travel")
    assert task.answers == [1, 0, 1]
    assert task.sentences[1] == 'A "beam".'
    assert task.ids == ["7", "8", "9"]
    assert task.select([2, 0]).ids == ["9", "7"]
    assert task.data_hash != task.select([2, 0]).data_hash


def test_few_shot_template() -> None:
    task = LabelTask("x", "", ["One.", "Two."], "{sentence} It is", ("a", "b"), [1, 0], ["0", "1"])
    assert few_shot_template(task) == "One. It is b\n\nTwo. It is a\n\n{sentence} It is"
    with pytest.raises(TaskError, match="examples need answers"):
        few_shot_template(LabelTask("x", "", ["One."], "{sentence}", ("a", "b"), None, ["0"]))


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("source\ttarget\tlabel\nbonjour\thello\tgood\nnon\tno\tbad\n", encoding="utf-8")
    task = tsv_labels(path, "{sentence} is", labels=("good", "bad"))
    assert task.answers == [0, 1]
    assert tsv_labels(path, "{sentence} is").labels == ("bad", "good")
    with pytest.raises(TaskError, match=r"line 3: label 'bad' is not one of good, fine"):
        tsv_labels(path, "{sentence} is", labels=("good", "fine"))
    with pytest.raises(TaskError, match=r"no column \['topic'\]"):
        tsv_labels(path, "{sentence} is", columns=("source", "topic"))


def test_xcopa(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    rows = [
        {"premise": "Piove.", "choice1": "Esco.", "choice2": "Resto.", "question": "effect", "label": 1, "idx": 4},
        {"premise": "Rido.", "choice1": "Scherzo.", "choice2": "Piango.", "question": "cause", "label": 0, "idx": 5},
    ]
    (tmp_path / "it" / "val.it.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = xcopa(tmp_path, "it", "val")
    assert task.prompts == [["Piove quindi"] * 2, ["Rido perché"] * 2]
    assert task.continuations[0] == [" esco.", " resto."]
    assert task.answers == [1, 0]
    with pytest.raises(TaskError, match="language is 'xx'; allowed: en, et"):
        xcopa(tmp_path, "xx", "val")


def test_xwinograd(tmp_path: Path) -> None:
    sentence = "The cup does not fit in the bag because it is large."
    tokens = [*sentence.rstrip(".").split(), "."]
    place = tokens.index("it")
    options = [["The cup", [0, 2], ["The", "cup"], True], ["the bag", [6, 8], ["the", "bag"], False]]
    row = [
        "en",
        "o",
        "?",
        sentence,
        json.dumps(tokens),
        json.dumps(["it", [place, place + 1], ["it"]]),
        json.dumps(options),
    ]
    path = tmp_path / "dataset.tsv"
    path.write_text("\t".join(row) + "\n", encoding="utf-8")
    task = xwinograd(path, "en")
    assert task.prompts[0][0] == "The cup does not fit in the bag because The cup"
    assert task.continuations[0] == [" is large."] * 2
    assert task.answers == [0]
    with pytest.raises(TaskError, match="no usable row of 'fr'"):
        xwinograd(path, "fr")


def test_rows_that_do_not_agree() -> None:
    with pytest.raises(TaskError, match="expected as many"):
        LabelTask("x", "", ["a"], "{sentence}", ("a", "b"), [0, 1], ["0"])
    with pytest.raises(TaskError, match="at least two different"):
        LabelTask("x", "", ["a"], "{sentence}", ("a", "a"), [0], ["0"])
