"""The result of an alignment on test rows: plain, intervened and target prompt, under every calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from torch import Tensor, nn

from incline_fast.alignment import Alignment
from incline_fast.evaluation.bootstrap import mcnemar, paired_bootstrap
from incline_fast.evaluation.calibration import CALIBRATIONS
from incline_fast.evaluation.checks import check_late_entry
from incline_fast.evaluation.metrics import consistent_correct
from incline_fast.evaluation.scoring import PLAIN, LabelScorer, Variant
from incline_fast.evaluation.tasks import LabelTask, TaskError
from incline_fast.files import write_table
from incline_fast.models.identity import identify, weights_hash

__all__ = ["COLUMNS", "Report", "evaluate", "result_row"]

COLUMNS = (
    "task", "language", "line", "calibration", "accuracy", "difference", "low", "high", "p_mcnemar", "cpc", "n",
    "setting", "settings_tried", "preset", "model", "weights_hash", "data_hash", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Rows with the columns :data:`COLUMNS`, one per line and calibration.

    Attributes:
        rows: accuracy, the paired difference to the plain prompt with its 95% interval, McNemar's p, CPC.
    """

    rows: list[dict[str, Any]]

    def table(self) -> str:
        """The rows as text."""
        lines = [f"{'calibration':<12} {'line':<16} {'accuracy':>8}  difference to plain, 95% interval"]
        for row in self.rows:
            points = [100 * row[name] for name in ("difference", "low", "high")]
            gain = "" if row["line"] == "plain" else "{:+.1f} [{:+.1f}, {:+.1f}] points".format(*points)
            lines.append(f"{row['calibration']:<12} {row['line']:<16} {100 * row['accuracy']:>7.1f}%  {gain}".rstrip())
        return "\n".join(lines)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the rows, whole or not at all."""
        write_table(self.rows, COLUMNS, path)


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    alignment: Alignment,
    task: LabelTask,
    target: LabelTask | None = None,
    *,
    alpha: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Accuracy of the plain and of the intervened prompt, and of the target prompt where there is one.

    Args:
        model: a causal LM of transformers, not compiled.
        tokenizer: its tokenizer.
        alignment: the maps.
        task: test rows with answers: rows that nothing was fitted or chosen on.
        target: the same rows in the target language.
        alpha: strength; None: the one that the alignment recommends.
        seed: of the bootstrap.
        progress: show progress bars.

    Raises:
        TaskError: answers are missing, or the two tasks do not have the same rows.
        ValueError: no alpha is given and none is recommended.
    """
    about = alignment.metadata
    strength = about.recommended_alpha if alpha is None else alpha
    if strength is None:
        raise ValueError("alpha is None and the alignment recommends none; give one, or let tune choose it")
    if target is not None and (target.answers != task.answers or target.labels != task.labels):
        raise TaskError(f"{task.name}: the target rows have other answers or labels than the source rows")
    check_late_entry(alignment)
    alignment.check(model)
    count = identify(model).num_layers
    scorer = LabelScorer(model, tokenizer, task, sites=range(alignment.layers[0] or 1, count + 1), progress=progress)
    scores = scorer.score([PLAIN, Variant("INCLINE", alignment, strength)])
    english = None
    if target is not None:
        english = LabelScorer(model, tokenizer, target, sites=[count], progress=progress).score([PLAIN])
    fixed = {
        "task": task.name,
        "language": task.language,
        "settings_tried": about.metrics.get("settings_tried", ""),
        "preset": about.preset or "",
        "model": identify(model).model_id,
        "weights_hash": weights_hash(model),
        "data_hash": task.data_hash,
        "seed": seed,
    }
    sites = alignment.layers
    setting = f"{about.estimator}, sites {sites[0]}-{sites[-1]}, alpha {strength:g}"
    rows = []
    for calibration in CALIBRATIONS:
        correct = scores.correct(calibration)
        in_target = None if english is None else english.correct(calibration)[0]
        lines = {"plain": (correct[0], ""), "INCLINE": (correct[1], setting)}
        if in_target is not None:
            lines["target prompt"] = in_target, ""
        rows += [
            {**fixed, "line": line, "calibration": calibration, "setting": what}
            | result_row(own, correct[0], in_target, task.ids, seed)
            for line, (own, what) in lines.items()
        ]
    return Report(rows)


def result_row(
    own: Tensor, plain: Tensor, target: Tensor | None, groups: Sequence[str], seed: int = 0
) -> dict[str, float | int | str]:
    """Accuracy of ``own [n]``, its difference to ``plain`` with interval and p, and its consistency with ``target``.

    Args:
        own: bool ``[n]``, which rows are right.
        plain: the same without the intervention.
        target: the same of the target prompts, if there are any.
        groups: n identifiers; rows with the same one are drawn together.
        seed: of the bootstrap.
    """
    gain = paired_bootstrap(own.float(), plain.float(), groups=groups, seed=seed)
    return {
        "accuracy": round(float(own.float().mean()), 4),
        "difference": round(gain.mean, 4),
        "low": round(gain.low, 4),
        "high": round(gain.high, 4),
        "p_mcnemar": float(f"{mcnemar(own, plain):.3g}"),
        "cpc": "" if target is None else round(consistent_correct(own, target), 4),
        "n": len(own),
    }
