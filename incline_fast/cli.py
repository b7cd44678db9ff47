"""The command ``incline-fast``: learn an alignment, apply it, choose alpha, look inside, measure."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

# transformers takes seconds to import: the commands import what they need, so that --help answers soon.
if TYPE_CHECKING:
    from incline_fast.alignment import Alignment
    from incline_fast.text import ParallelText

__all__ = ["app", "main"]

app = typer.Typer(
    name="incline-fast",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Learn linear maps that carry a language model's hidden states from one language to another, and apply
them at inference time inside the model's own norms (INCLINE, Wang et al., ACL 2025, arXiv 2410.12462).

```text
incline-fast fit      MODEL --pairs train.tsv -o fr-en.safetensors
incline-fast sweep    MODEL fr-en.safetensors --pairs dev.tsv --write
incline-fast generate MODEL fr-en.safetensors --prompt 'Bonjour'
incline-fast info     fr-en.safetensors
incline-fast bench    --quick
```
""",
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a `transformers` decoder.")]
Artifact = Annotated[
    Path, typer.Argument(metavar="ALIGNMENT", help="File written by `fit`.", exists=True, dir_okay=False)
]
Pairs = Annotated[
    Path | None, typer.Option(help="Parallel text in one file: .tsv (source, tab, target) or .jsonl.", exists=True)
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


@app.command()
def fit(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the alignment.")],
    pairs: Pairs = None,
    source: Source = None,
    target: Target = None,
    languages: Languages = None,
    preset: Annotated[
        Literal["robust", "paper", "official"], typer.Option(help="The recipe; the options below override its parts.")
    ] = "robust",
    template: Annotated[
        str | None, typer.Option(help="Prompt around each sentence, with `{sentence}` in it; `\\n` is a line break.")
    ] = None,
    pooling: Annotated[Literal["last", "mean"] | None, typer.Option(help="The state of a sentence.")] = None,
    estimator: Annotated[
        str | None, typer.Option(help="min_norm, ridge, affine_ridge, procrustes, mean_difference, constant_mean.")
    ] = None,
    lam: Annotated[
        str | None,
        typer.Option(
            help="Ridge parameter, relative to the mean eigenvalue, or `loo`: one per layer by leave-one-out."
        ),
    ] = None,
    form: Annotated[
        Literal["add", "interpolate"] | None,
        typer.Option(help="h + alpha (W h + b), or (1 - alpha) h + ..."),
    ] = None,
    layers: Layers = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the pairs kept for the held-out error.", min=0, max=0.9)
    ] = 0.2,
    resume: Annotated[Path | None, typer.Option(help="Directory for the states; an interrupted run continues.")] = None,
    rank_timeout: Annotated[
        float, typer.Option(help="Seconds that a process of a torchrun waits for the others before it gives up.", min=1)
    ] = 1800,
    skip_bad_lines: Skip = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Learn one map per layer from parallel sentences.

    The template should be the prompt that the maps will meet at inference.

        incline-fast fit google/gemma-3-270m -o fr-en.safetensors \\
            --pairs fr-en.tsv --languages fr,en \\
            --template '{sentence}\\nThe topic of this text is'

    The paper's own recipe, from two line-aligned files:

        incline-fast fit google/gemma-3-270m -o paper.safetensors \\
            --source train.fr --target train.en --preset paper

    Over two processes, which share sentences and layers; the same command again continues after a failure:

        torchrun --nproc-per-node 2 -m incline_fast fit MODEL --pairs fr-en.tsv \\
            --resume states -o fr-en.safetensors
    """
    from incline_fast._distributed import rank_and_size, started_by_torchrun, together
    from incline_fast.fit import fit as fit_alignment

    text = _parallel_text(pairs, source, target, languages, skip_bad_lines)
    loaded, tokenizer = _load_model(model, dtype, device)
    distributed = started_by_torchrun()
    with together(rank_timeout) if distributed else nullcontext():
        rank, _ = rank_and_size(distributed)
        alignment = fit_alignment(
            loaded,
            tokenizer,
            text.source,
            text.target,
            preset=preset,
            template=_unescape(template),
            pooling=pooling,
            estimator=estimator,
            lam=_lam(lam),
            form=form,
            layers=_layers(layers),
            holdout=holdout,
            resume=resume,
            source_language=text.source_language,
            target_language=text.target_language,
            distributed=distributed,
        )
    if rank > 0:
        return
    alignment.save(output)
    _print_alignment(alignment)
    typer.echo(f"wrote {output}")


@app.command()
def generate(
    model: Model,
    alignment: Artifact,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given more than once.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt a line; `-` reads standard input.", allow_dash=True)
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
    """
    from incline_fast.alignment import Alignment
    from incline_fast.intervene import intervene

    texts = list(prompt or []) + (_lines(prompts) if prompts else [])
    if not texts:
        raise typer.BadParameter("no prompt; give --prompt TEXT or --prompts FILE")
    loaded, tokenizer = _load_model(model, dtype, device)
    maps = Alignment.load(alignment, loaded)
    strength = maps.metadata.recommended_alpha if alpha is None else alpha
    if strength is None:
        raise typer.BadParameter(
            "the file recommends no alpha; give --alpha, or choose one with incline-fast sweep --write"
        )
    template = (maps.metadata.template if apply_template else None) or "{sentence}"
    inputs = [template.replace("{sentence}", text) for text in texts]
    with intervene(loaded, maps, alpha=strength, positions=positions, mode=mode, layers=_layers(layers)):
        edited = _continue(loaded, tokenizer, inputs, max_new_tokens)
    plain = _continue(loaded, tokenizer, inputs, max_new_tokens) if compare else [None] * len(texts)
    for text, with_maps, without in zip(texts, edited, plain, strict=True):
        _print_generation(text, with_maps, without, strength)


@app.command()
def sweep(
    model: Model,
    alignment: Artifact,
    pairs: Pairs = None,
    source: Source = None,
    target: Target = None,
    alphas: Annotated[str, typer.Option(help="`first:last:step`, or a list such as `0,0.1,0.2`.")] = "0:1:0.05",
    layers: Layers = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the table as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the curve as PNG or SVG.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Store the best alpha in the alignment file.")] = False,
    skip_bad_lines: Skip = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Choose alpha on development pairs.

    Reports KL(target prompt || source prompt) of the next-token distribution over a grid of alphas, with a bootstrap
    interval; all alphas share one prefill of the prompt. To keep the best one in the file:

        incline-fast sweep google/gemma-3-270m fr-en.safetensors \\
            --pairs dev.tsv --alphas 0:0.6:0.05 --write
    """
    from incline_fast.alignment import Alignment
    from incline_fast.sweep import sweep as run_sweep

    text = _parallel_text(pairs, source, target, None, skip_bad_lines)
    grid = _alphas(alphas)
    loaded, tokenizer = _load_model(model, dtype, device)
    maps = Alignment.load(alignment, loaded)
    result = run_sweep(loaded, tokenizer, maps, text.source, text.target, alphas=grid, layers=_layers(layers))
    typer.echo(result.table())
    if output:
        result.to_csv(output)
    if plot:
        result.plot(plot)
    if write:
        maps.with_metadata(recommended_alpha=result.best_alpha).save(alignment)
        typer.echo(f"stored alpha = {result.best_alpha:g} in {alignment}")


@app.command()
def info(
    alignment: Artifact,
    model: Annotated[str | None, typer.Option(help="Also check that the alignment fits this model.")] = None,
) -> None:
    """Show what an alignment file holds, and which backend would apply it.

    With a model, also check that the two belong together:

    incline-fast info fr-en.safetensors --model google/gemma-3-270m
    """
    from incline_fast.alignment import Alignment
    from incline_fast.ops import explain

    maps = Alignment.load(alignment)
    _print_alignment(maps)
    typer.echo(f"backend   {explain()}")
    if model:
        loaded, _ = _load_model(model, "auto", "cpu")
        maps.check(loaded)
        typer.echo(f"fits      {model}")


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A few shapes, under a minute.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the rows as CSV.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch's pool.", min=1)] = 1,
) -> None:
    """Time the fused op against plain PyTorch on this machine.

    Paired runs, medians, weights from DRAM; every result is checked against the fp64 reference before it is timed.

        incline-fast bench --quick
    """
    from incline_fast.bench import main as run_bench

    run_bench(quick=quick, output=output, threads=threads)


def main() -> None:
    """Run the command; expected errors become one line on standard error and exit code 1."""
    # The errors that a user can cause derive from these; anything else is a bug and keeps its traceback.
    try:
        app(standalone_mode=True)
    except (ValueError, TypeError, OSError, ArithmeticError) as error:
        typer.secho(f"incline-fast: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)


def _load_model(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    return model, AutoTokenizer.from_pretrained(name)


def _parallel_text(
    pairs: Path | None, source: Path | None, target: Path | None, languages: str | None, skip_bad_lines: bool
) -> ParallelText:
    from incline_fast.text import ParallelText

    codes = (languages or ",").split(",")
    if len(codes) != 2:
        raise typer.BadParameter(f"languages is {languages!r}; expected two, separated by a comma, such as fr,en")
    if (pairs is None) == (source is None and target is None) or (source is None) != (target is None):
        raise typer.BadParameter("give either --pairs FILE, or both --source FILE and --target FILE")
    options: dict[str, Any] = {
        "on_problem": "skip" if skip_bad_lines else "error",
        "source_language": codes[0] or None,
        "target_language": codes[1] or None,
    }
    if source is not None and target is not None:
        text = ParallelText.from_files(source, target, **options)
    elif pairs is not None and pairs.suffix == ".jsonl":
        text = ParallelText.from_jsonl(pairs, **options)
    else:
        assert pairs is not None
        text = ParallelText.from_tsv(pairs, **options)
    for problem in text.problems:
        typer.secho(str(problem), fg=typer.colors.YELLOW, err=True)
    return text


def _layers(text: str | None) -> list[int] | None:
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


def _lam(text: str | None) -> float | Literal["loo"] | None:
    if text == "loo":
        return "loo"
    try:
        return None if text is None else float(text)
    except ValueError:
        raise typer.BadParameter(f"lam is {text!r}; expected a number >= 0, or loo") from None


def _alphas(text: str) -> list[float]:
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


def _lines(path: Path) -> list[str]:
    content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    return [line for line in content.splitlines() if line.strip()]


def _unescape(template: str | None) -> str | None:
    # Shells do not turn \n into a line break, and a template needs one more often than it needs a backslash.
    return None if template is None else template.replace("\\n", "\n")


def _continue(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
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


def _print_generation(prompt: str, edited: str, plain: str | None, alpha: float) -> None:
    typer.secho(prompt, bold=True)
    if plain is not None:
        typer.echo(f"  plain        {plain.strip()!r}")
    typer.echo(f"  alpha {alpha:<6g} {edited.strip()!r}")


def _print_alignment(alignment: Alignment) -> None:
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
