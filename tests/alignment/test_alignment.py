"""The container: what it accepts, what it says of itself, which models it fits, and that a file gives it back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from alignments import D, example, random_map, same
from safetensors.torch import load_file
from tiny_models import HIDDEN, LAYERS, tiny
from transformers import AutoModelForCausalLM

from incline_fast.alignment.alignment import Alignment, AlignmentError, AlignmentMetadata
from incline_fast.alignment.metadata import library_version
from incline_fast.maps import AffineMap
from incline_fast.models.identity import identify


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "fr-en.safetensors"
    example().save(path)
    return path


def test_save_and_load(saved):
    loaded = Alignment.load(saved)
    assert same(loaded, example())
    assert loaded.layers == [1, 2, 10]
    assert loaded.hidden_size == D
    assert loaded.metadata.library_version == library_version()
    assert set(load_file(saved)) == {
        "layer.1.up", "layer.1.down", "layer.1.bias", "layer.2.up", "layer.10.up", "layer.10.down"
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_keep_their_dtype_in_the_file_and_biases_stay_exact(tmp_path, dtype):
    converted = example().to(dtype)
    converted.save(tmp_path / "a.safetensors")
    loaded = Alignment.load(tmp_path / "a.safetensors")
    assert same(loaded, converted)
    assert {m.dtype for m in loaded.maps.values()} == {dtype}
    assert loaded.bias[1].dtype == torch.float32


def test_int8_maps_come_back_from_the_file_with_their_scales(tmp_path):
    quantized = example().quantize()
    quantized.save(tmp_path / "a.safetensors")
    loaded = Alignment.load(tmp_path / "a.safetensors")
    assert same(loaded, quantized)
    assert loaded.describe()["dtypes"] == ["int8"]
    assert torch.equal(loaded.bias[1], example().bias[1])
    assert same(loaded.quantize(), quantized)
    assert loaded.to(torch.bfloat16).maps[1].up_scale is None


def test_a_map_too_large_for_float16_is_not_converted_silently():
    alignment = Alignment.from_maps({0: torch.full((D, D), 7e4)})
    with pytest.raises(AlignmentError, match="site 0 holds NaN or infinite"):
        alignment.to(torch.float16)


def test_a_matrix_is_a_dense_map():
    W = torch.randn(D, D)
    alignment = Alignment.from_maps({3: W})
    assert torch.equal(alignment.maps[3].as_dense()[0], W)
    assert (alignment.form, alignment.bias) == ("add", {})


def test_from_maps_refuses():
    good = random_map()
    cases = [
        ({}, {}, "maps is empty"),
        ({-1: good}, {}, "site -1"),
        ({"1": good}, {}, "site '1'"),
        ({True: good}, {}, "site True"),
        ({1: good, 2: random_map(d=7)}, {}, "differ in hidden size"),
        ({1: AffineMap.stack([good, good])}, {}, "stack of 2 maps"),
        ({1: torch.full((D, D), float("nan"))}, {}, "site 1 holds NaN"),
        ({1: good}, {"bias": {2: torch.zeros(D)}}, "site 2, which has no map"),
        ({1: good}, {"bias": {1: torch.zeros(D + 1)}}, r"expected floats \[6\]"),
        ({1: good}, {"bias": {1: torch.zeros(D, dtype=torch.long)}}, r"bias\[1\] is torch.int64"),
        ({1: good}, {"bias": {1: torch.full((D,), float("inf"))}}, "site 1 holds NaN"),
        ({1: good}, {"form": "subtract"}, "'subtract'; allowed: add, interpolate"),
        ({1: good}, {"metadata": AlignmentMetadata(hidden_size=7)}, "hidden_size is 7; the maps have 6"),
    ]
    for maps, options, reason in cases:
        with pytest.raises(AlignmentError, match=reason):
            Alignment.from_maps(maps, **options)


def test_describe_and_repr_say_what_it_is():
    text = repr(example())
    for part in (
        "fr -> en",
        "3 layers 1..10",
        "ranks 2..3 and dense",
        "interpolate",
        "affine_ridge",
        "google/gemma-3-270m",
        "n=700",
    ):
        assert part in text
    assert ", rank 2, hidden_size" in repr(Alignment.from_maps({0: random_map(2)}))
    assert ", dense, hidden_size" in repr(Alignment.from_maps({0: random_map()}))
    about = example().describe()
    assert about["ranks"] == {1: 2, 2: None, 10: 3}
    assert about["weights"] == 2 * 6 * 2 + 36 + 2 * 6 * 3
    assert about["biases"] == 1
    assert about["metadata"]["recommended_alpha"] == 0.2
    assert json.loads(json.dumps(about))["dtypes"] == ["float32"]


def test_with_metadata_changes_only_what_is_named():
    changed = example().with_metadata(recommended_alpha=0.35)
    assert changed.metadata == replace(example().metadata, recommended_alpha=0.35)
    assert same(changed.with_metadata(recommended_alpha=0.2), example())


# The model's identity


def fitted_for(model, **changes) -> Alignment:
    identity = identify(model)
    fields = {
        "model_id": "tiny-llama",
        "config_hash": identity.config_hash,
        "num_layers": identity.num_layers,
        "hidden_size": identity.hidden_size,
    }
    return Alignment.from_maps({LAYERS: random_map(2, HIDDEN)}, metadata=AlignmentMetadata(**{**fields, **changes}))


def test_check_accepts_the_model_in_any_dtype_with_more_embeddings_or_another_path(tmp_path):
    model = tiny("llama")
    folder = tmp_path / "tiny-llama"
    model.save_pretrained(folder)
    path = tmp_path / "a.safetensors"
    fitted_for(model).save(path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        assert identify(loaded).model_id == "tiny-llama"
        loaded.resize_token_embeddings(70)
        assert Alignment.load(path, loaded).layers == [LAYERS]
    Alignment.from_maps({0: random_map(2, HIDDEN)}).check(model)


def test_check_refuses_other_models_with_the_reason(tmp_path):
    model = tiny("llama")
    model.config._name_or_path = "org/tiny-llama"
    cases = {
        r"model_id is 'tiny-llama-it' there and 'tiny-llama' here": fitted_for(model, model_id="someone/tiny-llama-it"),
        "num_layers is 9 there and 3 here": fitted_for(model, num_layers=9),
        "hidden_size is 6 there and 32 here": Alignment.from_maps({1: random_map()}),
        "site 4; this model has sites 0..3": Alignment.from_maps({4: random_map(2, HIDDEN)}),
        "config_hash is": fitted_for(tiny("llama", num_attention_heads=8)),
    }
    for reason, alignment in cases.items():
        with pytest.raises(AlignmentError, match=reason):
            alignment.check(model)
    path = tmp_path / "a.safetensors"
    fitted_for(model, num_layers=9).save(path)
    with pytest.raises(AlignmentError, match="num_layers"):
        Alignment.load(path, model)
    fitted_for(model).check(model)


def test_hub_cache_paths_are_hub_names(tmp_path):
    model = tiny("llama")
    model.config._name_or_path = "/home/x/.cache/huggingface/hub/models--google--gemma-3-270m/snapshots/9b0c"
    assert identify(model).model_id == "google/gemma-3-270m"
    model.config._name_or_path = str(tmp_path)
    assert identify(model).model_id == tmp_path.name
    model.config._name_or_path = ""
    assert identify(model).model_id == ""
