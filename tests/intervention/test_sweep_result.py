"""The picture of a sweep: its title is text, its suffix is known before anything is drawn."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
import torch

from incline_fast.intervention.sweep_result import SweepResult, check_plot

RESULT = SweepResult([0.0, 0.5], torch.tensor([[1.0, 2.0], [0.5, 1.0]]), torch.ones(2, 2))


@pytest.mark.parametrize("title", ["$x^2$ and $", r"\frac{1}{2} $\bad", "<b>&amp;</b>", "_hidden", "costs 5$ or 6$"])
def test_a_title_is_text_and_no_formula(tmp_path: Path, title: str) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        RESULT.plot(tmp_path / "x.svg", title=title)
    drawn = (tmp_path / "x.svg").read_text()
    escaped = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert escaped in drawn


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".Svg", ".pdf"])
def test_suffixes_in_any_case(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    RESULT.plot(path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("name", ["x", "x.xyz", "x.csv", ".png"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    for refuse in (check_plot, RESULT.plot):
        with pytest.raises(ValueError, match=r"the plot .* ends in .*; allowed: .*\.png"):
            refuse(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
