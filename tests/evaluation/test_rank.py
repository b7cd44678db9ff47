"""Similarity to a reference language: against cosines written out, and what the command prints and refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from tiny_models import LAYERS, tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from typer.testing import CliRunner

from incline_fast.cli.app import app
from incline_fast.evaluation import rank_languages
from incline_fast.evaluation.rank import similarity
from incline_fast.states import collect


def test_similarity_is_the_mean_cosine() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    assert similarity(a, b) == pytest.approx(0.5)
    assert similarity(a, a + 7.0, centre=True) == pytest.approx(1.0)
    assert similarity(a, a + 7.0) < 0.99


def test_ranking_of_states() -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    reference = sentences(12, seed=0)
    near = [text if i % 3 else "w5 w9" for i, text in enumerate(reference)]
    texts = {"far": sentences(12, seed=1), "near": near, "same": list(reference)}
    found = rank_languages(model, tokenizer, reference, texts, progress=False)
    assert found.order == ["same", "near", "far"]
    assert list(found.raw["near"]) == list(range(1, LAYERS + 1))
    assert found.raw["same"][2] == pytest.approx(1.0)
    assert found.centred["same"][2] == pytest.approx(1.0)
    one = [collect(model, tokenizer, side, layers=[2], progress=False)[2] for side in (near, reference)]
    expected = [float(x @ y / x.norm() / y.norm()) for x, y in zip(*one, strict=True)]
    assert found.raw["near"][2] == pytest.approx(sum(expected) / 12, abs=1e-5)
    with pytest.raises(ValueError, match=r"texts\['xx'\] has 3 sentences, reference 12"):
        rank_languages(model, tokenizer, reference, {"xx": reference[:3]}, progress=False)
    with pytest.raises(ValueError, match="texts is empty"):
        rank_languages(model, tokenizer, reference, {}, progress=False)


def test_the_command(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, seed in (("en", 0), ("fr", 1), ("sw", 2)):
        (tmp_path / f"news.{name}").write_text("\n".join(sentences(6, seed=seed)) + "\n")
    output = tmp_path / "rank.csv"
    arguments = ["rank", tmp_path / "model", "--reference", tmp_path / "news.en", "-o", output, "--limit", 5]
    arguments += ["--text", f"fr={tmp_path}/news.fr", "--text", f"sw={tmp_path}/news.sw"]
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "centred" in result.output
    assert "n = 5" in result.output
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * LAYERS
    assert {row["language"] for row in rows} == {"fr", "sw"}
    wrong = [*map(str, arguments), "--text", "news.xx"]
    assert CliRunner().invoke(app, wrong).exit_code != 0
