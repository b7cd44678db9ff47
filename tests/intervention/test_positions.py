"""Which rows of a pass are edited, from every kind of mask, against a definition by loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from incline_fast.intervention.positions import Call, EditedTokens, SpecialTokens, read_call, select

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
    rows.put(grid, torch.ones_like(rows.take(grid)))
    return {tuple(pair) for pair in grid.squeeze(-1).nonzero().tolist()}


def by_loops(mask, ids, past, positions, prompt_length, active):
    chosen = set()
    for row, (real, tokens) in enumerate(zip(mask, ids, strict=True)):
        columns = [column for column, bit in enumerate(real) if bit]
        wanted = {"all": columns}.get(positions)
        if wanted is None:
            prompt = [column for column in columns if column < prompt_length]
            wanted = prompt[-1:] + [c for c in columns if c >= prompt_length and positions == "generated"]
        leading = [c for i, c in enumerate(columns) if all(tokens[other] == BOS for other in columns[: i + 1])]
        bos = leading if past == 0 and prompt_length else []
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
    chosen = None if all(active) else torch.tensor(active)
    rows = select(call, positions, prompt_length, tokens=SpecialTokens((BOS,)), active=chosen)
    assert pairs(rows, call) == expected


@settings(max_examples=200, deadline=None)
@given(case=passes(), past=st.sampled_from([0, 4]))
def test_the_last_column_without_a_mask_is_the_definition(case, past):
    """Token 0 pads, without a mask: what one look at the last column decides, and what it leaves to the long way."""
    _, ids, _, _ = case
    call = Call(len(ids), len(ids[0]), past, None, torch.tensor(ids))
    mask = []
    for row in ids:
        text = [column for column, token in enumerate(row) if token != 0]
        mask.append([int(bool(text) and text[0] <= column <= text[-1]) for column in range(len(row))])
    expected = by_loops(mask, ids, past, "last", len(ids[0]), [True] * len(ids))
    assert pairs(select(call, "last", len(ids[0]), tokens=SpecialTokens((BOS,), (0,))), call) == expected


def test_one_row_that_ends_before_the_last_column_sends_all_the_long_way():
    call = call_of([[1, 1, 1], [1, 1, 0]])
    assert pairs(select(call, "last", 3, tokens=SpecialTokens((BOS,))), call) == {(0, 2), (1, 1)}


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_prompts_without_right_padding_are_a_column(positions):
    call = call_of([[1, 1, 1], [0, 0, 1]])
    rows = select(call, positions, 3, tokens=SpecialTokens((BOS,)))
    assert rows == EditedTokens()
    assert rows.in_last_column(3)
    states = torch.arange(12.0).view(2, 3, 2)
    assert rows.take(states).data_ptr() == states[:, -1].data_ptr(), "a view: in-place ops edit the states"


def test_rows_take_put_and_per_row_values():
    rows = EditedTokens(torch.tensor([0, 2]), torch.tensor([1, 0]))
    states = torch.zeros(3, 2, 4)
    rows.put(states, torch.tensor([[1.0] * 4, [2.0] * 4], dtype=torch.float64))
    assert rows.take(states).tolist() == [[1.0] * 4, [2.0] * 4]
    assert float(states.sum()) == 12
    assert rows.per_token(torch.tensor([5, 6, 7]), 2).tolist() == [5, 7]
    assert not rows.in_last_column(2)
    assert EditedTokens(torch.tensor([2]), torch.tensor([6])).as_only_column().time.tolist() == [0]


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
    assert pairs(select(call, "all", 3, tokens=SpecialTokens((BOS,))), call) == {
        (r, c) for r in range(2) for c in range(3)
    }


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


TOKENS = SpecialTokens(bos=(BOS,), pad=(0,), eos=(2,))


def packed(texts, **arguments):
    """One row that holds several texts, and the call that reads it."""
    ids = torch.tensor([[token for text in texts for token in text]])
    return read_call({"input_ids": ids, **arguments})


TEXTS = [[5, 6, 7], [8], [BOS, 9, 4], [BOS], [BOS, BOS, 3]]
LAST = {(0, 2), (0, 3), (0, 6), (0, 10)}
ALL = {(0, c) for c in range(11)} - {(0, 4), (0, 7), (0, 8), (0, 9)}


@pytest.mark.parametrize("past_bos", [True, False])
@pytest.mark.parametrize("way", ["position_ids", "position_ids, one row", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"])
def test_every_text_of_a_packed_row_has_its_last_token(way, past_bos):
    lengths = [len(text) for text in TEXTS]
    counted = torch.tensor([[i for n in lengths for i in range(n)]])
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    arguments = {
        "position_ids": {"position_ids": counted},
        "position_ids, one row": {"position_ids": counted, "use_cache": False},
        "cu_seq_lens_q": {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends},
        "cu_seq_lens_k": {"cu_seq_lens_k": ends},
        "seq_idx": {"seq_idx": torch.tensor([[i for i, n in enumerate(lengths) for _ in range(n)]])},
    }[way]
    call = packed(TEXTS, **arguments)
    tokens = TOKENS if past_bos else SpecialTokens()
    assert pairs(select(call, "last", 11, tokens=tokens), call) == LAST | (set() if past_bos else {(0, 7)})
    if past_bos:
        assert pairs(select(call, "all", 11, tokens=tokens), call) == ALL


def test_packed_rows_of_a_padded_batch():
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 1, 2, 0, 1]])
    ids = torch.full((2, 6), 7)
    call = read_call({"input_ids": ids, "attention_mask": mask, "position_ids": positions})
    assert pairs(select(call, "last", 6), call) == {(0, 1), (0, 3), (1, 3), (1, 5)}


@pytest.mark.parametrize("fill", [0, 1])
def test_positions_of_padding_pack_nothing(fill):
    """generate counts positions over real tokens; what it writes for padding differs between its versions."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, fill)
    call = read_call({"input_ids": torch.full((2, 5), 7), "attention_mask": mask, "position_ids": positions})
    assert select(call, "last", 5) == EditedTokens()


@pytest.mark.parametrize(("cache", "expected"), [(False, {(0, 1), (0, 3)}), (None, {(0, 3)})])
def test_a_gap_in_the_positions_is_a_new_text_where_transformers_takes_it_for_one(cache, expected):
    arguments = {"input_ids": torch.full((1, 4), 7), "position_ids": torch.tensor([[0, 1, 5, 6]]), "use_cache": cache}
    call = read_call(arguments)
    assert pairs(select(call, "last", 4), call) == expected


def test_positions_with_an_axis_per_kind_go_by_time():
    image = torch.tensor([[[0, 1, 1, 1, 2]], [[0, 1, 1, 2, 3]], [[0, 1, 2, 1, 3]]])
    call = read_call({"input_ids": torch.full((1, 5), 7), "position_ids": image})
    assert select(call, "last", 5) == EditedTokens()


@pytest.mark.parametrize("name", ["block_table", "read_index", "write_index", "logits_indices"])
def test_paged_caches_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is given: continuous batching"):
        read_call({"input_ids": torch.full((1, 5), 7), name: torch.zeros(1)})


def test_cumulative_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"cu_seq_lens_q is \[0, 2, 4\].*from 0 to its length"):
        read_call({"input_ids": torch.full((1, 5), 7), "cu_seq_lens_q": torch.tensor([0, 2, 4])})


def test_pad_tokens_at_the_ends_are_padding_without_a_mask():
    ids = torch.tensor([[0, 0, 5, 0, 6], [7, 8, 9, 0, 0], [0, 0, 0, 0, 0], [5, 5, 5, 5, 5]])
    call = read_call({"input_ids": ids})
    assert pairs(select(call, "last", 5, tokens=TOKENS), call) == {(0, 4), (1, 2), (3, 4)}
    inner = {(0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)}
    assert pairs(select(call, "all", 5, tokens=TOKENS), call) == inner | {(3, c) for c in range(5)}
    masked = read_call({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert select(masked, "last", 5, tokens=TOKENS) == EditedTokens()


def test_a_pad_token_that_also_ends_texts_is_refused_without_a_mask():
    tokens = SpecialTokens(pad=(2,), eos=(2,))
    ids = torch.tensor([[5, 2, 6], [7, 8, 2]])
    with pytest.raises(ValueError, match="a row ends in token 2, which is both padding and the end of a text"):
        select(read_call({"input_ids": ids}), "last", 3, tokens=tokens)
    assert select(read_call({"input_ids": ids[:1]}), "last", 3, tokens=tokens) == EditedTokens(left=-1)
    masked = read_call({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert select(masked, "last", 3, tokens=tokens) == EditedTokens()


def test_one_row_or_column_is_a_view():
    states = torch.zeros(1, 6, 2)
    call = call_of([[0, 1, 1, 1, 0, 0]])
    for positions in ("last", "all"):
        rows = select(call, positions, 6)
        assert rows.batch is None
        rows.take(states).add_(1)
    assert states[0, :, 0].tolist() == [0, 1, 1, 2, 0, 0]
    assert rows.per_token(torch.tensor([4.0]), 6).tolist() == [4.0, 4.0, 4.0]
