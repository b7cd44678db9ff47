"""Bundles: several alignments in one file, each read alone and checked like a file of its own."""

from __future__ import annotations

import pytest
import torch
from alignments import example, random_map, same
from typer.testing import CliRunner

from incline_fast import AlignmentBundle
from incline_fast.alignment import storage
from incline_fast.alignment.alignment import Alignment, AlignmentError
from incline_fast.cli.app import app


@pytest.fixture
def alignments():
    other = Alignment.from_maps({0: random_map(4, seed=7)}).with_metadata(source_language="sw", num_layers=12)
    return {"fr": example(), "sw": other, "quantised": example().quantize()}


def test_what_is_written_is_read(alignments, tmp_path):
    path = tmp_path / "many.safetensors"
    AlignmentBundle.save(path, alignments)
    bundle = AlignmentBundle(path)
    assert list(bundle) == list(alignments)
    assert len(bundle) == 3
    assert all(same(bundle[name], alignments[name]) for name in alignments)
    assert bundle["fr"] is bundle["fr"]
    assert "de" not in bundle
    assert repr(bundle) == "AlignmentBundle('many.safetensors': fr, sw, quantised; 3 read)"


def test_only_what_is_asked_for_is_read(alignments, tmp_path, monkeypatch):
    path = tmp_path / "many.safetensors"
    AlignmentBundle.save(path, alignments)
    seen = []
    check = storage._check_tensor
    monkeypatch.setattr(
        storage, "_check_tensor", lambda path, name, tensor: (seen.append(name), check(path, name, tensor))
    )
    bundle = AlignmentBundle(path)
    assert seen == []
    assert bundle["sw"].layers == [0]
    assert sorted(seen) == ["layer.0.down", "layer.0.up"]


def test_a_bad_alignment_spoils_itself_alone(alignments, tmp_path):
    path = tmp_path / "many.safetensors"
    tensors, documents = {}, {}
    for name, alignment in alignments.items():
        own, documents[name] = alignment.to_parts()
        tensors |= {f"{name}/{key}": tensor for key, tensor in own.items()}
    tensors["sw/layer.0.up"] = torch.full((6, 4), float("nan"))
    storage.write(path, tensors, {"bundle": documents})
    bundle = AlignmentBundle(path)
    assert same(bundle["fr"], alignments["fr"])
    with pytest.raises(AlignmentError, match=r"layer.0.up holds NaN"):
        bundle["sw"]


def test_what_does_not_belong_together_is_refused(alignments, tmp_path):
    path = tmp_path / "many.safetensors"
    for bad, message in (
        ({}, "a bundle needs at least one"),
        ({"": example()}, "expected text without"),
        ({"a/b": example()}, "expected text without"),
        ({"a": example(), "b": Alignment.from_maps({1: torch.eye(4)})}, "different models: hidden_size"),
        ({"a": example(), "b": example().with_metadata(config_hash="f" * 16)}, "different models: config_hash"),
    ):
        with pytest.raises(AlignmentError, match=message):
            AlignmentBundle.save(path, bad)
    assert not path.exists()


def test_files_of_the_other_kind_are_named(alignments, tmp_path):
    one, many = tmp_path / "one.safetensors", tmp_path / "many.safetensors"
    example().save(one)
    AlignmentBundle.save(many, alignments)
    with pytest.raises(AlignmentError, match=r"holds one alignment, not a bundle"):
        AlignmentBundle(one)
    with pytest.raises(AlignmentError, match=r"is a bundle of several alignments \(fr, sw, quantised\)"):
        Alignment.load(many)


def test_the_command(tmp_path):
    paths = []
    for language in ("fr", "sw"):
        paths.append(str(tmp_path / f"{language}.safetensors"))
        example().with_metadata(source_language=language).save(paths[-1])
    output = str(tmp_path / "many.safetensors")
    done = CliRunner().invoke(app, ["bundle", *paths, "-o", output])
    assert done.exit_code == 0, done.output
    assert list(AlignmentBundle(output)) == ["fr", "sw"]
    done = CliRunner().invoke(app, ["bundle", *paths, "-o", output, "--names", "a,b"])
    assert list(AlignmentBundle(output)) == ["a", "b"]
    for names in ("a", "a,a"):
        assert CliRunner().invoke(app, ["bundle", *paths, "-o", output, "--names", names]).exit_code == 2
