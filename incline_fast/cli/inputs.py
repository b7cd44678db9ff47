"""What the commands share: loading models and text, reading options, printing results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

# transformers takes seconds to import: functions import what they need, so that --help answers soon.
if TYPE_CHECKING:
    from incline_fast.alignment.alignment import Alignment
    from incline_fast.fitting.memory_plan import FitPlan
    from incline_fast.text.parallel_text import ParallelText

__all__ = [
    "continue_prompts",
    "load_model",
    "parallel_text",
    "parse_alphas",
    "parse_lam",
    "parse_layers",
    "plan_of",
    "print_alignment",
    "print_generation",
    "read_lines",
    "unescape",
]


def load_model(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    return model, AutoTokenizer.from_pretrained(name)


def plan_of(name: str, num_sentences: int, layers: list[int] | None, memory_budget: str | None) -> FitPlan:
    """The plan of a fit, from the model's configuration alone."""
    from transformers import AutoConfig

    from incline_fast.fitting.memory_plan import plan_fit

    config = AutoConfig.from_pretrained(name).get_text_config()
    sites = layers or range(1, config.num_hidden_layers + 1)
    return plan_fit(num_sentences, config.hidden_size, sites, memory_budget=memory_budget)


def parallel_text(
    pairs: Path | None, source: Path | None, target: Path | None, languages: str | None, skip_bad_lines: bool
) -> ParallelText:
    """The pairs that the options name; rows that were skipped are reported on standard error."""
    from incline_fast.text.parallel_text import ParallelText

    codes = (languages or ",").split(",")
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
        read = ParallelText.from_jsonl if pairs.suffix == ".jsonl" else ParallelText.from_tsv
        text = read(pairs, **options)
    else:
        raise typer.BadParameter("give either --pairs FILE, or both --source FILE and --target FILE")
    for problem in text.problems:
        typer.secho(str(problem), fg=typer.colors.YELLOW, err=True)
    return text


def parse_layers(text: str | None) -> list[int] | None:
    """``"4-6,9"`` -> ``[4, 5, 6, 9]``."""
    if text is None:
        return None
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or (last and int(last) < int(first)):
            raise typer.BadParameter(f"layers is {text!r}; expected numbers and ranges such as 4-12,18")
        chosen += range(int(first), int(last or first) + 1)
    return sorted(set(chosen))


def parse_lam(text: str | None) -> float | Literal["loo"] | None:
    """A number, ``"loo"``, or None for the preset's own."""
    if text == "loo":
        return "loo"
    try:
        return None if text is None else float(text)
    except ValueError:
        raise typer.BadParameter(f"lam is {text!r}; expected a number >= 0, or loo") from None


def parse_alphas(text: str) -> list[float]:
    """``"0:0.3:0.1"`` -> ``[0.0, 0.1, 0.2, 0.3]``; ``"0,0.5"`` -> ``[0.0, 0.5]``."""
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, last, step = map(float, text.split(":"))
        count = round((last - first) / step) + 1
        if step <= 0 or count < 1:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"alphas is {text!r}; expected first:last:step or a list such as 0,0.1,0.2") from None
    # Rounded so that 0:1:0.05 lists 0.15 and not 0.15000000000000002.
    return [round(first + i * step, 10) for i in range(count)]


def read_lines(path: Path) -> list[str]:
    """The lines of a file, or of standard input for ``-``, without empty ones."""
    content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    return [line for line in content.splitlines() if line.strip()]


def unescape(template: str | None) -> str | None:
    """A template with its ``\\n`` turned into line breaks."""
    # Shells do not turn \n into a line break, and a template needs one more often than it needs a backslash.
    return None if template is None else template.replace("\\n", "\n")


def continue_prompts(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Greedy continuations of all prompts as one left-padded batch."""
    import torch

    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    with torch.inference_mode():
        tokens = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    continued: list[str] = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return continued


def print_generation(prompt: str, edited: str, plain: str | None, alpha: float) -> None:
    """A prompt with its continuations, one below the other."""
    typer.secho(prompt, bold=True)
    if plain is not None:
        typer.echo(f"  plain        {plain.strip()!r}")
    typer.echo(f"  alpha {alpha:<6g} {edited.strip()!r}")


def print_alignment(alignment: Alignment) -> None:
    """What an alignment is, and a row per site."""
    from rich.console import Console
    from rich.table import Table

    about = alignment.metadata
    console = Console()
    console.print(repr(alignment), highlight=False, markup=False)
    for name in ("preset", "template", "pooling", "recommended_alpha", "library_version"):
        console.print(f"{name:<18}{getattr(about, name)!r}", highlight=False, markup=False)
    table = Table("site", "map", "lam", "solved by", "held-out error", "notes")
    for layer, map in alignment.maps.items():
        error = about.fit_error.get(layer)
        table.add_row(
            str(layer),
            "dense" if map.rank is None else f"rank {map.rank}",
            f"{about.lam[layer]:g}" if layer in about.lam else "",
            about.solver.get(layer, ""),
            "" if error is None else f"{error:.3f}",
            "; ".join(about.notes.get(layer, [])),
        )
    console.print(table)
