"""The command ``incline-fast``: learn an alignment, apply it, choose alpha, look inside, measure."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from incline_fast.cli.evaluation import evaluate, tune
from incline_fast.cli.generation import generate
from incline_fast.cli.harness import lm_eval
from incline_fast.cli.inputs import (
    load_model,
    parallel_text,
    parse_alphas,
    parse_lam,
    parse_layers,
    plan_of,
    unescape,
)
from incline_fast.cli.options import Artifact, Device, Dtype, Languages, Layers, Model, Pairs, Skip, Source, Target
from incline_fast.cli.output import check_outputs, print_alignment, shown
from incline_fast.cli.rank import rank

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
incline-fast tune     MODEL --pairs train.tsv --dev dev.tsv --template '{sentence} It is' \\
                      --labels good,bad -o fr-en.safetensors
incline-fast evaluate MODEL fr-en.safetensors --test test.tsv
incline-fast fit      MODEL --pairs train.tsv -o fr-en.safetensors
incline-fast sweep    MODEL fr-en.safetensors --pairs dev.tsv --write
incline-fast generate MODEL fr-en.safetensors --prompt 'Bonjour'
incline-fast info     fr-en.safetensors
incline-fast rank     MODEL --reference news.en --text fr=news.fr --text sw=news.sw
incline-fast lm-eval  --model incline --model_args ... --tasks incline_xcopa_tr
incline-fast bench    --quick
```
""",
)

app.command()(tune)
app.command()(evaluate)
app.command()(rank)
app.command(name="lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(lm_eval)


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
            help="Ridge parameter, relative to the mean eigenvalue; by default `loo`: one per layer by leave-one-out."
        ),
    ] = None,
    form: Annotated[
        Literal["add", "interpolate"] | None,
        typer.Option(help="h + alpha (W h + b), or (1 - alpha) h + ..."),
    ] = None,
    site: Annotated[
        Literal["hidden", "attention", "ffn"] | None,
        typer.Option(help="What is mapped: the residual stream, or what attention or the FFN of a block returns."),
    ] = None,
    layers: Layers = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the pairs kept for the held-out error.", min=0, max=0.9)
    ] = 0.2,
    resume: Annotated[Path | None, typer.Option(help="Directory for the states; an interrupted run continues.")] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(help="Memory to use beside the model, e.g. `16GiB`: layers are then fitted in groups."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print groups of layers and memory; load no weights, write nothing.")
    ] = False,
    rank_timeout: Annotated[
        float, typer.Option(help="Seconds that a process of a torchrun waits for the others before it gives up.", min=1)
    ] = 1800,
    skip_bad_lines: Skip = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    solve_device: Annotated[str, typer.Option(help="Device on which the maps are computed.")] = "cpu",
) -> None:
    """Learn one map per layer from parallel sentences.

    The template should be the prompt that the maps will meet at inference.

        incline-fast fit google/gemma-3-270m -o fr-en.safetensors \\
            --pairs fr-en.tsv --languages fr,en \\
            --template '{sentence}\\nThe topic of this text is'

    The paper's own recipe, from two line-aligned files:

        incline-fast fit google/gemma-3-270m -o paper.safetensors \\
            --source train.fr --target train.en --preset paper

    A large model in little memory; `--dry-run` shows the groups of layers first:

        incline-fast fit MODEL --pairs fr-en.tsv -o fr-en.safetensors \\
            --memory-budget 32GiB --dry-run

    Over two processes, which share sentences and layers; the same command again continues after a failure:

        torchrun --nproc-per-node 2 -m incline_fast fit MODEL --pairs fr-en.tsv \\
            --resume states -o fr-en.safetensors
    """
    from incline_fast.arguments import usable_device
    from incline_fast.distributed import own_device, rank_and_size, started_by_torchrun, together
    from incline_fast.fitting.fit import fit as fit_alignment
    from incline_fast.fitting.options import FitOptions

    # All options are read before the first slow step.
    sites, ridge_parameter = parse_layers(layers), parse_lam(lam)
    if not dry_run:
        check_outputs({"--output": output}, [pairs, source, target])
        usable_device("solve_device", own_device(solve_device))
    text = parallel_text(pairs, source, target, languages, skip_bad_lines)
    if dry_run:
        typer.echo(str(plan_of(model, len(text.source), sites, memory_budget)))
        return
    distributed = started_by_torchrun()
    options = FitOptions(
        preset=preset,
        template=unescape(template),
        pooling=pooling,
        estimator=estimator,
        lam=ridge_parameter,
        form=form,
        site=site,
        layers=sites,
        holdout=holdout,
        resume=resume,
        memory_budget=memory_budget,
        solve_device=own_device(solve_device),
        source_language=text.source_language,
        target_language=text.target_language,
        distributed=distributed,
    )
    loaded, tokenizer = load_model(model, dtype, own_device(device))
    with together(rank_timeout) if distributed else nullcontext():
        rank, _ = rank_and_size(distributed)
        alignment = fit_alignment(loaded, tokenizer, text.source, text.target, options)
    if rank > 0:
        return
    alignment.save(output)
    print_alignment(alignment)
    typer.echo(f"wrote {output}")


app.command()(generate)


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
    from incline_fast.alignment.alignment import Alignment
    from incline_fast.intervention.sweep import sweep as run_sweep
    from incline_fast.intervention.sweep_result import check_plot

    # All options are read, and all outputs tried, before the first slow step.
    grid, sites = parse_alphas(alphas), parse_layers(layers)
    check_outputs({"--output": output, "--plot": plot}, [pairs, source, target, alignment])
    if plot:
        check_plot(plot)
    if write:
        check_outputs({"--write": alignment})
    text = parallel_text(pairs, source, target, None, skip_bad_lines)
    maps = Alignment.load(alignment)
    loaded, tokenizer = load_model(model, dtype, device)
    result = run_sweep(loaded, tokenizer, maps, text.source, text.target, alphas=grid, layers=sites)
    typer.echo(result.table())
    if write:
        maps.with_metadata(recommended_alpha=result.best_alpha).save(alignment)
        typer.echo(f"stored alpha = {result.best_alpha:g} in {alignment}")
    if output:
        result.to_csv(output)
    if plot:
        result.plot(plot)


@app.command()
def bundle(
    alignments: Annotated[
        list[Path], typer.Argument(metavar="ALIGNMENT...", help="Files written by `fit`.", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the bundle.")],
    names: Annotated[
        str | None,
        typer.Option(help="Names in the order of the files, e.g. `fr,sw`; by default each file's source language."),
    ] = None,
) -> None:
    """Put the alignments of several languages of one model into one file, from which each is read alone.

        incline-fast bundle fr-en.safetensors sw-en.safetensors -o languages.safetensors

    In Python, `AlignmentBundle("languages.safetensors")["sw"]` reads the Swahili maps and no others.
    """
    from incline_fast.alignment.alignment import Alignment
    from incline_fast.alignment.bundle import AlignmentBundle

    loaded = [Alignment.load(path) for path in alignments]
    given = names.split(",") if names else [one.metadata.source_language or "" for one in loaded]
    if len(given) != len(loaded):
        raise typer.BadParameter(f"--names has {len(given)} names for {len(loaded)} files")
    if "" in given:
        raise typer.BadParameter(f"{alignments[given.index('')]} names no source language; give --names")
    if len(set(given)) < len(given):
        raise typer.BadParameter(f"the names are {', '.join(given)}; each may be there once, give others with --names")
    AlignmentBundle.save(output, dict(zip(given, loaded, strict=True)))
    typer.echo(f"wrote {output}: {', '.join(given)}")


@app.command()
def info(
    alignment: Artifact,
    model: Annotated[str | None, typer.Option(help="Also check that the alignment fits this model.")] = None,
) -> None:
    """Show what an alignment file holds, and which backend would apply it.

    With a model, also check that the two belong together:

    incline-fast info fr-en.safetensors --model google/gemma-3-270m
    """
    from incline_fast.alignment.alignment import Alignment
    from incline_fast.ops import explain

    maps = Alignment.load(alignment)
    print_alignment(maps)
    typer.echo(f"backend   {explain()}")
    if model:
        loaded, _ = load_model(model, "auto", "cpu")
        maps.check(loaded)
        typer.echo(f"fits      {model}")


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="The same as `--table quick`: under a minute.")] = False,
    table: Annotated[
        list[str] | None, typer.Option(help="A table to measure, may be repeated; all of them without it.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="A shape in the words that head its rows, may be repeated.")
    ] = None,
    providers: Annotated[
        str | None, typer.Option(help="Who takes part, e.g. `eager,fused`, instead of those of each table.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="CSV; new rows replace equal ones, others are kept.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch's pool.", min=1)] = 1,
) -> None:
    """Time the fused op against plain PyTorch and its peers on this machine.

    Paired runs, medians, weights from DRAM; every result is checked against the fp64 reference before it is timed.

        incline-fast bench --quick

    One table into a file, one shape again, another instruction set:

        incline-fast bench --table dense-bf16 -o cpu.csv

        incline-fast bench --shape 'rms 4 2048 dense bfloat16 bfloat16 dram' --providers eager,fused

        INCLINE_FAST_CPU_ISA=avx2 incline-fast bench --quick
    """
    from incline_fast.bench import main as run_bench

    check_outputs({"--output": output})
    run_bench(
        tables=[*(["quick"] if quick else []), *(table or [])],
        shapes=shape or [],
        providers=providers.split(",") if providers else [],
        output=output,
        threads=threads,
    )


def main() -> None:
    """Run the command; expected errors become one line on standard error and exit code 1."""
    # The errors that a user can cause derive from these; anything else is a bug and keeps its traceback.
    try:
        app(standalone_mode=True)
    except (ValueError, TypeError, OSError, ArithmeticError, ImportError) as error:
        typer.secho(shown(f"incline-fast: {error}"), fg=typer.colors.RED, err=True)
        sys.exit(1)
