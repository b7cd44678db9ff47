"""Results of the serving benchmarks: files that several runs add to, and the tables that are made of them."""

from __future__ import annotations

import csv

from benchmarks.report import serving_tables
from benchmarks.serving import overhead, parity
from benchmarks.serving.results import add_lines
from benchmarks.serving.workload import Ask, Result

KEY = ("model", "requests", "measure")
LINE = {
    "model": "tiny",
    "requests": "last",
    "measure": "batch",
    "pairs": 9,
    "ratio": 1.00444,
    "ratio_p20": 0.99,
    "ratio_p80": 1.02,
    "seconds_plain": 1.5,
    "cpu": "a processor",
}


def test_a_second_run_replaces_its_lines_and_keeps_others(tmp_path):
    path = tmp_path / "results" / "a.csv"
    add_lines([LINE, {**LINE, "measure": "first token"}], KEY, path)
    add_lines([{**LINE, "ratio": 1.02}], KEY, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["measure"], row["ratio"]) for row in rows] == [("batch", "1.02"), ("first token", "1.004")]


def test_tables_name_the_processor_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(serving_tables, "RESULTS", tmp_path)
    add_lines([LINE], KEY, tmp_path / "serving-overhead.csv")
    made = serving_tables.serving_blocks()
    assert "| tiny, last | batch | 1.004 | 0.990 to 1.020 | 1.5 | 9 |" in made["serving-overhead"]
    assert "Processor: a processor." in made["serving-overhead"]
    assert made["serving-load"].startswith("Not yet measured: `python -m benchmarks.serving.load")


def test_each_engine_begins_as_often_and_ratios_are_of_neighbours():
    """The machine becomes slower from turn to turn; the second engine takes half as long again in each."""
    begun: list[str] = []

    def turn(name: str, factor: float) -> float:
        begun.append(name)
        return factor * (1 + (len(begun) - 1) // 2)

    found = overhead._paired(lambda: turn("plain", 1.0), lambda: turn("second", 1.5), 4)
    assert found == (1.5, 1.5, 1.5, 3.5)
    assert begun[2:] == ["plain", "second", "second", "plain"] * 2


def test_log_probabilities_are_compared_by_map_and_up_to_the_first_other_token():
    asks = [Ask("a", "fr-en"), Ask("b", None), Ask("c", "fr-en")]
    got = [Result([1, 2], [-1.0, -2.0]), Result([3], [-0.5]), Result([4, 5], [-1.0, -9.0])]
    expected = [Result([1, 2], [-1.0, -2.25]), Result([3], [-0.5]), Result([4, 6], [-1.5, -3.0])]
    assert parity.moved(asks, got, expected) == {"fr-en": 0.5, "plain": 0.0}
