"""The command ``rank``: how similar a model's states of other languages are to those of English."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from incline_fast.cli.inputs import load_model, parse_layers, unescape
from incline_fast.cli.options import Device, Dtype, Layers, Model
from incline_fast.cli.output import check_outputs, shown

__all__ = ["rank"]


def rank(
    model: Model,
    reference: Annotated[Path, typer.Option(help="Sentences of the reference language, one a line.", exists=True)],
    text: Annotated[list[str], typer.Option(help="`LANGUAGE=FILE`, the same sentences line by line; repeat it.")],
    template: Annotated[
        str | None, typer.Option(help="Prompt around each sentence, with `{sentence}` in it; bare without it.")
    ] = None,
    layers: Layers = None,
    limit: Annotated[int, typer.Option(help="Use the first sentences only.", min=2)] = 200,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write all languages and sites as CSV.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Rank languages by how similar their hidden states are to the reference language's.

    The mean cosine to the states of the same sentences in the reference language (Language Ranker, arXiv 2404.11553),
    and the same after each language's mean is subtracted. A language that is far away has more to gain from maps; one
    that is near needs none.

        incline-fast rank MODEL --reference news.en --text fr=news.fr --text sw=news.sw -o rank.csv
    """
    from incline_fast.evaluation.rank import rank_languages
    from incline_fast.text.lines import text_lines

    files = {name: Path(path) for name, found, path in (each.partition("=") for each in text) if found}
    if len(files) != len(text):
        raise typer.BadParameter(f"text is {text}; expected LANGUAGE=FILE, each language once")
    check_outputs({"--output": output}, [reference, *files.values()])
    sites = parse_layers(layers)
    sides = {name: list(text_lines(path))[:limit] for name, path in {"": reference, **files}.items()}
    first = sides.pop("")
    loaded, tokenizer = load_model(model, dtype, device)
    found = rank_languages(
        loaded, tokenizer, first, sides, reference_language=reference.name, template=unescape(template), layers=sites
    )
    typer.echo(shown(found.table()))
    if output:
        found.to_csv(output)
