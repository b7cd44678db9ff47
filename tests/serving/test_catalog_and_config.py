"""What the operator may configure, and which alignments a model is served."""

from __future__ import annotations

import pytest
from served import IDENTITY, LAYOUT, D, alignment, folder

from incline_fast.serving.catalog import Catalog, content_hash, layout_of
from incline_fast.serving.config import ServingConfig, read_config
from incline_fast.serving.errors import RequestError, ServingError


def test_nothing_is_done_unless_asked_for(monkeypatch):
    monkeypatch.delenv("INCLINE_FAST_SERVE", raising=False)
    assert read_config(None) is None


def test_from_the_environment(monkeypatch):
    monkeypatch.setenv("INCLINE_FAST_SERVE", "maps/")
    assert read_config(None) == ServingConfig("maps/")
    monkeypatch.setenv("INCLINE_FAST_SERVE", '{"maps": {"a": "b.safetensors"}, "max_rank": 8}')
    assert read_config(None) == ServingConfig({"a": "b.safetensors"}, max_rank=8)
    assert read_config({"maps": "other"}) == ServingConfig("other"), "the command line comes first"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, 'has no "maps"'),
        ({"maps": "x", "rank": 3}, r"unknown keys \['rank'\]; allowed: maps, max_maps"),
        ({"maps": 3}, "maps is 3; expected a folder"),
        ({"maps": "x", "max_maps": 0}, "max_maps is 0; expected a whole number"),
        ({"maps": "x", "max_maps": None}, "max_maps is None"),
        ({"maps": "x", "max_rank": True}, "max_rank is True"),
        ({"maps": "x", "map_dtype": "int4"}, "map_dtype is 'int4'; allowed: float32, bfloat16, float16"),
        ({"maps": "x", "max_alpha": -1}, "max_alpha is -1; expected a positive number"),
        ("folder", "expected an object"),
    ],
)
def test_refused_configurations(given, message):
    with pytest.raises(ValueError, match=message):
        read_config(given)


def test_names_are_the_files_stems(tmp_path):
    config = folder(tmp_path, **{"fr-en": alignment(), "de-en": alignment(1)})
    assert list(config.files()) == ["de-en", "fr-en"]
    assert ServingConfig(str(tmp_path / "fr-en.safetensors")).files().keys() == {"fr-en"}
    with pytest.raises(FileNotFoundError, match="no file"):
        ServingConfig({"x": "nowhere.safetensors"}).files()


def test_banks_hold_the_largest_rank(tmp_path):
    assert layout_of(folder(tmp_path, a=alignment(rank=3), b=alignment(rank=5)), D).rank == 5
    assert layout_of(folder(tmp_path, c=alignment(rank=12)), D).rank is None, "two factors would be larger"
    assert layout_of(folder(tmp_path / "dense", c=alignment(rank=None)), D).rank is None
    with pytest.raises(ServingError, match="'c' is of rank 12, max_rank is 8"):
        layout_of(ServingConfig(str(tmp_path), max_rank=8), D)


def test_only_alignments_of_the_model_are_served(tmp_path):
    config = folder(tmp_path, fits=alignment(), other=alignment(config_hash="f" * 16), large=alignment(rank=9))
    catalog = Catalog(config, LAYOUT, IDENTITY)
    assert catalog.read(tmp_path / "fits.safetensors").content == content_hash(tmp_path / "fits.safetensors")
    for name, message in {
        "other": "made for another model: config_hash",
        "large": "of rank 9; the engine was started for maps of rank 8",
        "missing": "there is no alignment",
    }.items():
        with pytest.raises(RequestError, match=message):
            catalog.read(tmp_path / f"{name}.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"PK\x03\x04 zip")
    with pytest.raises(RequestError, match="a zip archive"):
        catalog.read(tmp_path / "broken.safetensors")


def test_files_outside_of_the_folder_cannot_be_named(tmp_path):
    catalog = Catalog(folder(tmp_path / "maps", a=alignment()), LAYOUT, IDENTITY)
    assert catalog.file_of("a.safetensors") == (tmp_path / "maps" / "a.safetensors").resolve()
    alignment().save(tmp_path / "secret.safetensors")
    for path in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        with pytest.raises(RequestError, match="allowed: files of the configured folder"):
            catalog.file_of(path)
    single = Catalog(ServingConfig({"a": "a.safetensors"}), LAYOUT, IDENTITY)
    with pytest.raises(RequestError, match="no folder of maps is configured"):
        single.file_of("a.safetensors")


def test_a_reloaded_name_has_another_content(tmp_path):
    catalog = Catalog(folder(tmp_path, a=alignment(0)), LAYOUT, IDENTITY)
    first = catalog.read(tmp_path / "a.safetensors")
    alignment(1).save(tmp_path / "a.safetensors")
    assert catalog.read(tmp_path / "a.safetensors").content != first.content
