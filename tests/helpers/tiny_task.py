"""A made-up task of label words for the tiny models."""

from __future__ import annotations

from tiny_tokenizer import sentences

from incline_fast.evaluation import LabelTask

LABELS = ("w50", "w51", "w52")


def tiny_task(n: int = 12, seed: int = 1) -> LabelTask:
    answers, ids = [i % 3 for i in range(n)], [str(i) for i in range(n)]
    return LabelTask("tiny", "xx", sentences(n, seed=seed), "{sentence} w7 w8", LABELS, answers, ids)
