"""Inference-time intervention on attention heads (ITI; Li et al., NeurIPS 2023, arXiv 2306.03341), for languages.

With ``x [D]`` what a head puts out at the last token of a prompt, before the output projection of its block:

1. A logistic regression tells source from target states of each head; its accuracy is taken by cross-validation in
   which a sentence and its translation are left out together.
2. Of the K heads with the highest accuracy the direction is that from the mean source to the mean target state ("mass
   mean shift"), ``u = (mean(target) - mean(source)) / |...|``, and its scale the standard deviation s of ``x . u`` over
   all states of both languages.
3. ``x <- x + alpha s u`` at the last token.

K is the paper's share of all heads, 48 of 1024, and is not tuned. Languages are easier to tell apart than true from
false: where the accuracies of heads are equal, the lower cross-entropy of the same held-out predictions decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.paper.last_tokens import LastTokens
from incline_fast.evaluation import LabelTask
from incline_fast.models.architectures import describe

__all__ = ["SHARE", "HeadShift", "fit_heads", "head_states", "probe"]

SHARE = 48 / 1024
"""Heads that are edited, of all heads: the paper's choice for LLaMA 7B."""

FOLDS = 5


@dataclass(frozen=True, eq=False)
class HeadShift:
    """What is added, times alpha, to the outputs of the chosen heads.

    Attributes:
        heads: ``(block, head)``, both from 0, the best first.
        accuracy: of their probes.
        shift: block -> ``[H * D]``, zero but for chosen heads.
    """

    heads: list[tuple[int, int]]
    accuracy: list[float]
    shift: dict[int, Tensor]

    @contextmanager
    def added(self, model: nn.Module, alpha: float) -> Iterator[None]:
        """Inside, every pass has the shift at its last token; rows must not be padded on the right."""

        def add(shift: Tensor, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            x = args[0].clone()
            x[:, -1] += alpha * shift.to(x)
            return (x,)

        projections = output_projections(model)
        with ExitStack() as stack:
            for block, shift in self.shift.items():
                handle = projections[block].register_forward_pre_hook(partial(add, shift))
                stack.callback(handle.remove)
            yield


def output_projections(model: nn.Module) -> list[Any]:
    """The output projection of every block's attention.

    Raises:
        ValueError: a block has no ``self_attn.o_proj``.
    """
    found = []
    for number, block in enumerate(describe(model).blocks):
        projection = getattr(getattr(block, "self_attn", None), "o_proj", None)
        if not isinstance(projection, nn.Linear):
            raise ValueError(f"block {number} is a {type(block).__name__}; expected one with a linear self_attn.o_proj")
        found.append(projection)
    return found


def head_states(model: nn.Module, tokenizer: Any, task: LabelTask) -> Tensor:
    """fp32 ``[L, H, n, D]``: the output of each head at the last token of the task's prompts."""
    prompts = LastTokens(model, tokenizer, task)
    heads = describe(model).config.num_attention_heads
    seen: dict[int, Tensor] = {}

    def keep(block: int, module: nn.Module, args: tuple[Tensor]) -> None:
        seen[block] = args[0][:, -1].float().unflatten(-1, (heads, -1)).transpose(0, 1)  # [H, B, D]

    parts, order = [], []
    with ExitStack() as stack:
        for block, projection in enumerate(output_projections(model)):
            stack.callback(projection.register_forward_pre_hook(partial(keep, block)).remove)
        for indices, _ in prompts.passes([0]):
            parts.append(torch.stack([seen[block] for block in sorted(seen)]))
            order += indices
    return torch.cat(parts, 2)[:, :, torch.tensor(order).argsort()]


def probe(source: Tensor, target: Tensor) -> tuple[float, float]:
    """Held-out accuracy and cross-entropy of a logistic regression on one head's states, ``[n, D]`` each."""
    x = torch.cat([source, target]).numpy()
    y = [0] * len(source) + [1] * len(target)
    pairs = [*range(len(source)), *range(len(target))]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    p = cross_val_predict(classifier, x, y, groups=pairs, cv=GroupKFold(FOLDS), method="predict_proba")
    return float(accuracy_score(y, p.argmax(1))), float(log_loss(y, p))


def fit_heads(source: Tensor, target: Tensor, count: int | None = None) -> HeadShift:
    """Choose heads and their shifts; pair i is row i of both sides.

    Args:
        source, target: ``[L, H, n, D]``, see :func:`head_states`.
        count: K; None: :data:`SHARE` of all heads.
    """
    blocks, heads, _, width = source.shape
    count = round(SHARE * blocks * heads) if count is None else count
    scores = {(b, h): probe(source[b, h], target[b, h]) for b in range(blocks) for h in range(heads)}
    chosen = sorted(scores, key=lambda head: (-scores[head][0], scores[head][1]))[:count]
    shift: dict[int, Tensor] = {}
    for block, head in chosen:
        x, y = source[block, head].double(), target[block, head].double()
        direction = torch.nn.functional.normalize(y.mean(0) - x.mean(0), dim=0)
        scale = (torch.cat([x, y]) @ direction).std(correction=0)
        of_block = shift.setdefault(block, torch.zeros(heads * width))
        of_block[head * width : (head + 1) * width] = (scale * direction).float()
    return HeadShift(chosen, [scores[head][0] for head in chosen], shift)
