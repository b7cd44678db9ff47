"""Parallel code: both functions of a pair do the same, no pair is measured by its own maps, rows are what they say."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections import Counter
from typing import Any

import pytest
import torch

from benchmarks.paper.code import KINDS, PAIRS, folds, label_rows, read_tasks

ROWS: list[dict[str, Any]] = [json.loads(line) for line in PAIRS.read_text().splitlines()]
KIND_OF = {str: "string", list: "list", int: "number", float: "number", bool: "boolean"}


def test_python_functions_return_the_results() -> None:
    for row in ROWS:
        (function,) = ast.parse(row["python"]).body
        assert isinstance(function, ast.FunctionDef)
        assert function.name == row["name"]
        space: dict[str, Any] = {}
        exec(row["python"], space)
        result = space[row["name"]](*row["arguments"])
        assert result == row["result"], row["name"]
        assert KIND_OF[type(result)] == row["kind"], row["name"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run JavaScript")
def test_javascript_functions_return_the_same() -> None:
    calls = []
    for row in ROWS:
        name = re.sub("_(.)", lambda match: match[1].upper(), row["name"])
        calls.append(f"(() => {{ {row['javascript']}\nreturn {name}(...{json.dumps(row['arguments'])}); }})()")
    script = f"console.log(JSON.stringify([{', '.join(calls)}]))"
    printed = subprocess.run(["node", "-"], input=script, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [row["result"] for row in ROWS]


def test_rows() -> None:
    assert Counter(row["kind"] for row in ROWS) == dict.fromkeys(KINDS, 15)
    javascript, python = read_tasks()
    assert (javascript.ids, javascript.answers) == (python.ids, python.answers)
    assert len(set(python.ids)) == 60
    assert javascript.sentences[0].startswith("function ")
    assert python.sentences[0].startswith("def ")


def test_folds() -> None:
    parts = folds(60)
    assert sorted(row for _, test in parts for row in test) == list(range(60))
    assert all(sorted([*fit, *test]) == list(range(60)) for fit, test in parts)


def test_label_rows() -> None:
    task = read_tasks()[0]
    assert task.answers is not None
    right = 5.0 * torch.nn.functional.one_hot(torch.tensor(task.answers), len(KINDS)).float()
    logits = {("plain", 0.0): torch.zeros(60, 4), ("INCLINE", 0.5): right}
    rows = {(row["line"], row["calibration"]): row for row in label_rows(logits, right, task)}
    best, plain = rows["INCLINE", "raw"], rows["plain", "raw"]
    assert (plain["accuracy"], best["accuracy"], best["difference"]) == (0.25, 1.0, 0.75)
    p = right.softmax(-1)
    assert plain["kl"] == pytest.approx(float((p * (p / 0.25).log()).sum(-1).mean()), abs=1e-4)
    assert best["kl"] == 0
    assert best["kl_change"] == best["kl_high"] == pytest.approx(-plain["kl"], abs=1e-4)
    assert rows["prompt in Python", "batch"]["accuracy"] == 1.0
    assert rows["prompt in Python", "batch"]["kl"] == ""
