"""From text files to a tuned artifact and to a table of results, by the commands alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny_models import tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from typer.testing import CliRunner, Result

from incline_fast import Alignment
from incline_fast.cli.app import app

TEMPLATE = "{sentence}\\nw7"
LABELS = "w50,w51,w52"

pytestmark = pytest.mark.filterwarnings("ignore:there are", "ignore:the sentences to fit")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    tiny("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    source, target = list(dict.fromkeys(sentences(60, 0)))[:40], list(dict.fromkeys(sentences(60, 1)))[:40]
    pairs = list(zip(source, target, strict=True))
    (folder / "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in pairs[:30]))
    rows = [f"{s}\t{t}\tw5{i % 3}\n" for i, (s, t) in enumerate(pairs[30:])]
    (folder / "dev.tsv").write_text("source\ttarget\tlabel\n" + "".join(rows))
    return folder


def test_tune_and_evaluate(folder: Path) -> None:
    output, table = folder / "tuned.safetensors", folder / "tried.csv"
    result = run(
        "tune", folder / "model", "--pairs", folder / "pairs.tsv", "--dev", folder / "dev.tsv", "--metric", "kl",
        "--template", TEMPLATE, "--labels", LABELS, "--lams", "0.3,1", "--alphas", "0.25,0.5", "--languages", "xx,yy",
        "--table", table, "--resume", folder / "run", "-o", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "what the true target state gains there (kl)" in result.output
    about = Alignment.load(output, tiny("llama")).metadata
    assert (about.source_language, about.preset, about.template) == ("xx", "tuned", "{sentence}\nw7")
    assert about.metrics["labels"] == LABELS
    with table.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == about.metrics["settings_tried"]

    result = run("evaluate", folder / "model", output, "--test", folder / "dev.tsv", "-o", folder / "result.csv")
    assert result.exit_code == 0, result.output
    assert "target prompt" in result.output
    with (folder / "result.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["calibration"] for row in rows} == {"raw", "contextual", "batch", "prior"}
    assert all(float(row["low"]) <= float(row["difference"]) <= float(row["high"]) for row in rows)
    assert all(row["weights_hash"] and row["data_hash"] and row["preset"] == "tuned" for row in rows)


def test_without_a_development_file(folder: Path) -> None:
    output = folder / "own.safetensors"
    # Translations that end alike have like states: their mean is a map that helps.
    texts = list(dict.fromkeys(sentences(60, 0)))[:30]
    alike = "".join(f"{text}\t{'w9 ' * (i + 9)}\n" for i, text in enumerate(texts))
    (folder / "alike.tsv").write_text(alike)
    result = run(
        "tune", folder / "model", "--pairs", folder / "alike.tsv", "--template", TEMPLATE, "--labels", LABELS,
        "--estimators", "constant_mean", "--alphas", "0.1,0.5", "--layers", "3", "-o", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    about = Alignment.load(output, tiny("llama")).metadata
    assert about.metrics["metric"] == "kl"
    assert about.metrics["development_rows"] == 9  # 30% of 30
    assert about.n == 30


def test_what_is_wrong_is_said(folder: Path) -> None:
    result = run("tune", folder / "model", "--pairs", folder / "pairs.tsv", "--template", "x", "-o", folder / "x")
    assert result.exit_code == 2
    assert "expected at least two words" in result.output
