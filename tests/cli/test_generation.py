"""``generate``: one alignment for all prompts, or each prompt in its language with a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import HIDDEN, LAYERS, tiny
from tiny_tokenizer import sentences, tiny_tokenizer
from typer.testing import CliRunner, Result

from incline_fast import Alignment, AlignmentBundle
from incline_fast.cli.app import app

TEXTS = ("w1 w2 w3", "w4 w5", "w6 w7 w8")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    tiny("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    maps = {}
    for seed, name in enumerate(("fr", "sw")):
        generator = torch.Generator().manual_seed(seed)
        weights = {site: torch.randn(HIDDEN, HIDDEN, generator=generator) / 4 for site in range(1, LAYERS + 1)}
        maps[name] = Alignment.from_maps(weights).with_metadata(recommended_alpha=0.4)
    AlignmentBundle.save(folder / "all.safetensors", maps)
    maps["fr"].save(folder / "fr.safetensors")
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
    return folder


def continued(result: Result) -> list[str]:
    """The edited continuations, in order."""
    assert result.exit_code == 0, result.output
    return [line.split("'")[1] for line in result.output.splitlines() if "alpha" in line]


def test_every_prompt_takes_the_maps_of_its_language(folder: Path) -> None:
    mixed = run(
        "generate", folder / "model", folder / "all.safetensors", "--prompts", folder / "prompts.txt",
        "--languages", "fr,-,fr", "--max-new-tokens", 4,
    )  # fmt: skip
    one = run(
        "generate", folder / "model", folder / "fr.safetensors", "--prompts", folder / "prompts.txt",
        "--max-new-tokens", 4, "--compare",
    )  # fmt: skip
    plain = [line.split("'")[1] for line in one.output.splitlines() if "plain" in line]
    french = continued(one)
    assert french != plain
    assert continued(mixed) == [french[0], plain[1], french[2]]
    assert "fr: alpha 0.4" in mixed.output


def test_one_language_serves_all_prompts(folder: Path) -> None:
    arguments = ("--prompts", folder / "prompts.txt", "--max-new-tokens", 4)
    bundle = run("generate", folder / "model", folder / "all.safetensors", "--languages", "fr", *arguments)
    alone = run("generate", folder / "model", folder / "fr.safetensors", *arguments)
    assert continued(bundle) == continued(alone)


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("all", (), "give --languages"),
        ("all", ("--languages", "fr,sw"), "2 names for 3 prompts"),
        ("all", ("--languages", "xx"), "'xx'; allowed: fr, sw"),
        ("all", ("--languages", "-"), "no prompt is in one of the languages"),
        ("fr", ("--languages", "fr"), "holds one alignment"),
    ],
)
def test_languages_are_refused_before_the_model_is_read(
    folder: Path, file: str, arguments: tuple[str, ...], message: str
) -> None:
    path = folder / f"{file}.safetensors"
    result = run("generate", folder / "no model", path, "--prompts", folder / "prompts.txt", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_detection_edits_nothing_in_doubt(folder: Path) -> None:
    pytest.importorskip("py3langid", reason="pip install incline-fast[detect]")
    arguments = ("--prompts", folder / "prompts.txt", "--languages", "detect")
    result = run("generate", folder / "no model", folder / "all.safetensors", *arguments)
    assert result.exit_code == 2
    assert "no prompt is in one of the languages fr, sw" in " ".join(result.output.replace("│", " ").split())


def test_what_is_mapped_is_an_option_of_fit(folder: Path, tmp_path: Path) -> None:
    pairs = zip(dict.fromkeys(sentences(40, 0)), dict.fromkeys(sentences(40, 1)), strict=False)
    (tmp_path / "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in pairs))
    result = run(
        "fit", folder / "model", "--pairs", tmp_path / "pairs.tsv", "--site", "ffn", "--layers", "1",
        "-o", tmp_path / "ffn.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert Alignment.load(tmp_path / "ffn.safetensors").metadata.site == "ffn"
