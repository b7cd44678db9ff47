"""The bench harness: every provider computes the op, a wrong one is refused, rows and CSV have their columns."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from incline_fast import bench, bench_providers
from incline_fast.bench import Row, measure, with_roofline, write_csv
from incline_fast.bench_providers import PROVIDERS, Data, Problem

COLUMNS = (
    "op,backend,norm,num_tokens,hidden_size,rank,dtype,map_dtype,mode,us_p50,us_p20,us_p80,gb_s,pct_roofline,"
    "ratio_vs_eager,ratio_vs_compile,ratio_vs_hook,max_err,device,threads,torch,commit"
)
QUICK_PROVIDERS = [name for name in PROVIDERS if name != "compile"]


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_providers, "DRAM_BYTES", 1 << 16)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_every_provider_computes_the_op(norm: str, rank: int | None) -> None:
    torch._dynamo.reset()
    data = Data(Problem(norm, 2, 32, rank))
    with torch.no_grad():
        for provider in PROVIDERS.values():
            for actual, expected in zip(provider(data)(data.x.clone(), 0), data.expected(), strict=True):
                torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def test_rows_hold_what_was_measured() -> None:
    problem = Problem("rms", 2, 32, 3, torch.bfloat16, torch.bfloat16)
    rows = with_roofline(measure(problem, QUICK_PROVIDERS, seconds=0.01), seconds=0.01)
    assert [row.backend for row in rows] == QUICK_PROVIDERS
    for row in rows:
        assert 0 < row.us_p20 <= row.us_p50 <= row.us_p80
        assert 0 < row.pct_roofline <= 100
        assert row.gb_s == pytest.approx(problem.bytes / row.us_p50 / 1e3)
        assert row.ratio_vs_compile is None
    assert rows[0].ratio_vs_eager == 1.0
    assert rows[1].ratio_vs_hook == 1.0


def test_cached_weights_have_no_roofline() -> None:
    assert Problem(mode="cache").copies == 1
    assert Problem(hidden_size=32).copies == 16
    rows = measure(Problem(hidden_size=32, mode="cache"), ["eager"], seconds=0.01)
    assert with_roofline(rows, seconds=0.01)[0].pct_roofline is None


def test_wrong_provider_is_refused_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, "lazy", lambda data: lambda x, i: (x, x))
    with pytest.raises(ArithmeticError, match=r"lazy is wrong on Problem\(.*nothing was timed"):
        measure(Problem(hidden_size=32), ["eager", "lazy"], seconds=0.01)


def test_csv_has_the_documented_columns(tmp_path: Path) -> None:
    rows = measure(Problem(hidden_size=32), ["eager"], seconds=0.01)
    write_csv(rows, tmp_path / "rows.csv")
    text = (tmp_path / "rows.csv").read_text()
    assert text.splitlines()[0] == COLUMNS
    (line,) = csv.DictReader(text.splitlines())
    assert (line["op"], line["backend"], line["rank"]) == ("affine_rms_norm", "eager", "")
    assert float(line["us_p50"]) == pytest.approx(rows[0].us_p50, rel=1e-3)


def test_main_shows_a_table_and_writes_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "QUICK", [Problem(hidden_size=32, mode="cache")])
    threads = torch.get_num_threads()
    bench.main(quick=True, output=tmp_path / "rows.csv", threads=2)
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr().out
    assert "rms 1 x 32 dense float32 cache" in shown
    lines = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [line["backend"] for line in lines] == QUICK_PROVIDERS
    assert {line["threads"] for line in lines} == {"2"}
    assert set(lines[0]) == set(Row.__dataclass_fields__)
