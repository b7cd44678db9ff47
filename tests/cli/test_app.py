"""The command line: every command's help teaches by example, and the commands do on files what the library does."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from typer.testing import CliRunner, Result

from incline_fast import Alignment
from incline_fast.cli.app import app, main
from incline_fast.cli.inputs import parse_alphas, parse_layers

COMMANDS = ("tune", "evaluate", "fit", "generate", "sweep", "info", "bench")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, parallel text, and an alignment fitted by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    tiny("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    # The two sides are drawn from two seeds; duplicates would be refused.
    source, target = list(dict.fromkeys(sentences(60, 0)))[:40], list(dict.fromkeys(sentences(60, 1)))[:40]
    (folder / "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in zip(source, target, strict=True)))
    (folder / "train.xx").write_text("\n".join(source) + "\n")
    (folder / "train.yy").write_text("\n".join(target) + "\n")
    result = run(
        "fit", folder / "model", "--pairs", folder / "pairs.tsv", "--languages", "xx,yy", "--layers", "1-2,3",
        "--template", "{sentence} w9\\nw10", "-o", folder / "maps.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"incline-fast {command}" in result.output


def test_help_of_the_whole_names_every_command() -> None:
    output = run("--help").output
    assert all(f"incline-fast {command}" in output for command in COMMANDS)


def test_fit_writes_an_alignment_that_says_where_it_comes_from(folder: Path) -> None:
    alignment = Alignment.load(folder / "maps.safetensors", tiny("llama"))
    about = alignment.metadata
    assert alignment.layers == [1, 2, 3]
    assert (about.source_language, about.target_language, about.preset, about.n) == ("xx", "yy", "robust", 32)
    assert about.template == "{sentence} w9\nw10"
    assert set(about.fit_error) == {1, 2, 3}


def test_fit_from_two_files_with_the_papers_preset(folder: Path) -> None:
    out = folder / "paper.safetensors"
    result = run(
        "fit", folder / "model", "--source", folder / "train.xx", "--target", folder / "train.yy", "--preset", "paper",
        "--holdout", 0, "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    alignment = Alignment.load(out)
    assert (alignment.form, alignment.metadata.estimator, alignment.metadata.n) == ("add", "min_norm", 40)


def test_fit_chooses_lam_by_leave_one_out_and_prints_it(folder: Path) -> None:
    out = folder / "loo.safetensors"
    result = run("fit", folder / "model", "--pairs", folder / "pairs.tsv", "--lam", "loo", "-o", out)
    assert result.exit_code == 0, result.output
    about = Alignment.load(out).metadata
    assert about.lam_selection == dict.fromkeys([1, 2, 3], "loo")
    assert all(f"{lam:g}"[:5] in result.output for lam in about.lam.values())


def test_a_dry_run_prints_the_plan_and_writes_nothing(folder: Path) -> None:
    out = folder / "planned.safetensors"
    result = run("fit", folder / "model", "--pairs", folder / "pairs.tsv", "-o", out, "--dry-run",
                 "--layers", "1-2", "--memory-budget", "1GiB")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "2 layers of d = " in result.output
    assert "budget: 1 GiB" in result.output
    assert not out.exists()


def test_generate_compares_with_the_plain_model(folder: Path) -> None:
    prompts = folder / "prompts.txt"
    prompts.write_text("w11 w12\n\nw13 w14 w15\n")
    result = run(
        "generate", folder / "model", folder / "maps.safetensors", "--prompts", prompts, "--alpha", 0.9, "--compare",
        "--max-new-tokens", 4,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    plain = [line.split(maxsplit=1)[1] for line in result.output.splitlines() if line.startswith("  plain")]
    edited = [line.split(maxsplit=2)[2] for line in result.output.splitlines() if line.startswith("  alpha")]
    assert len(plain) == len(edited) == 2
    assert plain != edited


def test_generate_asks_for_an_alpha_that_nobody_chose(folder: Path) -> None:
    result = run("generate", folder / "model", folder / "maps.safetensors", "--prompt", "w5")
    assert result.exit_code == 2
    assert "recommends no alpha" in result.output


def test_sweep_chooses_alpha_and_stores_it(folder: Path) -> None:
    maps, table = folder / "swept.safetensors", folder / "sweep.csv"
    maps.write_bytes((folder / "maps.safetensors").read_bytes())
    result = run(
        "sweep", folder / "model", maps, "--pairs", folder / "pairs.tsv", "--alphas", "0:0.4:0.2", "-o", table,
        "--write",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert Alignment.load(maps).metadata.recommended_alpha in (0.0, 0.2, 0.4)
    assert len(table.read_text().splitlines()) >= 4


def test_info_shows_the_file_and_checks_the_model(folder: Path) -> None:
    result = run("info", folder / "maps.safetensors", "--model", folder / "model")
    assert result.exit_code == 0, result.output
    for word in ("affine_ridge", "interpolate", "backend", "fits"):
        assert word in result.output


def test_a_model_that_does_not_fit_is_one_line_on_stderr(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny("llama", num_hidden_layers=4).save_pretrained(folder / "other")
    tiny_tokenizer().save_pretrained(folder / "other")
    arguments = ["incline-fast", "info", str(folder / "maps.safetensors"), "--model", str(folder / "other")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("incline-fast: the alignment was made for another model")


@pytest.mark.parametrize(
    ("text", "sites"), [("3", [3]), ("1-3,7", [1, 2, 3, 7]), ("5,4-6", [4, 5, 6])], ids=["one", "range", "overlap"]
)
def test_layers_are_numbers_and_ranges(text: str, sites: list[int]) -> None:
    assert parse_layers(text) == sites


def test_alphas_are_a_grid_or_a_list() -> None:
    assert parse_alphas("0:0.3:0.1") == [0.0, 0.1, 0.2, 0.3]
    assert parse_alphas("-0.5,1") == [-0.5, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "3-1"], "layers is '3-1'"),
        (["--languages", "fr"], "languages is 'fr'"),
        (["--source", "SELF"], "give either"),
        (["--lam", "gcv"], "lam is 'gcv'"),
    ],
)
def test_wrong_options_are_named(folder: Path, arguments: list[str], message: str) -> None:
    arguments = [str(folder / "pairs.tsv") if a == "SELF" else a for a in arguments]
    result = run("fit", folder / "model", "--pairs", folder / "pairs.tsv", "-o", folder / "x.safetensors", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (folder / "x.safetensors").exists()


@pytest.mark.parametrize("grid", ["0:1", "1:0:0.1", "0:1:0", "a"])
def test_wrong_alphas_are_named(folder: Path, grid: str) -> None:
    result = run(
        "sweep", folder / "model", folder / "maps.safetensors", "--pairs", folder / "pairs.tsv", "--alphas", grid
    )
    assert result.exit_code == 2
    assert "alphas is" in result.output


def test_prompts_from_a_batch_equal_prompts_alone(folder: Path) -> None:
    def edited(*texts: str) -> list[str]:
        options = [option for text in texts for option in ("--prompt", text)]
        result = run("generate", folder / "model", folder / "maps.safetensors", "--alpha", 0.5, *options)
        return [line for line in result.output.splitlines() if line.startswith("  alpha")]

    torch.manual_seed(0)
    assert edited("w5 w6 w7 w8", "w9") == edited("w5 w6 w7 w8") + edited("w9")
