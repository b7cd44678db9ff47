"""The file: whatever is not a whole, valid alignment is refused with the reason, and writing never loses an old one."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from alignments import D, example, random_map, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from incline_fast import files
from incline_fast.alignment import storage
from incline_fast.alignment.alignment import Alignment, AlignmentError

# Reading


def header_of(path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def rewrite(path, tensors=None, document=None, **header) -> None:
    """Write the file again with other tensors, another document or another header."""
    old = header_of(path)["__metadata__"]
    kept = load_file(path)
    if document is not None:
        content = json.loads(old["alignment"])
        document(content)
        old["alignment"] = json.dumps(content)
    if tensors is not None:
        tensors(kept)
    save_file(kept, path, metadata={**old, **header})


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no alignment"):
        Alignment.load(tmp_path / "none.safetensors")
    with pytest.raises(AlignmentError, match="is a folder"):
        Alignment.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        example().save(tmp_path / "none" / "a.safetensors")


def test_every_truncation_is_refused(saved):
    data = saved.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for size in [*range(9), header - 1, header, header + 1, len(data) - 1]:
        saved.write_bytes(data[:size])
        with pytest.raises(AlignmentError, match=r"truncated|not a whole safetensors file"):
            Alignment.load(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(AlignmentError, match="not a whole safetensors file"):
        Alignment.load(saved)


class Hostile:
    """Unpickling this runs code."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_named_and_never_loaded(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(AlignmentError, match="is a pickle"):
        Alignment.load(path)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(AlignmentError, match=r"zip archive, as torch\.save writes"):
        Alignment.load(path)


@pytest.mark.parametrize(("length", "magic"), [(0x4080, b"\x80"), (0x4B50, b"PK")])
def test_a_header_whose_length_begins_like_another_kind_of_file_is_read(saved, length, magic):
    (before,) = struct.unpack("<Q", saved.read_bytes()[:8])
    # Headers are padded to multiples of 8, and one more letter of the name is one more byte.
    named = example().with_metadata(source_language="fr" + "x" * (length - before))
    named.save(saved)
    assert saved.read_bytes().startswith(magic)
    assert same(Alignment.load(saved), named)


def test_oversized_header_is_refused_before_it_is_read(saved):
    data = saved.read_bytes()
    for length in (storage.MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        saved.write_bytes(struct.pack("<Q", length) + data[8:])
        with pytest.raises(AlignmentError, match="announces a header of"):
            Alignment.load(saved)


def test_other_safetensors_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"layer.1.up": torch.zeros(D, D)}, path)
    with pytest.raises(AlignmentError, match="not an alignment"):
        Alignment.load(path)


@pytest.mark.parametrize("version", ["2", "99", "0"])
def test_other_versions_are_refused(saved, version):
    rewrite(saved, format_version=version)
    with pytest.raises(AlignmentError, match=f"format_version {version}, this library reads 1"):
        Alignment.load(saved)


@pytest.mark.parametrize("version", ["", "1.0", "-1", "²", "one"])
def test_a_version_is_a_number(saved, version):
    rewrite(saved, format_version=version)
    with pytest.raises(AlignmentError, match="expected a whole number"):
        Alignment.load(saved)


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        (torch.ones(D, 1), r"layer.2.up_scale has shape \(6, 1\); expected a vector"),
        (torch.ones(D + 1), r"up_scale is torch.float32 \(1, 7\)"),
        (torch.ones(D, dtype=torch.bfloat16), "up_scale is torch.bfloat16"),
        (torch.full((D,), float("inf")), "layer.2.up_scale holds NaN or infinite"),
    ],
)
def test_wrong_scales_are_refused(tmp_path, scale, reason):
    path = tmp_path / "a.safetensors"
    example().quantize().save(path)
    rewrite(path, tensors=put("layer.2.up_scale", scale))
    with pytest.raises(AlignmentError, match=reason):
        Alignment.load(path)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("layer.1.down"), r"missing tensors \['layer.1.down'\]"),
        (lambda t: t.pop("layer.2.up"), r"missing tensors \['layer.2.up'\]"),
        (put("layer.7.up", torch.zeros(D, D)), r"unexpected tensors \['layer.7.up'\]"),
        (put("evil", torch.zeros(1)), r"unexpected tensors \['evil'\]"),
        (put("layer.2.up", torch.zeros(D, D + 1)), "must be square"),
        (put("layer.2.up", torch.zeros(D)), r"layer.2.up has shape \(6,\); expected a matrix"),
        (put("layer.2.up", torch.zeros(())), "expected a matrix"),
        (put("layer.2.up", torch.zeros(D, D, D)), "expected a matrix"),
        (put("layer.2.up", torch.zeros(0, 0)), "differ in hidden size"),
        (put("layer.2.up", torch.zeros(D + 1, D + 1)), "differ in hidden size"),
        (put("layer.10.down", torch.zeros(4, D)), "down has shape"),
        (put("layer.10.down", torch.zeros(3, D, dtype=torch.bfloat16)), "must agree"),
        (put("layer.2.up", torch.zeros(D, D, dtype=torch.int8)), "no up_scale"),
        (put("layer.2.up_scale", torch.zeros(D)), r"unexpected tensors \['layer.2.up_scale'\]"),
        (put("layer.1.bias", torch.zeros(D + 1)), r"bias\[1\]"),
        (put("layer.1.bias", torch.zeros(1, D)), r"bias\[1\]"),
        (put("layer.2.up", torch.zeros(D, D, dtype=torch.int32)), "layer.2.up has dtype torch.int32; allowed"),
        (put("layer.2.up", torch.zeros(D, D, dtype=torch.bool)), "has dtype torch.bool"),
        (put("layer.2.up", torch.zeros(D, D, dtype=torch.complex64)), "has dtype torch.complex64"),
        (put("layer.2.up", torch.zeros(D, D).to(torch.float8_e4m3fn)), "has dtype torch.float8_e4m3fn"),
        (put("layer.2.up", torch.full((D, D), float("nan"))), "layer.2.up holds NaN or infinite"),
        (put("layer.1.bias", torch.full((D,), float("-inf"))), "layer.1.bias holds NaN or infinite"),
    ],
)
def test_wrong_tensors_are_refused(saved, change, reason):
    rewrite(saved, tensors=change)
    with pytest.raises(AlignmentError, match=reason):
        Alignment.load(saved)


def set_field(name, value):
    return lambda document: document["metadata"].update({name: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.pop("layers"), "lists no layers"),
        (lambda d: d.update(layers={}), "unexpected tensors"),
        (lambda d: d["layers"].update({"x": ["up"]}), "layer 'x'"),
        (lambda d: d["layers"].update({"-1": ["up"]}), "layer '-1'"),
        (lambda d: d["layers"].update({"9" * 5000: ["up"]}), "lists layer"),
        (lambda d: d["layers"].update({"2": ["bias"]}), "lists layer '2'"),
        (lambda d: d["layers"].update({"2": ["up", "evil"]}), "evil"),
        (lambda d: d["layers"].update({"2": 3}), "lists layer '2' with 3"),
        (lambda d: d.update(form="subtract"), "form is 'subtract'"),
        (lambda d: d.pop("form"), "form"),
        (lambda d: d.update(form=["add"]), "form"),
        (lambda d: d.pop("metadata"), "metadata is a NoneType"),
        (set_field("colour", "red"), r"unknown fields \['colour'\]"),
        (set_field("n", "many"), r"metadata\.n is 'many'"),
        (set_field("n", True), r"metadata\.n is True"),
        (set_field("model_id", None), r"metadata\.model_id is None"),
        (set_field("recommended_alpha", float("nan")), r"metadata\.recommended_alpha is nan"),
        (set_field("lam", {"1": "big"}), r"metadata\.lam"),
        (set_field("lam", {"one": 1.0}), r"metadata\.lam"),
        (set_field("notes", {"1": "text"}), r"metadata\.notes"),
        (set_field("hidden_size", 7), "hidden_size is 7; the maps have 6"),
    ],
)
def test_wrong_documents_are_refused(saved, change, reason):
    rewrite(saved, document=change)
    with pytest.raises(AlignmentError, match=reason):
        Alignment.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_wrong_json_is_refused(saved, text):
    rewrite(saved, alignment=text)
    with pytest.raises(AlignmentError, match="header's 'alignment' is"):
        Alignment.load(saved)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_files_are_refused_or_load_as_valid_alignments(saved, data):
    """Any change of some bytes gives an AlignmentError, or an alignment that passed every check - nothing else."""
    if not (original := saved.with_suffix(".original")).exists():
        original.write_bytes(saved.read_bytes())
    content = bytearray(original.read_bytes())
    # The header is where the structure is; the numbers behind it make up most of the file.
    limit = data.draw(st.sampled_from([16, 8 + struct.unpack("<Q", content[:8])[0], len(content)]))
    for position, value in data.draw(
        st.dictionaries(st.integers(0, limit - 1), st.integers(0, 255), max_size=4)
    ).items():
        content[position] = value
    saved.write_bytes(bytes(content))
    try:
        loaded = Alignment.load(saved)
    except AlignmentError:
        return
    assert all(m.up.isfinite().all() and m.hidden_size == loaded.hidden_size for m in loaded.maps.values())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(AlignmentError):
        Alignment.load(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_refused(tmp_path, protocol):
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps([Hostile()] * 100, protocol=protocol))
    with pytest.raises(AlignmentError):
        Alignment.load(path)


def test_a_length_without_a_header_is_refused(saved):
    data = bytearray(saved.read_bytes())
    data[8:9] = b"["
    saved.write_bytes(data)
    with pytest.raises(AlignmentError, match="not a safetensors file: its header is not a JSON object"):
        Alignment.load(saved)


def test_two_spellings_of_one_site_are_refused(saved):
    rewrite(saved, document=set_field("lam", {"1": 0.3, "01": 0.4}))
    with pytest.raises(AlignmentError, match=r"metadata\.lam has the site '01'"):
        Alignment.load(saved)


# Writing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Alignment.from_maps({0: random_map()}).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_the_data_are_on_the_disk_before_the_name_is(saved, monkeypatch):
    events = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: events.append("fsync"))
    replace_path = files.Path.replace
    monkeypatch.setattr(files.Path, "replace", lambda a, b: (events.append("replace"), replace_path(a, b))[1])
    example().save(saved)
    assert events == ["fsync", "replace", "fsync"]


def test_saving_replaces_and_readers_keep_what_they_loaded(saved):
    loaded = Alignment.load(saved)
    Alignment.from_maps({0: random_map(seed=5)}).save(saved)
    assert same(loaded, example())
    assert Alignment.load(saved).layers == [0]
    assert saved.stat().st_mode & 0o044  # others may read it, as any new file


def test_views_and_gradients_do_not_hinder_saving(tmp_path):
    W = torch.randn(2, D, D, requires_grad=True)
    alignment = Alignment.from_maps({0: W[1].T, 1: W[1]}, bias={0: torch.randn(D, D)[:, 2]})
    alignment.save(tmp_path / "a.safetensors")
    assert torch.equal(Alignment.load(tmp_path / "a.safetensors").maps[0].up[0], W[1].T)
