"""benchmarks/lm_eval.py: what the harness wrote is read, and the table of docs/lm_eval.md holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.lm_eval import TEMPLATES, news, read_run
from benchmarks.report.lm_eval_tables import lm_eval_blocks
from incline_fast.files import write_table


def test_results_and_rows_of_a_run(tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    task = "incline_mgsm_fr"
    with pytest.raises(ValueError, match="0 files of results and 0 of rows; expected 1 and 1"):
        read_run(tmp_path, task, "exact_match")
    found = {"alias": task, "exact_match,last number": 0.5, "exact_match_stderr,last number": 0.25}
    (place / "results_1.json").write_text(json.dumps({"results": {task: found}}))
    rows = [{"doc_id": i, "doc_hash": f"h{i}", "exact_match": float(i == 1)} for i in (1, 0)]
    (place / f"samples_{task}_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(tmp_path, task, "exact_match")
    assert (run.score, run.stderr) == (0.5, 0.25)
    assert run.each.tolist() == [0.0, 1.0]
    assert run.rows == ["h0", "h1"]


def test_templates_take_a_sentence_and_news_are_cut(tmp_path: Path) -> None:
    assert all(text.format(name="French").count("{sentence}") == 1 for text in TEMPLATES.values())
    (tmp_path / "ntrex128").mkdir()
    (tmp_path / "ntrex128" / "newstest2019-ref.fra.txt").write_text("Un.\nDeux.\nTrois.\n")
    assert news(tmp_path, "fr", 2, tmp_path).read_text() == "Un.\nDeux.\n"


def test_the_table_holds_the_rows(tmp_path: Path) -> None:
    assert "Not yet measured" in lm_eval_blocks(tmp_path)["lm-eval"]
    plain = {
        "model": "m", "task": "xcopa_tr", "alpha": 0.0, "metric": "acc", "score": 0.5, "stderr": 0.0316, "n": 250,
        "difference": "", "low": "", "high": "", "pairs": 200, "preset": "robust", "lm_eval": "0.4.13", "torch": "2.13",
        "cpu": "a processor",
    }  # fmt: skip
    edited = plain | {"alpha": 0.4, "score": 0.488, "difference": -0.012, "low": -0.052, "high": 0.028}
    write_table([plain, edited], list(plain), tmp_path / "lm-eval.csv")
    made = lm_eval_blocks(tmp_path)["lm-eval"]
    assert "m, preset `robust`, 200 pairs of news, lm-eval 0.4.13, torch 2.13, a processor." in made
    assert "| `incline_xcopa_tr` | acc | 250 | 0.4 | 50.0% ± 3.2 | 48.8% ± 3.2 | −1.2 [−5.2, +2.8] |" in made
