"""Options of the command: what a grid, a range of layers and a list of prompts are, and what they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from incline_fast.cli.inputs import parse_alphas, parse_lam, parse_layers, read_prompts
from incline_fast.text.lines import TextError


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0:1:0.6", [0.0, 0.6]),
        ("0:0.5:0.3", [0.0, 0.3]),
        ("0:1:0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("0:0.3:0.1", [0.0, 0.1, 0.2, 0.3]),
        ("0.1:0.7:0.2", [0.1, 0.3, 0.5, 0.7]),
        ("0:1:2", [0.0]),
        ("0.5:0.5:1", [0.5]),
        ("-0.2:0.2:0.2", [-0.2, 0.0, 0.2]),
        ("0:1e-11:5e-12", [0.0, 5e-12, 1e-11]),
        (" 0 : 1 : 0.5 ", [0.0, 0.5, 1.0]),
        ("0, 0.5 ,1e-1", [0.0, 0.5, 0.1]),
        ("0.3", [0.3]),
    ],
)
def test_alphas(text: str, alphas: list[float]) -> None:
    assert parse_alphas(text) == alphas


def test_no_step_of_a_grid_is_lost_or_added() -> None:
    for steps in range(1, 200):
        assert parse_alphas(f"0:{steps}:1") == [float(i) for i in range(steps + 1)]
        assert parse_alphas(f"0:0.{steps:03}:0.001") == [i / 1000 for i in range(steps + 1)]


@pytest.mark.parametrize(
    "text",
    ["", ",", "0,,1", "a", "0:1", "0:1:0", "0:1:-0.1", "1:0:0.1", "0:1:0.1:2", "::", "nan", "inf", "0,-inf", "0:inf:1",
     "0:1:nan", "nan:1:0.1", "0:1:inf", "1e400", "0:1:1e-9", "0:1e300:1", "0;1", "0 1", "0:1e999999:1"],
)  # fmt: skip
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="alphas is"):
        parse_alphas(text)


@pytest.mark.parametrize(
    ("text", "layers"), [("4-6,9", [4, 5, 6, 9]), ("3", [3]), (" 1 , 2-3", [1, 2, 3]), ("2,2-3", [2, 3])]
)
def test_layers(text: str, layers: list[int]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    "text", ["", "4-", "-4", "4-2", "1-2-3", "a", "1,,2", "1.5", "0-99999999", "99999999999", "1e3", "²", "--"]
)
def test_what_is_no_range_of_layers_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="layers is"):
        parse_layers(text)


def test_lam() -> None:
    assert [parse_lam(text) for text in (None, "loo", "0", "1e-3")] == [None, "loo", 0.0, 0.001]
    for text in ("nan", "inf", "-1", "", "LOO", "0,1", "1e999"):
        with pytest.raises(typer.BadParameter, match="lam is"):
            parse_lam(text)


def test_prompts_are_lines_and_nothing_else_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffBonjour\u2028le monde\r\n\n  \nUne page\x0csuivante\x85fin".encode())
    assert read_prompts(path) == ["Bonjour\u2028le monde", "Une page\x0csuivante\x85fin"]
    path.write_bytes(b"good\nb\xe9d\n")
    with pytest.raises(TextError, match=r"prompts.txt:2: not utf-8: byte 0xe9"):
        read_prompts(path)
