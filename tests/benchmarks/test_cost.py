"""benchmarks/cost.py and benchmarks/states.py: what they compare agrees, and tables hold the numbers of the rows."""

from __future__ import annotations

import csv
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny
from tiny_tokenizer import sentences, tiny_tokenizer

from benchmarks import cost, peak_memory, states
from benchmarks.report.cost_tables import cost_blocks
from benchmarks.solver import made_up
from incline_fast.files import write_table
from incline_fast.solver.ridge import Ridge


def put(path: Path, rows: list[dict[str, object]]) -> None:
    write_table(rows, list(rows[0]), path)


@pytest.mark.parametrize("work", cost.WAYS)
def test_every_way_learns_the_same_maps(work: str) -> None:
    data = made_up(2, 40, 32)
    sites = [(X[:24].contiguous(), Y[:24].contiguous()) for X, Y in data]
    found = {}
    for name, way in cost.WAYS[work].items():
        held_out = [X[24:].double() for X, _ in data]
        found[name] = [
            one.predict(x).numpy() if isinstance(one, Ridge) else x.numpy() @ np.asarray(one)
            for one, x in zip(way(sites), held_out, strict=True)
        ]
    for name, predictions in found.items():
        for mine, theirs in zip(found[cost.OURS], predictions, strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-6 * np.abs(mine).max(), err_msg=name)


def test_learning_is_timed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SITES": 2, "ROWS": 24, "WIDTH": 32, "RESULTS": tmp_path}.items():
        monkeypatch.setattr(cost, name, value)
    monkeypatch.setattr(cost, "in_fresh_process", lambda work, *arguments: work(*arguments))
    arguments = Namespace(work="min_norm", states=None, threads=1, rounds=1, processes=1)
    cost.learn(arguments)
    if sys.platform == "linux":
        cost.learn_memory(arguments)
    monkeypatch.undo()
    put(tmp_path / "intervene-gemma-2t.csv", [TIME])
    made = cost_blocks(tmp_path)["cost-learn"]
    assert "2 sites, n = 24, d = 32, made-up states" in made
    assert "| ours | " in made
    assert "| numpy.linalg.lstsq | " in made


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_of_the_work_alone() -> None:
    kept = [bytearray(32 << 20)]
    before = peak_memory.peak_increase(lambda: None)
    kept.clear()  # given back, so that the next peak does not hide in it
    taken = peak_memory.peak_increase(lambda: len(bytearray(b"x") * (64 << 20)))
    assert before < 8
    assert 60 < taken < 80


def test_a_sentence_that_occurs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then `gels`, which takes the matrix to have full rank, predicts nonsense, and has no time."""
    for name, value in {"SITES": 2, "ROWS": 24, "WIDTH": 32, "RESULTS": tmp_path}.items():
        monkeypatch.setattr(cost, name, value)
    monkeypatch.setattr(cost, "read_sites", lambda states, rows: [doubled(site) for site in made_up(2, rows, 32)])
    cost.learn(Namespace(work="min_norm", states=None, threads=1, rounds=1))
    with (tmp_path / "cost-learn.csv").open(newline="") as file:
        rows = {row["provider"]: row for row in csv.DictReader(file)}
    assert {row["states"] for row in rows.values()} == {"made-up, a sentence twice"}
    assert [name for name, row in rows.items() if not row["ms_p50"]] == ["torch.linalg.lstsq gels"]


def doubled(site: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    X, Y = site
    X[5] = X[3]
    return X, Y


def test_one_sentence_a_pass_gives_the_states_of_collect() -> None:
    model, tokenizer, texts = tiny("llama"), tiny_tokenizer(), sentences(7, seed=2)
    times, error = states.measure(model, tokenizer, texts, "{sentence} w5 w6", rounds=1)
    assert set(times) == {"ours", "published", "fair"}
    assert error < 1e-5
    right = {site: torch.ones(2, 3) for site in range(3)}
    assert states.check(right, right | {2: torch.zeros(2, 3)}) == 0  # the last site is behind the norm
    with pytest.raises(SystemExit, match=r"states differ by 1\.0e\+00 of their norm"):
        states.check(right | {1: torch.zeros(2, 3)}, right)


ABOUT: dict[str, object] = {"threads": 2, "device": "a processor", "torch": "2.13"}
TIME = {
    "way": "hook", "hidden_size": 640, "layers": 18, "dtype": "float32", "batch": 1, "prompt_tokens": 20,
    "prompt_ms": 90.1, "extra_prompt_ms": 4.12, "extra_token_ms": -0.7, "rounds": 30, **ABOUT,
}  # fmt: skip


def test_tables_hold_the_rows_and_name_what_loses(tmp_path: Path) -> None:
    put(tmp_path / "intervene-gemma-2t.csv", [TIME, TIME | {"way": "plain", "extra_prompt_ms": 0.0}])
    assert "Not yet measured" in cost_blocks(tmp_path)["cost-learn"]
    assert "Not yet measured" in cost_blocks(tmp_path)["cost-states"]
    learned = {
        "work": "min_norm", "provider": "incline_fast", "ms_p50": 1500.0, "ratio_to_first": 1.0,
        "held_out_error": "1e-13", "rounds": 3, "load": 1.0, "states": "real", "sites": 18, "n": 500, "d": 640, **ABOUT,
    }  # fmt: skip
    gels = learned | {"provider": "torch.linalg.lstsq gels", "ms_p50": 1200.0, "ratio_to_first": 0.8}
    twice = learned | {"states": "real, a sentence twice"}
    wrong = twice | {
        "provider": "torch.linalg.lstsq gels",
        "ms_p50": "",
        "ratio_to_first": "",
        "held_out_error": "4e+02",
    }
    put(tmp_path / "cost-learn.csv", [learned, gels, twice, wrong])
    peak = {"work": "min_norm", "provider": "incline_fast", "states": "real", "peak_mib": 70.5}
    loo = peak | {"work": "loo", "peak_mib": 240.0}
    put(tmp_path / "cost-learn-memory.csv", [peak, peak | {"provider": gels["provider"], "peak_mib": 90.0}, loo])
    size = {"prompt": "1x60", "new_tokens": 8, "processes": 3}
    put(tmp_path / "cost-apply-memory.csv", [{"way": "hook", "peak_mib": 7.5, **size}])
    ours = {
        "model": "m (x)", "case": "news", "way": "ours", "seconds": 1.0, "ratio": 1.0, "sentences": 10,
        "mean_tokens": 41.5, "rounds": 5, "load": 1.1, **ABOUT,
    }  # fmt: skip
    others = [ours | {"way": "published", "seconds": 4.0, "ratio": 4.0}, ours | {"way": "fair", "ratio": 1.25}]
    put(tmp_path / "cost-states.csv", [ours, *others])
    made = cost_blocks(tmp_path)
    assert "| ours | 1.50 | 1.00x | 70.5 | 1e-13 |" in made["cost-learn"]
    assert "| torch.linalg.lstsq gels | wrong |  |  | 4e+02 |" in made["cost-learn"]
    assert "our default: incline_fast 240.0." in made["cost-learn"]
    assert "real, a sentence twice states" in made["cost-learn"]
    assert "Less than ours: time of torch.linalg.lstsq gels (minimum norm, real)." in made["cost-learn"]
    assert "| hook | 90.1 |  | 4.12 |  | -0.7 |  | 7.5 |" in made["cost-apply"]
    assert "| the plain model | 90.1 |  |  |  |  |  |  |" in made["cost-apply"]
    assert "| m | news | 41.5 | 100 | 400 | 100 | 4.00x | 1.25x | 5 | 1.1 |" in made["cost-states"]
    assert "Below 3x: m, news, against last logits only (1.25x)." in made["cost-states"]
