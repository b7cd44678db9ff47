"""What save takes, load takes: nothing is written that could not be read, and what is read is what was given."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch
from alignments import D, example, random_map, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from incline_fast.alignment import storage
from incline_fast.alignment.alignment import Alignment, AlignmentError, AlignmentMetadata
from incline_fast.maps import AffineMap


def framed(path, first_byte: int) -> None:
    """Save an alignment whose header's length begins with the given byte."""
    for size in range(64 * 8):
        Alignment.from_maps({0: random_map()}).with_metadata(template="{sentence}" + "x" * size).save(path)
        if path.read_bytes()[0] == first_byte:
            return
    pytest.fail(f"no header's length begins with {first_byte}")


@pytest.mark.parametrize("first_byte", [0x80, 0x50, 0x78, 0x28, 0x88])
def test_a_length_that_looks_like_another_format_is_a_length(tmp_path, first_byte):
    path = tmp_path / "a.safetensors"
    framed(path, first_byte)
    assert Alignment.load(path).layers == [0]


def test_one_vector_and_one_map_may_serve_several_sites(tmp_path):
    path = tmp_path / "a.safetensors"
    shared, vector, stack = random_map(2), torch.randn(D), torch.randn(3, D, D)
    maps = {1: shared, 2: shared, **{4 + i: AffineMap.dense(stack[i]) for i in range(3)}, 8: AffineMap.dense(stack[1])}
    alignment = Alignment.from_maps(maps, bias={1: vector, 2: vector, 4: torch.randn(2 * D)[:D], 5: stack[0, 0]})
    alignment.save(path)
    assert same(Alignment.load(path), alignment)


@pytest.mark.parametrize("view", [lambda W: W.T, lambda W: torch._neg_view(W), lambda W: W.flip(0), nn.Parameter])
def test_views_of_every_kind_are_written_by_value(tmp_path, view):
    W = torch.randn(D, D)
    Alignment.from_maps({0: view(W), 1: view(W)}).save(tmp_path / "a.safetensors")
    loaded = Alignment.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.maps[0].up[0], view(W))
    assert torch.equal(loaded.maps[1].up[0], view(W))


def test_metadata_that_load_would_find_too_long_is_not_written(tmp_path):
    path = tmp_path / "a.safetensors"
    long = example().with_metadata(notes={1: ["x" * storage.MAX_HEADER_BYTES]})
    with pytest.raises(AlignmentError, match=r"metadata\.notes takes \d+; allowed are"):
        long.save(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bias", [torch.zeros(D).to(torch.float8_e4m3fn), torch.zeros(D, dtype=torch.int64)])
def test_a_bias_that_load_refuses_is_refused_before(bias):
    with pytest.raises(AlignmentError, match=r"bias\[1\] is"):
        Alignment.from_maps({1: random_map()}, bias={1: bias})


@pytest.mark.parametrize("site", [10**7, 10**20, 1.0, "1", None, True, torch.tensor(1.0), torch.tensor([1])])
def test_a_site_that_load_refuses_is_refused_before(site):
    with pytest.raises(AlignmentError, match="sites are whole numbers from 0"):
        Alignment.from_maps({site: random_map()})


@pytest.mark.parametrize(
    "W", [torch.eye(D).to_sparse(), torch.empty(D, D, device="meta"), [[1.0]], "W", np.array(["a"])]
)
def test_a_matrix_without_values_is_refused(W):
    with pytest.raises(AlignmentError, match=r"maps\[1\] (is|has the layout)"):
        Alignment.from_maps({1: W})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_id", None),
        ("model_id", 5),
        ("source_language", ["fr"]),
        ("template", "{sentence} \ud800"),
        ("template", b"{sentence}"),
        ("pooling", 1),
        ("num_layers", 1.5),
        ("n", True),
        ("n", "5"),
        ("recommended_alpha", float("nan")),
        ("recommended_alpha", float("inf")),
        ("recommended_alpha", 10**400),
        ("recommended_alpha", 1j),
        ("recommended_alpha", torch.tensor([0.1, 0.2])),
        ("lam", {1: float("nan")}),
        ("lam", {1: "loo"}),
        ("lam", {"1": 0.3}),
        ("lam", {-1: 0.3}),
        ("lam", {10**9: 0.3}),
        ("lam", {True: 0.3}),
        ("lam", [0.3]),
        ("lam", 0.3),
        ("lam_selection", {1: None}),
        ("solver", {1: 2}),
        ("notes", {1: "text"}),
        ("notes", {1: ["a", 2]}),
        ("notes", {1: ["\udfff"]}),
        ("fit_error", {1: None}),
        ("library_version", None),
    ],
)
def test_metadata_that_load_refuses_is_refused_when_it_is_given(field, value):
    with pytest.raises(ValueError, match=rf"metadata\.{field}"):
        example().with_metadata(**{field: value})


def test_metadata_that_was_changed_in_place_is_refused_by_save(saved):
    alignment = Alignment.load(saved)
    before = saved.read_bytes()
    alignment.metadata.lam[1] = float("inf")
    with pytest.raises(ValueError, match=r"metadata\.lam\[1\]"):
        alignment.save(saved)
    assert saved.read_bytes() == before


def test_numbers_and_texts_of_other_kinds_come_back_as_pythons_own(tmp_path):
    path = tmp_path / "a.safetensors"
    alignment = example().with_metadata(
        n=np.int64(7),
        num_layers=torch.tensor(12),
        recommended_alpha=np.float32(0.5),
        source_language=np.str_("fr"),
        lam={np.int64(1): torch.tensor(0.25), torch.tensor(2): np.float64(0.5), 10: 1},
        notes={np.int8(1): ("a", np.str_("b"))},
        fit_error=MappingProxyType({1: Fraction(1, 4)}),
    )
    alignment.save(path)
    loaded = Alignment.load(path)
    assert loaded.metadata == alignment.metadata
    assert loaded.metadata.lam == {1: 0.25, 2: 0.5, 10: 1.0}
    assert loaded.metadata.notes == {1: ["a", "b"]}
    assert (loaded.metadata.n, loaded.metadata.num_layers, loaded.metadata.recommended_alpha) == (7, 12, 0.5)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from([field.name for field in fields(AlignmentMetadata) if field.name != "hidden_size"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5) | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(-1, 12) | st.text(), inner, max_size=3),
        max_leaves=4,
    ),
)
def test_metadata_is_refused_or_comes_back(tmp_path, field, value):
    try:
        alignment = example().with_metadata(**{field: value})
    except ValueError as error:
        assert f"metadata.{field}" in str(error)  # noqa: PT017 - either is right
        return
    alignment.save(tmp_path / "a.safetensors")
    assert same(Alignment.load(tmp_path / "a.safetensors"), alignment)


def test_a_map_that_float16_would_make_zero_is_refused():
    with pytest.raises(AlignmentError, match="site 1 is too small"):
        Alignment.from_maps({1: torch.eye(D) * 1e-9}).to(torch.float16)
