"""What the commands read: models, text and options."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from incline_fast.arguments import usable_device
from incline_fast.cli.output import shown

# transformers takes seconds to import: functions import what they need, so that --help answers soon.
if TYPE_CHECKING:
    from incline_fast.fitting.memory_plan import FitPlan
    from incline_fast.text.parallel_text import ParallelText

_MOST_ALPHAS = 10_000
_MOST_LAYERS = 100_000

__all__ = [
    "load_model",
    "parallel_text",
    "parse_alphas",
    "parse_lam",
    "parse_layers",
    "plan_of",
    "read_prompts",
    "unescape",
]


def load_model(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer."""
    usable_device("device", device)  # checked before the weights are read
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    return model, AutoTokenizer.from_pretrained(name)


def plan_of(name: str, num_sentences: int, layers: list[int] | None, memory_budget: str | None) -> FitPlan:
    """The plan of a fit, from the model's configuration alone."""
    import torch
    from transformers import AutoConfig

    from incline_fast.fitting.memory_plan import plan_fit

    config = AutoConfig.from_pretrained(name).get_text_config()
    sites = layers or range(1, config.num_hidden_layers + 1)
    threads = torch.get_num_threads()
    return plan_fit(num_sentences, config.hidden_size, sites, memory_budget=memory_budget, threads=threads)


def parallel_text(
    pairs: Path | None, source: Path | None, target: Path | None, languages: str | None, skip_bad_lines: bool
) -> ParallelText:
    """The pairs that the options name; rows that were skipped are reported on standard error."""
    from incline_fast.text.parallel_text import ParallelText

    codes = [code.strip() for code in (languages or ",").split(",")]
    if len(codes) != 2:
        raise typer.BadParameter(f"languages is {languages!r}; expected two, separated by a comma, such as fr,en")
    options: dict[str, Any] = {
        "on_problem": "skip" if skip_bad_lines else "error",
        "source_language": codes[0] or None,
        "target_language": codes[1] or None,
    }
    if pairs is None and source is not None and target is not None:
        text = ParallelText.from_files(source, target, **options)
    elif pairs is not None and source is None and target is None:
        text = ParallelText.from_pairs(pairs, **options)
    else:
        raise typer.BadParameter("give either --pairs FILE, or both --source FILE and --target FILE")
    for problem in text.problems:
        typer.secho(shown(str(problem)), fg=typer.colors.YELLOW, err=True)
    return text


def parse_layers(text: str | None) -> list[int] | None:
    """``"4-6,9"`` -> ``[4, 5, 6, 9]``."""
    if text is None:
        return None
    chosen: list[int] = []
    for part in text.split(","):
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.isdecimal() and len(end) < 8 for end in ends):
            raise typer.BadParameter(f"layers is {text!r}; expected numbers and ranges such as 4-12,18")
        first, last = int(ends[0]), int(ends[-1])
        if not 0 <= last - first < _MOST_LAYERS:
            raise typer.BadParameter(f"layers is {text!r}; {part.strip()} is not a range of layers, first to last")
        chosen += range(first, last + 1)
    return sorted(set(chosen))


def parse_lam(text: str | None) -> float | Literal["loo"] | None:
    """A number, ``"loo"``, or None for the preset's own."""
    if text is None:
        return None
    if text == "loo":
        return "loo"
    try:
        lam = float(text)
    except ValueError:
        lam = -1.0
    if not 0 <= lam < float("inf"):
        raise typer.BadParameter(f"lam is {text!r}; expected a number >= 0, or loo")
    return lam


def parse_alphas(text: str) -> list[float]:
    """``"0:0.3:0.1"`` -> ``[0.0, 0.1, 0.2, 0.3]``, never beyond the second number; ``"0,0.5"`` -> ``[0.0, 0.5]``."""
    expected = f"alphas is {text!r}; expected first:last:step or a list such as 0,0.1,0.2"
    try:
        # Decimal, so that 0:1:0.05 lists 0.15 and not 0.15000000000000002, and its last step is not lost.
        values = [Decimal(part.strip()) for part in text.split(":" if ":" in text else ",")]
    except InvalidOperation:
        raise typer.BadParameter(expected) from None
    if not all(abs(float(value)) < float("inf") for value in values):
        raise typer.BadParameter(f"{expected}, all of them finite")
    if ":" not in text:
        return [float(value) for value in values]
    if len(values) != 3 or values[2] <= 0 or values[1] < values[0]:
        raise typer.BadParameter(expected)
    first, last, step = values
    count = (last - first) / step + 1
    if count > _MOST_ALPHAS:
        raise typer.BadParameter(f"alphas is {text!r}, which are {count:.3g} strengths; allowed are {_MOST_ALPHAS}")
    return [float(first + index * step) for index in range(int(count))]


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, or of standard input for ``-``, without empty ones."""
    from incline_fast.text.lines import text_lines

    return [line for line in text_lines(path) if line.strip()]


def unescape(template: str | None) -> str | None:
    """A template with its ``\\n`` turned into line breaks."""
    # Shells do not turn \n into a line break, and a template needs one more often than it needs a backslash.
    return None if template is None else template.replace("\\n", "\n")
