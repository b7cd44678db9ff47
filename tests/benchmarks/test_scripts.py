"""The scripts of benchmarks/: tables and plots come from the CSV alone, counts are compared with stored ones."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import affine_norm, call, every_token, instructions
from benchmarks.report import pages, plots
from benchmarks.report.pages import Results, blocks, rewritten
from incline_fast.bench import TABLES, Timing, write_csv
from incline_fast.ops._extension import EXTENSION
from incline_fast.ops.affine_norm import RMS_NORM


def row(tokens: int = 1, width: int = 2048, **changes: object) -> Timing:
    made = Timing(
        op="affine_rms_norm",
        backend="fused_in_place[avx512]",
        norm="rms",
        num_tokens=tokens,
        hidden_size=width,
        rank=None,
        dtype="float32",
        map_dtype="float32",
        mode="dram",
        us_p50=100.0,
        us_p20=90.0,
        us_p80=110.0,
        gb_s=10.0,
        pct_roofline=91.4,
        ratio_vs_eager=1.25,
        ratio_vs_compile=None,
        ratio_vs_hook=2.5,
        ratio_vs_max_autotune=None,
        ratio_vs_simd_ml_kernels=1.1,
        max_err=1e-6,
        device="a processor",
        threads=1,
        torch="2.13.0",
        commit="abc",
        table="dense-fp32",
    )
    return replace(made, **changes)


def test_tables_hold_the_numbers_of_the_rows() -> None:
    made = blocks(Results([row(), row(4, ratio_vs_eager=0.5), row(1, mode="cache", ratio_vs_eager=3.0)]))
    assert "| 1 | 1.25x |\n" in made["performance"]
    assert "| tokens | d = 2048 | hook, 2048 | simd-ml-kernels, 2048 | cache, 2048 |" in made["kernels"]
    assert "| 1 | 1.25x (91%) | 2.50x | 1.10x | 3.00x (91%) |" in made["kernels"]
    assert "**Dense, fp32, 1 thread" in made["kernels"]  # then a link, where there is a plot
    assert "forced" not in made["kernels"]


def test_every_loss_is_named() -> None:
    rows = [row(ratio_vs_eager=0.99), row(1, 640, ratio_vs_eager=0.8), row(table="compile", ratio_vs_eager=0.9)]
    rows += [row(32, table="dense-fp32@avx2", ratio_vs_eager=0.5), row(8, backend="hook", ratio_vs_eager=0.1)]
    made = blocks(Results([*rows, row(4)]))
    assert "- rms, dense, float32, map float32, 1 thread(s): 1 x 2048 0.99x, 1 x 640 0.80x\n" in made["kernels"]
    assert "- rms, dense, float32, map float32, 1 thread(s), avx2 forced: 32 x 2048 0.50x\n" in made["kernels"]
    assert "0.10x" not in made["kernels"]
    assert "1 thread(s): 1 x 2048 0.99x\n" in made["performance"]
    assert "forced" not in made["performance"]
    assert "Losing regimes: none" in blocks(Results([row()]))["kernels"]


@pytest.mark.skipif(EXTENSION is None, reason="needs the compiled extension")
def test_every_way_to_call_the_op_normalises_a_row() -> None:
    for name, way in call.ways().items():
        if "cpu_isa" in name:
            continue
        result = way()
        y = result[0] if isinstance(result, tuple) else result
        if y is None:  # the compiled op writes into a given y
            continue
        assert y.shape == (1, call.HIDDEN)
        assert float(y.square().mean()) == pytest.approx(1.0, rel=1e-4), name


@pytest.mark.skipif(EXTENSION is None, reason="needs the compiled extension")
def test_costs_of_a_call_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["call", "--turns", "1", "-o", str(tmp_path / "call.csv")])
    call.main()
    with (tmp_path / "call.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["call"] for row in rows] == [*call.ways(), call.FORK_JOIN]
    assert all(float(row["us_p50"]) > 0 for row in rows[:-1])  # the last is a difference


@pytest.mark.skipif(EXTENSION is None, reason="needs the compiled extension")
def test_clocks_around_the_parts_of_a_site_are_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LAYERS": 2, "HIDDEN": 64, "NEW_TOKENS": 3}.items():
        monkeypatch.setattr(every_token, name, value)
    model, op = every_token.random_llama(), RMS_NORM.compiled_in_place
    parts = every_token.site_parts(model, every_token.alignment_of(2), rounds=1)
    assert parts.keys() == {"op_us", "python_us", "norm_us"}
    assert all(us > 0 for us in parts.values())
    assert RMS_NORM.compiled_in_place is op
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_only_what_lies_between_markers_is_written() -> None:
    text = "a\n<!-- begin one: how -->\nold\n<!-- end one -->\nb\n<!-- begin two: how -->\n<!-- end two -->\n"
    once = rewritten(text, {"one": "1\n", "two": "2\n"})
    expected = (
        "a\n<!-- begin one: how -->\n\n1\n\n<!-- end one -->\nb\n<!-- begin two: how -->\n\n2\n\n<!-- end two -->\n"
    )
    assert once == expected
    assert rewritten(once, {"one": "1\n", "two": "2\n"}) == once
    with pytest.raises(ValueError, match='block "two" is not one of one'):
        rewritten(text, {"one": "1\n"})
    with pytest.raises(ValueError, match="2 blocks begin and 1 of them end"):
        rewritten(text.replace("<!-- end two -->", ""), {"one": "1\n", "two": "2\n"})


def test_the_documents_say_what_the_csv_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert pages.main(["--check"]) == 0, capsys.readouterr().err


def test_check_reports_a_stale_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document, rows = tmp_path / "README.md", tmp_path / "rows.csv"
    document.write_text("<!-- begin performance: how -->\n<!-- end performance -->\n")
    write_csv([row()], rows)
    monkeypatch.setattr(pages, "CSV", rows)
    monkeypatch.setattr(pages, "DOCUMENTS", (document,))
    assert pages.main(["--check"]) == 1
    assert "README.md is out of date" in capsys.readouterr().err
    assert pages.main([]) == 0
    assert "1.25x" in document.read_text()
    assert pages.main(["--check"]) == 0


def test_a_table_with_several_widths_becomes_a_picture(tmp_path: Path) -> None:
    rows = [row(tokens, width) for tokens in (1, 8) for width in (1024, 2048, 4096)]
    two = [row(1, width, table="two-widths") for width in (1024, 2048)]
    write_csv([*rows, *two, row(2, rank=500)], tmp_path / "cpu-x.csv")
    (picture,) = plots.plot(tmp_path / "cpu-x.csv", tmp_path)
    assert picture.name == "cpu-x-dense-fp32-1t.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_commands_measure_every_table_and_the_lesser_instruction_sets() -> None:
    made = affine_norm.commands(Path("rows.csv"), ["avx512", "avx2", "scalar"])
    lines = [" ".join([*isa.values(), *command[-7:]]) for isa, command in made]
    assert [line.split()[-1] for line in lines[: len(TABLES) - 1]] == [name for name in TABLES if name != "quick"]
    assert "bench -o rows.csv --threads 2 --table dense-bf16" in lines
    assert "avx2 bench -o rows.csv --threads 1 --table int8" in lines
    assert "scalar bench -o rows.csv --threads 1 --table dense-fp32" in lines
    assert not any(line.startswith("avx512") for line in lines)


@pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation")
def test_the_instruction_sets_are_those_of_the_op() -> None:
    assert affine_norm.instruction_sets()[-1] == "scalar"
    assert torch.ops.incline_fast.cpu_isa() in affine_norm.instruction_sets()


def test_counts_are_compared_with_a_margin() -> None:
    one = instructions.Count("rms", 1, 64, 0, "float32", "float32", "avx2", 1000, "g++ 12")
    assert instructions.differences([replace(one, instructions=1029)], [one]) == []
    (line,) = instructions.differences([replace(one, instructions=1031)], [one])
    assert line == "rms 1 64 0 float32 float32: 1031 instructions, stored 1000 (+3.1%)"
    other = replace(one, num_tokens=2)
    assert instructions.differences([one, other], [one]) == ["rms 2 64 0 float32 float32: only counted"]
    assert instructions.differences([one], [one, other]) == ["rms 2 64 0 float32 float32: only stored"]
    with pytest.raises(ValueError, match=r"stored counts are of g\+\+ 11; this is g\+\+ 12"):
        instructions.differences([one], [replace(one, compiler="g++ 11")])


def test_stored_counts_are_of_the_cases_that_are_counted() -> None:
    assert [one.case for one in instructions.read()] == instructions.CASES
