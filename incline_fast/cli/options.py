"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["Artifact", "Device", "Dtype", "Languages", "Layers", "Model", "Pairs", "Skip", "Source", "Target"]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a `transformers` decoder.")]
Artifact = Annotated[
    Path, typer.Argument(metavar="ALIGNMENT", help="File written by `fit` or `tune`.", exists=True, dir_okay=False)
]
Pairs = Annotated[
    Path | None,
    typer.Option(
        help="Parallel text in one file: .tsv (source, tab, target), .jsonl or .ndjson; also .gz, .bz2, .xz.",
        exists=True,
    ),
]
Source = Annotated[Path | None, typer.Option(help="Sentences of the source language, one a line.", exists=True)]
Target = Annotated[Path | None, typer.Option(help="The same sentences in the target language.", exists=True)]
Languages = Annotated[str | None, typer.Option(help="Source and target language, e.g. `fr,en`.")]
Skip = Annotated[bool, typer.Option("--skip-bad-lines", help="Leave out unusable lines and report them.")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16", "auto"], typer.Option(help="Dtype of the model.")]
Device = Annotated[str, typer.Option(help="Device of the model.")]
Layers = Annotated[
    str | None, typer.Option(help="Sites to use, e.g. `4-12,18`; 0 is the embedding, l the output of block l.")
]
