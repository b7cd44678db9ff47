"""The whole experiment on a tiny model: what is pooled, what is flattered, and what the table says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_tune import LABELS, TEMPLATE, translated
from tiny_models import LAYERS, tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from incline_fast.evaluation import LabelTask, TaskError
from incline_fast.evaluation.comparison import COLUMNS, INCLINE, OVER_CONTROL, TARGET, Parts, compare_languages
from incline_fast.evaluation.controls import CONTROLS

N = 60


def task(language: str, shifts: int) -> LabelTask:
    texts = list(dict.fromkeys(sentences(100, seed=7)))[:N]
    for _ in range(shifts):
        texts = translated(texts)
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    columns = tokenizer(" ".join(LABELS), add_special_tokens=False).input_ids
    answers = []
    with torch.inference_mode():
        for text in list(dict.fromkeys(sentences(100, seed=7)))[:N]:
            ids = tokenizer(TEMPLATE.replace("{sentence}", text), return_tensors="pt").input_ids
            answers.append(int(model(ids).logits[0, -1, columns].argmax()))
    return LabelTask("tiny", language, texts, TEMPLATE, LABELS, answers, [str(i) for i in range(N)])


@pytest.mark.filterwarnings("ignore:there are", "ignore:the sentences to fit")
def test_table_of_two_languages(tmp_path: Path) -> None:
    parts = {name: Parts.drawn(task(name, shifts), development=12, test=16) for name, shifts in (("xx", 1), ("yy", 2))}
    english = Parts.drawn(task("en", 0), development=12, test=16)
    options = {"sites": [2, 3], "lams": (0.3, 1.0), "alphas": (0.3, 0.6, 1.0), "progress": False}
    found = compare_languages(tiny("llama"), tiny_tokenizer(), parts, english, resume=tmp_path / "run", **options)
    # The English answers were made right.
    assert found.row("all", TARGET)["accuracy"] == 1
    assert found.row("all", "plain")["cpc"] == found.row("all", "plain")["accuracy"]
    assert {row["line"] for row in found.rows} >= {INCLINE, OVER_CONTROL, *CONTROLS}
    assert all(set(row) <= set(COLUMNS) for row in found.rows)
    one, two = (found.row(name, INCLINE) for name in ("xx", "yy"))
    both = found.row("all", INCLINE)
    assert both["n"] == 32
    assert both["accuracy"] == pytest.approx((one["accuracy"] + two["accuracy"]) / 2, abs=1e-3)
    assert one["setting"] == two["setting"] == str(found.chosen[0])  # nothing is tuned to a language
    assert both["kl"] < found.row("all", "plain")["kl"]
    assert sorted(found.oracle["xx"]) == [2, LAYERS]
    again = compare_languages(tiny("llama"), tiny_tokenizer(), parts, english, resume=tmp_path / "run", **options)
    assert again.rows == found.rows


def test_rows_that_do_not_match() -> None:
    parts = Parts.drawn(task("xx", 1), development=12, test=16)
    other = Parts.drawn(task("en", 0), development=12, test=16, seed=1)
    with pytest.raises(TaskError, match="the fit rows of xx are not those of the English text"):
        compare_languages(tiny("llama"), tiny_tokenizer(), {"xx": parts}, other)
    with pytest.raises(TaskError, match="leave none to fit"):
        Parts.drawn(task("xx", 1), development=40, test=20)
