"""Which rows of a pass are edited, from every kind of mask, against a definition by loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from incline_fast.intervention.positions import Call, Rows, read_call, select

BOS = 1


def call_of(mask, ids=None, past=0):
    mask = torch.tensor(mask)
    ids = torch.full(mask.shape, 7) if ids is None else torch.tensor(ids)
    return Call(*ids.shape, past, mask, ids)


def pairs(rows, call):
    """The chosen (row, column) pairs of a selection."""
    if rows is None:
        return set()
    grid = torch.zeros(call.batch, call.length, dtype=torch.bool).unsqueeze(-1)
    rows.put(grid, torch.ones(len(rows.take(grid)), 1, dtype=torch.bool))
    return {tuple(pair) for pair in grid.squeeze(-1).nonzero().tolist()}


def by_loops(mask, ids, past, positions, prompt_length, active):
    chosen = set()
    for row, (real, tokens) in enumerate(zip(mask, ids, strict=True)):
        columns = [column for column, bit in enumerate(real) if bit]
        wanted = {"all": columns}.get(positions)
        if wanted is None:
            prompt = [column for column in columns if column < prompt_length]
            wanted = prompt[-1:] + [c for c in columns if c >= prompt_length and positions == "generated"]
        text = [column for column in columns if tokens[column] != BOS]
        bos = columns[: columns.index(text[0]) if text else None] if past == 0 and prompt_length else []
        chosen |= {(row, column) for column in wanted if column not in bos and active[row]}
    return chosen


@st.composite
def passes(draw):
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    spans = draw(st.lists(st.tuples(st.integers(0, length), st.integers(0, length)), min_size=batch, max_size=batch))
    mask = [[int(min(span) <= column < max(span)) for column in range(length)] for span in spans]
    ids = draw(st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=batch, max_size=batch))
    return mask, ids, draw(st.integers(0, length)), draw(st.lists(st.booleans(), min_size=batch, max_size=batch))


@settings(max_examples=300, deadline=None)
@given(case=passes(), positions=st.sampled_from(["last", "generated", "all"]), past=st.sampled_from([0, 4]))
def test_selection_is_the_definition(case, positions, past):
    mask, ids, prompt_length, active = case
    call = call_of(mask, ids, past)
    expected = set()
    if positions != "last" or prompt_length:
        expected = by_loops(mask, ids, past, positions, prompt_length, active)
    rows = select(call, positions, prompt_length, bos_token_ids=(BOS,), active=torch.tensor(active))
    assert pairs(rows, call) == expected


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_prompts_without_right_padding_are_a_column(positions):
    call = call_of([[1, 1, 1], [0, 0, 1]])
    rows = select(call, positions, 3, bos_token_ids=(BOS,))
    assert rows == Rows()
    assert rows.in_last_column(3)
    states = torch.arange(12.0).view(2, 3, 2)
    assert rows.take(states).data_ptr() == states[:, -1].data_ptr(), "a view: in-place ops edit the states"


def test_rows_take_put_and_per_row_values():
    rows = Rows(torch.tensor([0, 2]), torch.tensor([1, 0]))
    states = torch.zeros(3, 2, 4)
    rows.put(states, torch.tensor([[1.0] * 4, [2.0] * 4], dtype=torch.float64))
    assert rows.take(states).tolist() == [[1.0] * 4, [2.0] * 4]
    assert float(states.sum()) == 12
    assert rows.of_batch(torch.tensor([5, 6, 7])).tolist() == [5, 7]
    assert not rows.in_last_column(2)
    assert Rows(torch.tensor([2]), torch.tensor([6])).as_only_column().time.tolist() == [0]


def causal(mask, past=0, width=None, window=None, additive=False):
    """The 4-D mask that transformers prepares: queries see real keys up to themselves, within the window."""
    mask = torch.tensor(mask).bool()
    length, width = mask.shape[1] - past, width or mask.shape[1]
    query = torch.arange(past, past + length)[:, None]
    key = torch.arange(width)
    seen = (key <= query) & (key > query - (window or width + 1))
    real = torch.zeros(len(mask), width, dtype=torch.bool)
    real[:, : mask.shape[1]] = mask
    allowed = seen & real[:, None, None, :]
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min) if additive else allowed


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("width", [5, 9])
@pytest.mark.parametrize("mask", [[[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]])
def test_prepared_masks_say_what_flat_masks_say(mask, width, additive):
    ids = torch.full((2, 5), 7)
    flat = Call(2, 5, 0, torch.tensor(mask), ids)
    for window in (None, 2):
        prepared = causal(mask, width=width, window=window, additive=additive)
        for given_mask in (prepared, {"sliding_attention": prepared}):
            call = Call(2, 5, 0, given_mask, ids)
            for positions in ("last", "all"):
                assert pairs(select(call, positions, 5), call) == pairs(select(flat, positions, 5), flat)


def test_the_rest_of_a_prompt_after_a_cache():
    mask = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
    ids = torch.full((2, 2), 7)
    for given_mask in (torch.tensor(mask), causal(mask, past=3), causal(mask, past=3, width=8)):
        call = Call(2, 2, 3, given_mask, ids)
        assert pairs(select(call, "last", 2), call) == {(0, 1), (1, 0)}


def test_decode_steps_do_not_read_the_mask_where_nothing_is_edited():
    call = Call(1, 1, 4, "not a mask", torch.tensor([[7]]))
    assert select(call, "last", 0) is None


def test_embeddings_have_no_bos():
    call = read_call({"inputs_embeds": torch.zeros(2, 3, 8)})
    assert (call.batch, call.length, call.past) == (2, 3, 0)
    assert pairs(select(call, "all", 3, bos_token_ids=(BOS,)), call) == {(r, c) for r in range(2) for c in range(3)}


def test_read_call_counts_the_cache():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), 0)
    assert read_call({"input_ids": torch.tensor([[7]]), "past_key_values": cache}).past == 4


def test_masks_that_are_no_tensors_are_refused():
    with pytest.raises(ValueError, match="attention_mask is a list"):
        select(Call(1, 2, 0, [[1, 1]], torch.full((1, 2), 7)), "last", 2)


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (1, 2, 3)])
def test_masks_of_another_shape_are_refused(shape):
    call = Call(2, 3, 0, torch.ones(shape), torch.full((2, 3), 7))
    with pytest.raises(ValueError, match=r"attention_mask has shape .*; expected \[2, 3\]"):
        select(call, "last", 3)
