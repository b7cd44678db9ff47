"""The bench harness: every provider computes the op, a wrong one is refused, rows and CSV have their columns."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from incline_fast import bench
from incline_fast.bench import PROVIDERS, TABLES, Data, Problem, command, measure, problems, providers, timing
from incline_fast.bench.machine import cpu_slug
from incline_fast.bench.rows import merged, read_csv, write_csv
from incline_fast.bench.timing import with_roofline
from incline_fast.ops import _dispatch
from incline_fast.ops._extension import EXTENSION

COLUMNS = (
    "op,backend,norm,num_tokens,hidden_size,rank,dtype,map_dtype,mode,us_p50,us_p20,us_p80,gb_s,pct_roofline,"
    "ratio_vs_eager,ratio_vs_compile,ratio_vs_hook,ratio_vs_max_autotune,ratio_vs_simd_ml_kernels,max_err,device,"
    "threads,torch,commit,table"
)
TINY = Problem(hidden_size=32, mode="cache")
FAST = [n for n, p in PROVIDERS.items() if p.unfit(TINY) is None and not p.compiles and not p.gemm_only]
compiled = pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation")


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "DRAM_BYTES", 1 << 13)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_every_provider_computes_the_op(norm: str, rank: int | None) -> None:
    problem = Problem(norm, 2, 32, rank)
    names = [name for name, provider in PROVIDERS.items() if provider.unfit(problem) is None]
    for row in measure(problem, names, seconds=0.01):
        assert 0 <= row.max_err < 1e-4, row.backend


def test_frozen_graphs_hold_their_own_copies_of_the_weights() -> None:
    data = Data(Problem(hidden_size=32))
    assert data.weights.copies == 2
    data.weights.linear[1][1].zero_()
    torch._dynamo.reset()
    with torch.no_grad():
        run = PROVIDERS["max_autotune"].make(data)
        _, edited = run(data.x, 0)
        torch.testing.assert_close(edited.double(), data.expected()[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(run(data.x, 1)[1], data.x + problems.ALPHA * data.bias)
    problems._weights.cache_clear()


def test_a_shape_beyond_the_recompile_limit_is_an_error_and_not_eager() -> None:
    torch._dynamo.reset()
    # Not by monkeypatch, which would leave the setting unreadable for the tests that follow.
    with torch._dynamo.config.patch(recompile_limit=1):
        run = PROVIDERS["compile"].make(Data(Problem(num_tokens=2, hidden_size=32)))
        run(torch.randn(2, 32), 0)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit, match="fullgraph"):
            run(torch.randn(3, 32), 0)


@pytest.mark.skipif(importlib.util.find_spec("simd_ml_kernels") is None, reason="simd-ml-kernels is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_simd_ml_kernels_computes_the_product_alone(dtype: torch.dtype) -> None:
    (row,) = measure(Problem("rms", 3, 32, None, dtype, dtype), ["simd_ml_kernels"], seconds=0.01)
    assert row.backend == "simd_ml_kernels (gemm alone)"


def test_simd_ml_kernels_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    unfit = providers.simd_ml_kernels_unfit
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert unfit(Problem()) == "not installed (pip install simd-ml-kernels)"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert unfit(Problem()) is None
    assert "low rank" in unfit(Problem(rank=64))
    assert "dtype of x" in unfit(Problem(map_dtype=torch.bfloat16))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "one thread" in unfit(Problem())


def test_rows_hold_what_was_measured() -> None:
    problem = Problem("rms", 2, 32, 3, torch.bfloat16, torch.bfloat16)
    rows = with_roofline(measure(problem, FAST, seconds=0.01, table="some"), seconds=0.01)
    assert [row.backend.partition("[")[0] for row in rows] == FAST
    for row in rows:
        assert 0 < row.us_p20 <= row.us_p50 <= row.us_p80
        assert 0 < row.pct_roofline <= 100
        assert row.gb_s == pytest.approx(problem.bytes / row.us_p50 / 1e3)
        assert row.ratio_vs_compile is None
        assert (row.table, Problem.parse(row.shape)) == ("some", problem)
    assert rows[FAST.index("eager")].ratio_vs_eager == 1.0
    assert rows[FAST.index("hook")].ratio_vs_hook == 1.0


def test_cached_weights_have_no_roofline() -> None:
    assert TINY.copies == 1
    assert Problem(hidden_size=32).copies == 2
    rows = measure(TINY, ["eager"], seconds=0.01)
    assert with_roofline(rows, seconds=0.01)[0].pct_roofline is None


def test_wrong_provider_is_refused_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, "lazy", providers.Provider(lambda data: lambda x, i: (x, x)))
    with pytest.raises(ArithmeticError, match=r"lazy is wrong on rms 1 32 dense .*nothing was timed"):
        measure(TINY, ["eager", "lazy"], seconds=0.01)


@compiled
def test_who_disturbs_the_others_takes_turns_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [{"eager": [10.0] * 7, "fused": [5.0] * 7}, {"eager": [30.0] * 7, "hook": [60.0] * 7, "fused": [10.0] * 7}]
    groups: list[list[str]] = []

    def interleave(runs: dict[str, providers.Run], data: Data, seconds: float) -> dict[str, list[float]]:
        groups.append(list(runs))
        return turns[len(groups) - 1]

    monkeypatch.setattr(timing, "_interleave", interleave)
    eager, hooked, fused = measure(TINY, ["eager", "hook", "fused"])
    assert groups == [["eager", "fused"], ["eager", "hook", "fused"]]
    assert (eager.us_p50, fused.us_p50, hooked.us_p50) == (10, 5, 60)
    assert (fused.ratio_vs_eager, fused.ratio_vs_hook, hooked.ratio_vs_eager) == (2, 6, 0.5)


def test_csv_has_the_documented_columns_and_reads_back(tmp_path: Path) -> None:
    rows = measure(TINY, ["eager", "hook"], seconds=0.01)
    write_csv(rows, tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().splitlines()[0] == COLUMNS
    again = read_csv(tmp_path / "rows.csv")
    assert [(r.backend, r.rank, r.num_tokens, r.device) for r in again] == [
        (r.backend, None, 1, r.device) for r in rows
    ]
    assert again[0].us_p50 == pytest.approx(rows[0].us_p50, rel=1e-3)
    (tmp_path / "other.csv").write_text("op,backend\na,b\n")
    with pytest.raises(ValueError, match=r"other.csv has the columns \['op', 'backend'\]"):
        read_csv(tmp_path / "other.csv")


def test_new_rows_replace_equal_ones_and_keep_the_others() -> None:
    eager, hooked = measure(TINY, ["eager", "hook"], seconds=0.01)
    newer = replace(eager, us_p50=1.0)
    assert merged([eager, hooked], [newer]) == [newer, hooked]
    more = replace(eager, threads=eager.threads + 1)
    assert merged([eager], [more]) == [eager, more]


@pytest.mark.parametrize("table", TABLES)
def test_tables_name_problems_and_providers_that_exist(table: str) -> None:
    for problem in TABLES[table].problems:
        assert Problem.parse(str(problem)) == problem
    assert set(TABLES[table].providers) <= set(PROVIDERS)
    assert "eager" in TABLES[table].providers


@compiled
def test_main_shows_and_merges_and_says_how_to_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("INCLINE_FAST_CPU_ISA", raising=False)
    threads = torch.get_num_threads()
    output = tmp_path / "rows.csv"
    bench.main(shapes=[str(TINY)], providers=["eager", "fused", "simd_ml_kernels"], output=output, threads=2)
    monkeypatch.setenv("INCLINE_FAST_CPU_ISA", torch.ops.incline_fast.cpu_isa())
    bench.main(shapes=[str(TINY)], providers=["eager"], output=output, threads=2)
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr().out
    assert str(TINY) in shown
    assert "simd_ml_kernels is left out of 1 shapes" in shown
    assert f"--threads 2 --providers eager,fused,simd_ml_kernels --shape '{TINY}'" in shown
    isa = torch.ops.incline_fast.cpu_isa()
    lines = list(csv.DictReader(output.read_text().splitlines()))
    assert [(line["backend"], line["table"], line["threads"]) for line in lines] == [
        ("eager", "shapes", "2"),
        (f"fused[{isa}]", "shapes", "2"),
        ("eager", f"shapes@{isa}", "2"),
    ]


def test_without_the_extension_our_kernels_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (providers, command, _dispatch):
        monkeypatch.setattr(module, "EXTENSION", None)
    bench.main(shapes=[str(TINY)], providers=["eager", "fused"])
    shown = capsys.readouterr().out
    assert "reference (plain PyTorch): no compiled extension is installed" in shown
    assert "fused is left out of 1 shapes: this is a pure-Python installation" in shown
    assert "\nincline-fast bench --threads 1 --providers eager,fused --shape" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tables": ["dense"]}, 'table is "dense"; allowed: quick, '),
        ({"providers": ["torch"]}, 'provider is "torch"; allowed: eager, '),
        ({"shapes": ["rms 4 2048"]}, 'shape is "rms 4 2048"; expected rms|layer TOKENS'),
        ({"shapes": ["rms 4 2048 dense float8 float32 dram"]}, "expected rms|layer TOKENS"),
    ],
)
def test_main_refuses_what_it_does_not_know(arguments: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        bench.main(**arguments)
    assert message in str(refused.value)


def test_processor_names_become_file_names() -> None:
    assert cpu_slug("Intel(R) Xeon(R) Processor") == "intel-xeon"
    assert cpu_slug("AMD EPYC 7763 64-Core Processor") == "amd-epyc-7763-64-core"
    assert cpu_slug("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz") == "intel-core-i7-8700"
