"""The command ``generate``: continue prompts with one alignment, or each in its language with those of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from incline_fast.cli.inputs import load_model, parse_layers, read_prompts
from incline_fast.cli.options import Artifact, Device, Dtype, Layers, Model
from incline_fast.cli.output import continue_prompts, print_generation

if TYPE_CHECKING:
    from incline_fast.alignment.alignment import Alignment
    from incline_fast.alignment.bundle import AlignmentBundle

__all__ = ["generate"]

_PLAIN = "-"
_DETECT = "detect"


def generate(
    model: Model,
    alignment: Artifact,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given more than once.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt a line; `-` reads standard input.", allow_dash=True)
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            help="With a bundle: the language of each prompt, `fr,-,sw` (`-`: not edited), one for all, or `detect`."
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Strength; by default the one that the file recommends.")] = None,
    positions: Annotated[
        Literal["last", "generated", "all"], typer.Option(help="Edited tokens; the paper's choice is `last`.")
    ] = "last",
    mode: Annotated[
        Literal["online", "clean"], typer.Option(help="One pass, or every edit computed from the unedited run.")
    ] = "online",
    layers: Layers = None,
    apply_template: Annotated[
        bool, typer.Option("--template/--no-template", help="Put each prompt into the template that was fitted.")
    ] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    compare: Annotated[bool, typer.Option("--compare", help="Show the plain model's continuation as well.")] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Generate with the intervention, greedily.

    Beside the plain model, at a strength of one's own:

        incline-fast generate google/gemma-3-270m fr-en.safetensors \\
            --alpha 0.2 --compare --prompt 'Le mot de passe est trop court.'

    Prompts of several languages in one batch, with the file that `bundle` wrote:

        incline-fast generate google/gemma-3-270m languages.safetensors \\
            --prompts prompts.txt --languages fr,sw,-
    """
    from incline_fast.alignment.alignment import Alignment
    from incline_fast.intervention.intervene import intervene

    texts = list(prompt or []) + (read_prompts(prompts) if prompts else [])
    if not texts:
        raise typer.BadParameter("no prompt; give --prompt TEXT or --prompts FILE")
    sites = parse_layers(layers)
    maps = _read(alignment)
    rows = _languages(languages, maps, texts)
    used = [maps if isinstance(maps, Alignment) else maps[row] if row else None for row in rows]
    strengths = [0.0 if one is None else _strength(one, row, alpha) for one, row in zip(used, rows, strict=True)]
    inputs = _in_templates(texts, used) if apply_template else texts
    loaded, tokenizer = load_model(model, dtype, device)
    settings: dict[str, Any] = {"positions": positions, "mode": mode, "layers": sites}
    if isinstance(maps, Alignment):
        edit = intervene(loaded, maps, alpha=strengths[0], **settings)
    else:
        edit = intervene(loaded, maps, languages=rows, alpha=strengths, **settings)
    with edit:
        edited = continue_prompts(loaded, tokenizer, inputs, max_new_tokens)
    plain = continue_prompts(loaded, tokenizer, inputs, max_new_tokens) if compare else [None] * len(texts)
    for text, with_maps, without, strength, row in zip(texts, edited, plain, strengths, rows, strict=True):
        print_generation(text, with_maps, without, strength, row)


def _read(path: Path) -> Alignment | AlignmentBundle:
    from incline_fast.alignment.alignment import Alignment
    from incline_fast.alignment.bundle import AlignmentBundle
    from incline_fast.alignment.storage import read_document

    return AlignmentBundle(path) if "bundle" in read_document(path) else Alignment.load(path)


def _languages(given: str | None, maps: Alignment | AlignmentBundle, texts: Sequence[str]) -> list[str | None]:
    """The language of every prompt; with one alignment there is nothing to choose."""
    from incline_fast.alignment.alignment import Alignment

    if isinstance(maps, Alignment):
        if given is not None:
            raise typer.BadParameter(
                f"--languages is {given!r}, and ALIGNMENT holds one alignment; join some by bundle"
            )
        return [None] * len(texts)
    if given is None:
        raise typer.BadParameter(f"ALIGNMENT holds {', '.join(maps)}; give --languages, one for each prompt or for all")
    if given == _DETECT:
        from incline_fast.text.detection import detect_languages

        rows = detect_languages(texts, maps)
    else:
        names = [name.strip() for name in given.split(",")]
        unknown = [name for name in names if name != _PLAIN and name not in maps]
        if unknown:
            raise typer.BadParameter(f"--languages has {unknown[0]!r}; allowed: {', '.join(maps)}, or {_PLAIN}")
        if len(names) not in (1, len(texts)):
            raise typer.BadParameter(f"--languages has {len(names)} names for {len(texts)} prompts")
        rows = [None if name == _PLAIN else name for name in names] * (len(texts) if len(names) == 1 else 1)
    if not any(rows):
        raise typer.BadParameter(f"--languages is {given!r}: no prompt is in one of the languages {', '.join(maps)}")
    return rows


def _strength(maps: Alignment, language: str | None, alpha: float | None) -> float:
    strength = maps.metadata.recommended_alpha if alpha is None else alpha
    if strength is None:
        which = f" for {language}" if language else ""
        raise typer.BadParameter(
            f"the file recommends no alpha{which}; give --alpha, or choose one with incline-fast sweep --write"
        )
    return strength


def _in_templates(texts: Sequence[str], used: Sequence[Alignment | None]) -> list[str]:
    """Every prompt in the template of its maps; a prompt without maps in the template that all the others share."""
    from incline_fast.text.prompts import render

    templates = {one.metadata.template for one in used if one is not None}
    if None in used and len(templates) > 1:
        raise typer.BadParameter(
            "the templates of these languages differ; give --no-template, and prompts that are whole"
        )
    common = next(iter(templates))
    found: list[str] = []
    for text, one in zip(texts, used, strict=True):
        found += render([text], common if one is None else one.metadata.template)
    return found
