"""The row of a position is edited in the step that computes it, however the engine cuts a request into steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from incline_fast.serving.plan import Span, StepPlan
from incline_fast.serving.request import Edit

SLOTS = np.array([1, -1, 1], np.int32)
PROMPT = 7


def edit(positions: str, first: int = 0) -> Edit:
    return Edit("c0ffee", 0.25, 0.75, positions, first)


def edited_positions(chosen: Edit, cuts: list[int]) -> list[int]:
    """Positions whose rows were edited when steps end at ``cuts``; rows begin at 3, after another request's."""
    plan = StepPlan(3, 32, torch.device("cpu"))
    found = []
    for begin, end in pairwise([0, *cuts]):
        plan.fill([Span(chosen, SLOTS, 3, begin, end - begin, PROMPT)])
        rows = (plan.row_map[0] >= 0).nonzero().flatten().tolist()
        assert plan.edited == len(rows)
        found += [begin + row - 3 for row in rows]
        assert (plan.row_map[1] == -1).all(), "a site without a map"
        assert torch.equal(plan.row_map[0], plan.row_map[2])
        assert (plan.alpha[rows] == 0.25).all()
        assert (plan.beta[rows] == 0.75).all()
    return found


CUTS = {
    "whole prompt": [7, 8, 9, 10],
    "chunks": [3, 6, 7, 8, 9, 10],
    "last token alone": [6, 7, 8, 9, 10],
    "recomputed after a preemption": [9, 10],
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_positions(cuts):
    assert edited_positions(edit("last"), cuts) == [6]
    assert edited_positions(edit("generated"), cuts) == [6, 7, 8, 9]
    assert edited_positions(edit("all"), cuts) == list(range(10))
    assert edited_positions(edit("all", first=1), cuts) == list(range(1, 10))


def test_a_cached_prefix_is_not_edited_again():
    plan = StepPlan(3, 32, torch.device("cpu"))
    plan.fill([Span(edit("last"), SLOTS, 0, 7, 1, PROMPT)])
    assert not plan.edited
    plan.fill([Span(edit("generated"), SLOTS, 0, 7, 1, PROMPT)])
    assert plan.edited == 1


def test_a_prompt_of_bos_alone_is_edited_from_the_first_generated_token():
    span = Span(edit("generated", first=1), SLOTS, 0, 0, 4, 1)
    assert span.rows() == slice(1, 4)
    empty = Span(edit("last", first=1), SLOTS, 0, 0, 1, 1).rows()
    assert empty.start >= empty.stop


def test_nothing_of_a_step_is_left_in_the_next():
    plan = StepPlan(3, 32, torch.device("cpu"))
    address = plan.row_map.data_ptr()
    for row in (0, 20, 5):
        plan.fill([Span(edit("all"), SLOTS, row, 0, 4, PROMPT), Span(edit("last"), SLOTS, row + 4, 6, 1, PROMPT)])
        assert (plan.row_map[0] >= 0).sum() == 5
    plan.clear()
    assert (plan.row_map == -1).all()
    assert plan.row_map.data_ptr() == address, "compiled graphs read one address"
