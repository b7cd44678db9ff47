"""Metrics: of label scores, of answers across languages, and of generated text.

All return one number per row where they can, so that they can be averaged, compared in pairs and bootstrapped.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from incline_fast.evaluation.calibration import batch_calibrated

__all__ = [
    "METRICS",
    "Metric",
    "accuracy",
    "calibrated_accuracy",
    "chrf",
    "consistent_correct",
    "exact_match",
    "label_kl",
    "label_log_likelihood",
    "metric_named",
    "token_f1",
]

Metric = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``metric(logits, target_logits, answers)`` -> one number per row, more is better.

``logits [..., n, K]`` are the label scores of the source prompts, ``target_logits [n, K]`` those of the target prompts
(English), ``answers [n]`` the right labels or None."""


def accuracy(logits: Tensor, target_logits: Tensor, answers: Tensor | None) -> Tensor:
    """1 where the highest score is the answer's, else 0."""
    return (logits.argmax(-1) == _known(answers, "accuracy")).float()


def calibrated_accuracy(logits: Tensor, target_logits: Tensor, answers: Tensor | None) -> Tensor:
    """:func:`accuracy` after :func:`~incline_fast.evaluation.calibration.batch_calibrated` over the rows.

    For models that predict one label for nearly every sentence: plain accuracy is then near chance for every setting,
    and choosing by it would choose among noise.
    """
    return accuracy(batch_calibrated(logits.float()), target_logits, answers)


def label_log_likelihood(logits: Tensor, target_logits: Tensor, answers: Tensor | None) -> Tensor:
    """``log p(answer)`` among the labels, in nats."""
    wanted = _known(answers, "label_log_likelihood")
    log_p = logits.float().log_softmax(-1)
    return log_p.gather(-1, wanted.expand(logits.shape[:-1])[..., None]).squeeze(-1)


def label_kl(logits: Tensor, target_logits: Tensor, answers: Tensor | None) -> Tensor:
    """``-KL(p(label | target prompt) || p(label | source prompt))`` among the labels, in nats; needs no answers."""
    target = target_logits.float().log_softmax(-1)
    return -(target.exp() * (target - logits.float().log_softmax(-1))).sum(-1)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "calibrated_accuracy": calibrated_accuracy,
    "log_likelihood": label_log_likelihood,
    "kl": label_kl,
}


def metric_named(metric: str | Metric | None, has_answers: bool) -> tuple[str, Metric]:
    """Name and function of a metric; None: accuracy where there are answers, otherwise KL over the label words.

    Raises:
        ValueError: an unknown name, or a metric of answers where there are none.
    """
    if metric is None:
        metric = "accuracy" if has_answers else "kl"
    if not isinstance(metric, str):
        return getattr(metric, "__name__", "metric"), metric
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; allowed: {', '.join(METRICS)} or a function of logits")
    if metric != "kl" and not has_answers:
        raise ValueError(f"metric is {metric!r}, which needs answers; there are none: use metric='kl'")
    return metric, METRICS[metric]


def consistent_correct(a: Tensor, b: Tensor) -> float:
    """CPC, consistent correct predictions (Wang et al., ACL 2025, arXiv 2410.12462): share of rows right in both.

        CPC = |{i: a_i right and b_i right}| / n

    Args:
        a: ``[n]`` bool or 0/1: whether row i is right in one language.
        b: ``[n]``: whether it is right in the other, usually English.
    """
    if a.shape != b.shape or a.dim() != 1 or len(a) == 0:
        raise ValueError(f"a is {tuple(a.shape)}, b is {tuple(b.shape)}; expected the same [n], n >= 1")
    return float((a.bool() & b.bool()).double().mean())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if ``prediction`` equals one of ``references`` after :func:`normalised`, else 0."""
    return float(any(normalised(prediction) == normalised(reference) for reference in references))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1 of the words of ``prediction`` and one of ``references``, as in SQuAD (Rajpurkar et al., 2016)."""
    return max((_f1(normalised(prediction).split(), normalised(ref).split()) for ref in references), default=0.0)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, Tensor]:
    """chrF (Popović, WMT 2015) of the corpus, and of every sentence ``[n]``, from 0 to 100, by sacrebleu.

    Args:
        predictions: n texts.
        references: n texts, one for each prediction.

    Raises:
        ImportError: sacrebleu is not installed (``pip install incline-fast[evaluation]``).
        ValueError: unequal numbers of texts.
    """
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} predictions and {len(references)} references")
    try:
        from sacrebleu.metrics import CHRF
    except ImportError as error:
        raise ImportError("chrf needs sacrebleu: pip install incline-fast[evaluation]") from error
    score = CHRF()
    each = [score.sentence_score(p, [r]).score for p, r in zip(predictions, references, strict=True)]
    whole = float(score.corpus_score(list(predictions), [list(references)]).score)
    return whole, torch.tensor(each, dtype=torch.float32, device="cpu")


def normalised(text: str) -> str:
    """Case folded, without punctuation, white space single; articles stay, as removing them suits English only."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(c).startswith("P") else c for c in folded)
    return re.sub(r"\s+", " ", kept).strip()


def _f1(a: Sequence[str], b: Sequence[str]) -> float:
    common = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b)
    return 2 * common / (len(a) + len(b))


def _known(answers: Tensor | None, name: str) -> Tensor:
    if answers is None:
        raise ValueError(f"{name} needs answers, and there are none")
    return answers
