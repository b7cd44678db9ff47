"""What the commands show and write. Text from files is data: it is shown as it is, never taken for markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from incline_fast.files import check_writable

if TYPE_CHECKING:
    from incline_fast.alignment.alignment import Alignment

__all__ = ["check_outputs", "continue_prompts", "print_alignment", "print_generation", "shown"]

# Control characters would move the cursor or set colours, directional ones would reorder what follows them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """Text for a terminal: line breaks and tabs as they are, other control characters as their escapes."""
    return _CONTROLS.sub(lambda match: repr(match.group())[1:-1], text)


def check_outputs(outputs: dict[str, Path | None], inputs: Sequence[Path | None] = ()) -> None:
    """Refuse before any work what could not be written at its end, or would overwrite what the command reads.

    Args:
        outputs: option -> its file, None where it is not given.
        inputs: files that the command reads.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    for option, path in given.items():
        check_writable(path)
        if any(path.exists() and other is not None and other.exists() and path.samefile(other) for other in inputs):
            raise typer.BadParameter(f"{option} {path} is a file that this command reads")
        if any(path.resolve() == other.resolve() and option != name for name, other in given.items()):
            raise typer.BadParameter(f"{option} {path} is written by another option as well")


def continue_prompts(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Greedy continuations of all prompts as one left-padded batch; each prompt ends with its last real token."""
    import torch

    from incline_fast.models.architectures import describe
    from incline_fast.models.inputs import input_device, token_limits
    from incline_fast.text.prompts import left_padded, tokenize

    architecture = describe(model)
    tokenized = tokenize(tokenizer, prompts, token_limits(architecture))
    device = input_device(architecture)
    ids, mask = (part.to(device) for part in left_padded([prompt.up_to_last for prompt in tokenized]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.inference_mode():
        tokens = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
        )
    continued: list[str] = tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
    return continued


def print_generation(prompt: str, edited: str, plain: str | None, alpha: float, language: str | None = None) -> None:
    """A prompt with its continuations, one below the other."""
    typer.secho(shown(prompt), bold=True)
    if plain is not None:
        typer.echo(f"  plain        {plain.strip()!r}")
    named = "" if language is None else f"{shown(language)}: "
    typer.echo(f"  {named}alpha {alpha:<6g} {edited.strip()!r}")


def print_alignment(alignment: Alignment) -> None:
    """What an alignment is, and a row per site."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    about = alignment.metadata
    console = Console()
    console.print(shown(repr(alignment)), highlight=False, markup=False, emoji=False)
    for name in ("preset", "template", "pooling", "recommended_alpha", "library_version"):
        console.print(f"{name:<18}{getattr(about, name)!r}", highlight=False, markup=False, emoji=False)
    table = Table("site", "map", "lam", "solved by", "held-out error", "notes")
    for layer, map in alignment.maps.items():
        error = about.fit_error.get(layer)
        cells = (
            str(layer),
            "dense" if map.rank is None else f"rank {map.rank}",
            f"{about.lam[layer]:g}" if layer in about.lam else "",
            about.solver.get(layer, ""),
            "" if error is None else f"{error:.3f}",
            "; ".join(about.notes.get(layer, [])),
        )
        table.add_row(*(Text(shown(cell)) for cell in cells))
    console.print(table)
