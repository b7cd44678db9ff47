"""Generations side by side: the source prompt plain and intervened, and the English prompt."""

from __future__ import annotations

import torch

from demo.experiment import OURS, Learned, Task
from incline_fast import intervene
from incline_fast.text.prompts import DEFAULT_TEMPLATE, fill

__all__ = ["generate_samples"]

SENTENCES = 3
NEW_TOKENS = 16
_WORDS = range(5, 13)


def generate_samples(task: Task, learned: Learned) -> list[dict[str, str]]:
    """Greedy continuations of the first held-out pairs whose English side has 5 to 12 words; nothing is picked."""
    pairs = [(source, english) for source, english in learned.split.test if len(english.split()) in _WORDS][:SENTENCES]
    sources, englishes = ([fill(DEFAULT_TEMPLATE, pair[side]) for pair in pairs] for side in (0, 1))
    plain = _continue(task, sources)
    with intervene(task.model, learned.compared[OURS], alpha=learned.alpha):
        edited = _continue(task, sources)
    english = _continue(task, englishes)
    return [
        {"source": source, "english": target, "plain": a, "intervened": b, "english prompt": c}
        for (source, target), a, b, c in zip(pairs, plain, edited, english, strict=True)
    ]


def _continue(task: Task, prompts: list[str]) -> list[str]:
    batch = task.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.inference_mode():
        tokens = task.model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    return task.tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
