"""Proof at start-up that an edit reaches every site through the graph that will serve requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from incline_fast.serving.bank import Bank
from incline_fast.serving.errors import ServingError
from incline_fast.serving.plan import StepPlan
from incline_fast.serving.sites import ServedSite

__all__ = ["check_edits"]


def check_edits(
    run: Callable[[int], Tensor], sites: Sequence[ServedSite], bank: Bank, plan: StepPlan, max_tokens: int
) -> None:
    """Edit one site per row and see that each row, and no other, comes out changed.

    Args:
        run: the model's last hidden states ``[n, d]`` for n dummy tokens, the same for the same n.
        sites: to check.
        bank: with a free slot, which is used and left empty.
        plan: empty afterwards.
        max_tokens: rows of the largest step.

    Raises:
        ServingError: an edit changed nothing, or a row that was not edited.
    """
    if None not in bank.slots:
        raise ServingError("no slot is free for the self-check")
    slot = bank.slots.index(None)
    group = max(1, min(len(sites), max_tokens - 1))
    generator = torch.Generator().manual_seed(0)
    # So large that any model's state is small beside it, and not a constant vector, which a LayerNorm would remove.
    bank.write_bias(slot, 100 * torch.randn(bank.hidden_size, generator=generator, dtype=torch.float32, device="cpu"))
    try:
        for first in range(0, len(sites), group):
            chosen = sites[first : first + group]
            rows = min(len(chosen) + 1, max_tokens)
            plan.clear()
            plain = run(rows).clone()
            plan.set_diagonal(slot, first, len(chosen))
            edited = run(rows)
            changed = (edited != plain).any(-1).tolist()
            skipped = [site.path for site, moved in zip(chosen, changed, strict=False) if not moved]
            if skipped:
                raise ServingError(f"self-check: edits do not reach {', '.join(skipped)}; the engine would skip them")
            if any(changed[len(chosen) :]):
                raise ServingError("self-check: an edit changed a row that it does not name")
    finally:
        plan.clear()
        bank.write_bias(slot, torch.zeros(bank.hidden_size, dtype=torch.float32))
