"""Sites of an evaluation: which are worth trying, and the logits that states of the last one give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from incline_fast.evaluation.bootstrap import Difference
from incline_fast.models.label_head import head_of_tokens
from incline_fast.models.sites import evaluated
from incline_fast.states.prompt_runner import NOTHING_SHARED, PromptBatch, PromptRunner

__all__ = ["last_third", "logits_of_states", "worthwhile"]

# A site is worth trying if the true state gains at least this share there of what it gains at the best site.
_WORTH = 0.5


def last_third(num_layers: int) -> list[int]:
    """The sites at which an edit is tried by default, at least one."""
    return list(range(num_layers - max(1, num_layers // 3) + 1, num_layers + 1))


def worthwhile(oracle: Mapping[int, Difference]) -> list[int]:
    """Sites of the last third at which the oracle gains at least half of its best; the last one if none does.

    Args:
        oracle: site -> gain; the largest site is the last one of the model.
    """
    late = [site for site in last_third(max(oracle)) if site in oracle]
    best = max(gain.mean for gain in oracle.values())
    return [site for site in late if oracle[site].mean >= _WORTH * best > 0] or late[-1:]


def logits_of_states(runner: PromptRunner, states: Tensor, tokens: Sequence[int], rows: int = 256) -> Tensor:
    """Logits ``[n, K]`` of some tokens from states of the last site: the final norm and the head, nothing else.

    Args:
        runner: of the model.
        states: ``[n, d]``.
        tokens: K token ids.
        rows: of one pass.
    """
    found = []
    with torch.inference_mode(), evaluated(runner.architecture.model), head_of_tokens(runner.model, tokens):
        for part in torch.split(states, rows):
            column = torch.zeros(len(part), 1, dtype=torch.long, device=runner.device)
            batch = PromptBatch(column, torch.ones_like(column), NOTHING_SHARED, {})
            step = runner.step(batch, 1, start=runner.architecture.num_layers, states=part)
            found.append(step.logits.float().cpu())
    return torch.cat(found)
