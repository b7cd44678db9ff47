"""The commands ``tune`` and ``evaluate``: choose what helps, and say on other rows whether it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from incline_fast.cli.inputs import load_model, parallel_text, parse_alphas, parse_layers, unescape
from incline_fast.cli.options import Artifact, Device, Dtype, Languages, Layers, Model, Pairs, Skip, Source, Target
from incline_fast.cli.output import check_outputs, shown

if TYPE_CHECKING:
    from incline_fast.evaluation import LabelTask

__all__ = ["evaluate", "tune"]

Template = Annotated[
    str, typer.Option(help="The prompt of the task, with `{sentence}` in it, up to the label; `\\n` is a line break.")
]
Labels = Annotated[str | None, typer.Option(help="Label words of one token each: `science,travel,politics`.")]

# Enough rows to choose among hundreds of settings without overfitting; more cost time, and pairs to fit.
_MOST_HELD_OUT = 300


def tune(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the alignment.")],
    template: Template,
    labels: Labels = None,
    pairs: Pairs = None,
    source: Source = None,
    target: Target = None,
    dev: Annotated[
        Path | None,
        typer.Option(help="Rows to choose on: .tsv with the columns source, target and, if known, label.", exists=True),
    ] = None,
    languages: Languages = None,
    metric: Annotated[
        Literal["accuracy", "calibrated_accuracy", "log_likelihood", "kl"] | None,
        typer.Option(help="What to choose by; by default accuracy where labels are known, otherwise kl."),
    ] = None,
    estimators: Annotated[str, typer.Option(help="Estimators to try.")] = "affine_ridge",
    lams: Annotated[str, typer.Option(help="Relative ridge parameters to try.")] = "0.1,0.3,1,3,10",
    alphas: Annotated[str, typer.Option(help="`first:last:step`, or a list such as `0.5,1`.")] = "0.05:1:0.05",
    layers: Layers = None,
    table: Annotated[Path | None, typer.Option(help="Write every setting that was tried as CSV.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Directory for states and scores; a stopped run goes on.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the rows to choose on where --dev is not given.")] = 0,
    skip_bad_lines: Skip = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Choose estimator, lambda, sites and alpha by what they do to a task.

    Give at least 200 parallel sentences *like the inputs of the task*, and its very prompt: maps from other text or
    another prompt may do harm. No labels are needed to fit. Says first what each site could gain at most (the oracle).

        incline-fast tune MODEL --pairs fr-en.tsv --dev dev.tsv \\
            --template '{sentence}\\nThe topic of this text is' \\
            --labels science,travel,politics -o fr-en.safetensors

    Without --dev, 30% of the pairs (300 at most) are kept to choose on, by KL to the target prompt over the label
    words. A run that was stopped goes on with --resume:

        incline-fast tune MODEL --source train.fr --target train.en \\
            --template '{sentence} It is' --labels good,bad \\
            --resume states -o fr-en.safetensors --table tried.csv
    """
    from incline_fast.evaluation import Development, LabelTask, tsv_labels
    from incline_fast.evaluation import tune as run_tune

    # All options are read, and all outputs tried, before the first slow step.
    check_outputs({"--output": output, "--table": table}, [pairs, source, target, dev])
    grid, lam_grid, chosen_sites = parse_alphas(alphas), parse_alphas(lams), parse_layers(layers)
    text = parallel_text(pairs, source, target, languages, skip_bad_lines)
    words = _words(labels)
    prompt = unescape(template) or template
    if dev is not None:
        named = _columns(dev)
        task = tsv_labels(dev, prompt, columns=("source", "label" if "label" in named else None), labels=words)
        translations = tsv_labels(dev, prompt, columns=("target", None), labels=task.labels).sentences
    else:
        held = min(_MOST_HELD_OUT, round(0.3 * len(text.source)))
        split = text.split(dev=held, test=0, seed=seed)
        text = split.fit
        rows = [str(i) for i in range(len(split.dev))]
        task = LabelTask("held out", text.source_language or "", split.dev.source, prompt, words, None, rows)
        translations = split.dev.target
    loaded, tokenizer = load_model(model, dtype, device)
    found = run_tune(
        loaded,
        tokenizer,
        text.source,
        text.target,
        Development(task, translations),
        estimators=estimators.split(","),
        lams=lam_grid,
        alphas=grid,
        sites=chosen_sites,
        metric=metric,
        source_language=text.source_language,
        target_language=text.target_language,
        resume=resume,
    )
    typer.echo(shown(found.table()))
    if found.alignment is not None:
        found.alignment.save(output)
        typer.echo(f"wrote {output}")
    if table:
        found.trials.to_csv(table)
    if found.alignment is None:
        raise ValueError(f"nothing was written to {output}: no setting was better than the plain model")


def evaluate(
    model: Model,
    alignment: Artifact,
    test: Annotated[Path, typer.Option(help="Rows: .tsv with the columns source, label and, if known, target.")],
    labels: Labels = None,
    alpha: Annotated[float | None, typer.Option(help="Strength; by default the one that the file recommends.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt; by default the one that was fitted.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the table as CSV.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Accuracy on test rows: plain, intervened and, with a column target, the target prompt.

    Give rows that nothing was fitted or chosen on. Raw and calibrated, with 95% paired bootstrap intervals:

        incline-fast evaluate MODEL fr-en.safetensors --test test.tsv \\
            --labels science,travel,politics -o result.csv
    """
    from incline_fast.alignment import Alignment
    from incline_fast.evaluation import tsv_labels
    from incline_fast.evaluation.report import evaluate as run_evaluate

    check_outputs({"--output": output}, [test, alignment])
    maps = Alignment.load(alignment)
    prompt = unescape(template) or maps.metadata.template
    if prompt is None:
        raise typer.BadParameter("the file names no prompt; give --template")
    words = _words(labels or str(maps.metadata.metrics.get("labels", "")))
    task = tsv_labels(test, prompt, labels=words)
    other: LabelTask | None = None
    if "target" in _columns(test):
        other = tsv_labels(test, prompt, columns=("target", "label"), labels=task.labels)
    loaded, tokenizer = load_model(model, dtype, device)
    maps.check(loaded)
    report = run_evaluate(loaded, tokenizer, maps, task, other, alpha=alpha)
    typer.echo(shown(report.table()))
    if output:
        report.to_csv(output)


def _words(labels: str | None) -> tuple[str, ...]:
    words = tuple(word.strip() for word in (labels or "").split(",") if word.strip())
    if len(words) < 2:
        raise typer.BadParameter(f"labels is {labels!r}; expected at least two words, such as good,bad")
    return words


def _columns(path: Path) -> list[str]:
    from incline_fast.text.lines import text_lines

    return next(iter(text_lines(path)), "").split("\t")
