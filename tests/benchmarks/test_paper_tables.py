"""Tables of docs/benchmarks/paper.md: numbers of the CSVs and nothing else."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.paper_tables import paper_blocks
from incline_fast.files import write_table


def put(path: Path, rows: list[dict[str, object]]) -> None:
    write_table(rows, list(rows[0]), path)


def test_without_results(tmp_path: Path) -> None:
    assert set(paper_blocks(tmp_path)) == {"continuations", "rank", "retrieval", "figures", "code"}
    assert all("Not yet measured by this code" in block for block in paper_blocks(tmp_path).values())


def test_numbers_of_the_rows(tmp_path: Path) -> None:
    gain = {"difference": -0.024, "low": -0.052, "high": 0.002, "p_mcnemar": 0.1, "n": 500}
    about = {"model": "m", "task": "xcopa", "score": "raw", "settings_tried": 4, "pairs": 120, "development_rows": 60}
    put(
        tmp_path / "continuations.csv",
        [
            about | {"language": language, "line": line, "accuracy": 0.51, "setting": "s"} | gain
            for language in ("all", "tr")
            for line in ("plain", "INCLINE")
        ],
    )
    put(tmp_path / "rank-m.csv", [{"language": "tr", "site": 1, "cosine": 0.9, "centred": 0.25, "n": 40}])
    put(
        tmp_path / "retrieval.csv",
        [
            {"model": "m", "language": "fr", "site": site, "method": "plain", "accuracy": 0.123, "n": 100, "pairs": 200}
            | {"over_scaled_mean": -0.1, "over_scaled_low": -0.15, "over_scaled_high": -0.05}
            for site in (3, "mean")
        ],
    )
    line = {"model": "m", "shots": 0, "target": "en", "calibration": "raw", "pairs": 200, "sites": "21-30"} | gain
    put(
        tmp_path / "figures.csv",
        [
            line | {"language": "all", "figure": "", "line": "plain", "alpha": 0.0, "accuracy": 0.3},
            line | {"language": "fr", "figure": "", "line": "plain", "alpha": 0.0, "accuracy": 0.3},
            line | {"language": "all", "figure": "pairs", "line": "25", "alpha": 0.5, "accuracy": 0.4},
            line | {"language": "target", "figure": "", "line": "target prompt", "alpha": 0.0, "accuracy": 0.7},
        ],
    )
    code = {"model": "m", "calibration": "raw", "pairs": 48, "sites": "21-30", "kl": 0.5} | gain
    changes = {"kl_change": -0.1, "kl_low": -0.2, "kl_high": 0.05}
    put(
        tmp_path / "code-labels.csv",
        [
            code | {"line": line, "alpha": alpha, "accuracy": 0.4} | changes
            for line, alpha in (("plain", 0.0), ("INCLINE", 0.5), ("prompt in Python", 0.0))
        ],
    )
    made = paper_blocks(tmp_path)
    assert "| plain | 51.0% | 51.0% |\n| INCLINE | 51.0% −2.4 [−5.2, +0.2] |" in made["continuations"]
    assert "chosen on 60 rows: s." in made["continuations"]
    assert "| tr | 0.900 / 0.250 | 0.900 / 0.250 |" in made["rank"]
    assert "| plain | 12.3% | 12.3% | −10.0 [−15.0, −5.0] |" in made["retrieval"]
    assert "raw scores: plain 30.0%, prompt in en 70.0%" in made["figures"]
    assert "| 25 | 40.0% −2.4 [−5.2, +0.2] |" in made["figures"]
    assert "plain 40.0%, prompt in Python 40.0% −2.4 [−5.2, +0.2]." in made["code"]
    assert "|  | alpha 0.5 |\n| --- | --- |\n| INCLINE | 40.0% −2.4 [−5.2, +0.2] |" in made["code"]
    assert "| INCLINE | 0.500 −0.100 [−0.200, +0.050] |" in made["code"]
