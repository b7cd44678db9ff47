"""Answers under every kind of line equal those of whole passes through ``intervene``, one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_task import LABELS, tiny_task
from tiny_tokenizer import sentences, tiny_tokenizer
from torch import Tensor, nn

from benchmarks.paper.figure_lines import Line, preset_lines
from benchmarks.paper.figures import PLAIN_KEY, Parts, all_rows, label_logits, right_answers
from incline_fast import Alignment, intervene
from incline_fast.evaluation import LabelTask


def one_by_one(model: nn.Module, line: Line | None, alpha: float, task: LabelTask) -> Tensor:
    """Logits ``[n, K]`` of whole passes."""
    tokenizer, rows = tiny_tokenizer(), []
    columns = tokenizer(" ".join(LABELS), add_special_tokens=False).input_ids
    edit = line.edit if line is not None else Alignment.from_maps({1: torch.eye(HIDDEN)})
    mode = "clean" if edit.metadata.site == "ffn" else "online"
    for sentence in task.sentences:
        prompt = tokenizer(task.template.replace("{sentence}", sentence), return_tensors="pt")
        with torch.no_grad(), intervene(model, edit, alpha=alpha, layers=line and line.sites, mode=mode):
            rows.append(model(**prompt).logits[0, -1])
    return torch.stack(rows)[:, columns]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_presets(name: str) -> None:
    model, tokenizer, task = tiny(name), tiny_tokenizer(), tiny_task()
    source = LabelTask("tiny", "xx", sentences(20, 3), task.template, LABELS, None, [str(i) for i in range(20)])
    target = LabelTask("tiny", "yy", sentences(20, 4), task.template, LABELS, None, source.ids)
    lines = preset_lines(model, tokenizer, source, target, (2, 3))
    assert [key[1] for key in lines] == [
        f"{preset}, {where}" for preset in ("robust", "paper", "official") for where in ("last third", "all sites")
    ]
    assert lines["preset", "robust, all sites"].edit.metadata.template == task.template
    assert lines["preset", "paper, all sites"].edit.metadata.template is None
    found = label_logits(model, tokenizer, task, lines)
    torch.testing.assert_close(found[PLAIN_KEY], one_by_one(model, None, 0.0, task), rtol=1e-3, atol=1e-4)
    for key, line in lines.items():
        assert line.sites == ((2, 3) if "third" in key[1] else tuple(range(1, LAYERS + 1)))
        alpha = line.alphas[1]
        assert alpha == (-0.5 if key[0] == "official" else 0.5)
        expected = one_by_one(model, line, alpha, task)
        torch.testing.assert_close(found[(*key, alpha)], expected, rtol=1e-3, atol=1e-4)


def test_rows_are_against_the_plain_prompt() -> None:
    task = tiny_task(4)
    answers = torch.tensor(task.answers)
    right = torch.nn.functional.one_hot(answers, 3).float()
    wrong = right.roll(1, 1)
    plain, edited = torch.where(torch.tensor([[True], [False], [False], [False]]), right, wrong), right
    logits = {name: {PLAIN_KEY: plain, ("a", "b", 0.5): edited} for name in ("xx", "yy")}
    parts = Parts({}, {"xx": task, "yy": task})
    rows = all_rows(logits, {PLAIN_KEY: right}, parts, {("a", "b"): "2-3"})
    raw = {(row["language"], row["line"]): row for row in rows if row["calibration"] == "raw"}
    assert raw["xx", "plain"]["difference"] == 0
    assert raw["all", "b"]["difference"] == 0.75
    assert (raw["all", "b"]["n"], raw["all", "b"]["cpc"]) == (8, 1.0)
    assert (raw["yy", "b"]["figure"], raw["yy", "b"]["alpha"], raw["yy", "b"]["sites"]) == ("a", 0.5, "2-3")
    assert raw["target", "target prompt"]["accuracy"] == 1.0
    assert len(rows) == 2 * len(raw) == 2 * 7


def test_calibration_takes_off_what_all_rows_share() -> None:
    task = tiny_task(6)
    logits = torch.nn.functional.one_hot(torch.tensor(task.answers), 3).float() + torch.tensor([9.0, 0.0, 0.0])
    assert int(right_answers({PLAIN_KEY: logits}, task, "raw")[PLAIN_KEY].sum()) == 2
    assert int(right_answers({PLAIN_KEY: logits}, task, "batch")[PLAIN_KEY].sum()) == 6
