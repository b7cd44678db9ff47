"""What the command writes is tried before the first slow step, and text from files is shown as it is."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
import torch
from alignments import example
from tiny_models import HIDDEN, tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from typer.testing import CliRunner, Result

from incline_fast import Alignment
from incline_fast.cli import app as commands
from incline_fast.cli.app import app
from incline_fast.cli.output import print_alignment, print_generation, shown


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.fixture
def unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parallel text and an alignment in a folder, and a model that must not be loaded."""
    monkeypatch.setattr(commands, "load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "pairs.tsv").write_text("w5 w6\tw7\nw8\tw9\n")
    Alignment.from_maps({1: torch.eye(HIDDEN), 2: torch.eye(HIDDEN)}).save(tmp_path / "maps.safetensors")
    return tmp_path


def refused(result: Result, reason: str) -> None:
    shown_text = result.output + str(result.exception)
    assert result.exit_code != 0
    assert reason in " ".join(shown_text.split()), shown_text


FIT = (
    (["-o", "missing/x"], "missing is not a folder"),
    (["-o", "."], "is a folder"),
    (["-o", "pairs.tsv"], "is a file that this command reads"),
    (["-o", "n" * 256], "File name too long"),
    (["-o", "x", "--lam", "nan"], "lam is 'nan'"),
    (["-o", "x", "--lam", "-1"], "lam is '-1'"),
    (["-o", "x", "--layers", "2-"], "layers is '2-'"),
    (["-o", "x", "--solve-device", "cuda:77"], "solve_device is 'cuda:77'"),
    (["-o", "x", "--languages", "a,b,c"], "languages is 'a,b,c'"),
)


@pytest.mark.parametrize(("options", "reason"), FIT, ids=[reason for _, reason in FIT])
def test_fit_refuses_before_the_model_is_loaded(unloaded: Path, monkeypatch, options: list[str], reason: str) -> None:
    monkeypatch.chdir(unloaded)
    refused(run("fit", "model", "--pairs", "pairs.tsv", *options), reason)
    assert not (unloaded / "x").exists()


SWEEP = (
    (["-o", "missing/x"], "missing is not a folder"),
    (["--plot", "missing/x.png"], "missing is not a folder"),
    (["--plot", "curve.xyz"], "the plot curve.xyz ends in '.xyz'; allowed"),
    (["--plot", "curve"], "ends in ''; allowed"),
    (["-o", "same.png", "--plot", "same.png"], "is written by another option"),
    (["-o", "maps.safetensors"], "is a file that this command reads"),
    (["--alphas", "0:1:nan"], "alphas is '0:1:nan'"),
    (["--layers", "x"], "layers is 'x'"),
)


@pytest.mark.parametrize(("options", "reason"), SWEEP, ids=[" ".join(options) for options, _ in SWEEP])
def test_sweep_refuses_before_the_model_is_loaded(unloaded: Path, monkeypatch, options: list[str], reason: str) -> None:
    monkeypatch.chdir(unloaded)
    refused(run("sweep", "model", "maps.safetensors", "--pairs", "pairs.tsv", "--write", *options), reason)


def test_sweep_asks_for_the_file_that_it_will_write_to(unloaded: Path, monkeypatch) -> None:
    monkeypatch.chdir(unloaded)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    refused(run("sweep", "model", "maps.safetensors", "--pairs", "pairs.tsv", "--write"), "write-protected")


def test_generate_and_bench_refuse_before_they_begin(unloaded: Path, monkeypatch) -> None:
    monkeypatch.chdir(unloaded)
    refused(run("generate", "model", "maps.safetensors", "--prompt", "x", "--alpha", 1, "--layers", "9-"), "layers is")
    refused(run("generate", "model", "maps.safetensors", "--prompt", "x"), "recommends no alpha")
    refused(run("generate", "model", "pairs.tsv", "--prompt", "x", "--alpha", 1), "pairs.tsv")
    monkeypatch.setattr("incline_fast.bench.main", lambda **_: pytest.fail("it measured"))
    refused(run("bench", "--quick", "-o", "missing/x.csv"), "missing is not a folder")


def test_a_dry_run_leaves_nothing(unloaded: Path, monkeypatch) -> None:
    monkeypatch.chdir(unloaded)
    tiny("llama").save_pretrained(unloaded / "model")
    before = sorted(unloaded.iterdir())
    assert run("fit", "model", "--pairs", "pairs.tsv", "-o", "x", "--dry-run").exit_code == 0
    assert sorted(unloaded.iterdir()) == before


def test_the_chosen_alpha_is_kept_whatever_becomes_of_the_plot(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny("llama")
    model.save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    Alignment.from_maps({1: torch.eye(HIDDEN)}).save("maps.safetensors")
    pairs = dict(zip(sentences(6), sentences(6, 1), strict=True))
    Path("pairs.jsonl").write_text("".join(f'{{"source": "{s}", "target": "{t}"}}\n' for s, t in pairs.items()))
    monkeypatch.setattr("incline_fast.intervention.sweep_result.SweepResult.plot", lambda *_, **__: 1 / 0)
    result = run(
        "sweep",
        "model",
        "maps.safetensors",
        "--pairs",
        "pairs.jsonl",
        "--alphas",
        "0:0.4:0.2",
        "--plot",
        "x.png",
        "--write",
    )
    assert isinstance(result.exception, ZeroDivisionError)
    assert Alignment.load("maps.safetensors").metadata.recommended_alpha in (0.0, 0.2, 0.4)


HOSTILE = "[bold]x[/bold] :smile: [link=file:///etc]\x1b[31mred\x1b]0;title\x07\u202eesrever\x9b5m\rover"


def test_control_characters_are_shown_as_escapes() -> None:
    assert shown("a\nb\tc é 日本") == "a\nb\tc é 日本"
    assert shown("\x1b[31m\r\u202e\x9b") == "\\x1b[31m\\r\\u202e\\x9b"


def test_text_of_an_alignment_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"model_id": HOSTILE, "source_language": HOSTILE, "template": "{sentence}" + HOSTILE, "preset": HOSTILE}
    alignment = example().with_metadata(**texts, solver={1: HOSTILE}, notes={2: [HOSTILE]}, estimator=HOSTILE)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_alignment(alignment)
    printed = sys.stdout.getvalue()
    assert printed.count("[bold]x[/bold] :smile: [link=file:///etc]") >= 6
    assert "\x1b[31m" not in printed
    assert not set("\x07\u202e\x9b\r") & set(printed)


def test_prompts_and_errors_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    print_generation(HOSTILE, HOSTILE, HOSTILE, 0.5)
    printed = capsys.readouterr().out
    assert printed.count("[bold]x[/bold] :smile:") == 3
    assert not set("\x1b\x07\u202e\x9b\r") & set(printed)
    refused(run("sweep", "model", __file__, "--alphas", "[bold]a[/bold]"), "[bold]a[/bold]")
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"\\u001b[31m[bold]": 1}\n')
    monkeypatch.setattr(sys, "argv", ["incline-fast", "fit", "model", "--pairs", str(path), "-o", str(tmp_path / "x")])
    with pytest.raises(SystemExit):
        commands.main()
    error = capsys.readouterr().err
    assert "\\x1b[31m[bold]" in error
    assert "\x1b" not in error
