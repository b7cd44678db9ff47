"""A short, seeded piece of the soak in ``tests/helpers/soak.py``; the long one is run by hand."""

from __future__ import annotations

import torch
from soak import soak


def test_random_sequences_of_actions_leave_no_difference_and_no_leak():
    enabled = torch.is_grad_enabled()
    try:
        played = soak(25, seed=10_000, length=7)
    finally:
        torch.set_grad_enabled(enabled)
    assert len(played) == 9, "every kind of action was played"
