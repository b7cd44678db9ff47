"""Passes of the last token of prompts through the whole model, from the embedding on, under any edit of the model.

An edit at the last token moves nothing before it. So all tokens but the last run once, and an edit of attention or the
FFN, which a pass that begins behind its block would skip, costs a decode-shaped step and not a whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from incline_fast import Intervention
from incline_fast.evaluation import LabelTask
from incline_fast.evaluation.kept_prompts import KeptPrompts
from incline_fast.models.label_head import head_of_tokens
from incline_fast.models.sites import evaluated
from incline_fast.states.prompt_runner import PromptRunner

__all__ = ["LastTokens"]


class LastTokens:
    """The prompts of a task, run up to their last token; the model may be edited between calls."""

    def __init__(self, model: nn.Module, tokenizer: Any, task: LabelTask) -> None:
        """Run all tokens but the last."""
        self._runner = PromptRunner(model, tokenizer)
        ids = self._runner.ids(task.sentences, task.template)
        self._kept = KeptPrompts(self._runner, ids, sites=[], progress=False)

    def logits(self, tokens: Sequence[int], edit: Intervention | None = None) -> Tensor:
        """fp32 ``[n, K]``: logits of K tokens after each prompt.

        Args:
            tokens: their ids.
            edit: the intervention that is active on the model; it is told that these passes end prompts.
        """
        found = torch.zeros(len(self._kept), len(tokens))
        for indices, logits in self.passes(tokens, edit):
            found[indices] = logits.float()
        return found

    def passes(self, tokens: Sequence[int], edit: Intervention | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """The numbers of the prompts of each batch, and the logits ``[B, K]`` after its pass."""
        model = self._runner.model
        with ExitStack() as stack:
            for context in (evaluated(model), torch.inference_mode(), head_of_tokens(model, tokens)):
                stack.enter_context(context)
            for indices, batch in self._kept:
                yield indices, self._runner.step(batch, 1, edit).logits
