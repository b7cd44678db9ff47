"""What clients may ask for, and what they are told otherwise."""

from __future__ import annotations

import pytest
from served import IDENTITY, LAYOUT, alignment, folder

from incline_fast.serving.catalog import Catalog
from incline_fast.serving.errors import RequestError
from incline_fast.serving.request import Edit, edit_of, resolve

BOS = 2


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    silent = alignment(1, recommended_alpha=None, form="interpolate")
    config = folder(tmp_path, **{"fr-en": alignment(), "de-en": silent})
    made = Catalog(config, LAYOUT, IDENTITY)
    for name, path in config.files().items():
        made.put(name, made.read(path))
    return made


def ask(catalog: Catalog | None, prompt=(BOS, 5, 6), **extra_args) -> Edit | None:
    return resolve(extra_args, catalog, prompt, [BOS], 1.0)


def test_a_request_without_a_map_is_plain(catalog):
    assert ask(catalog) is None
    assert ask(None) is None
    assert resolve(None, catalog, [1], [BOS], 1.0) is None
    assert ask(catalog, incline="fr-en", incline_alpha=0) is None


def test_an_edit_and_its_way_through_the_engine(catalog):
    edit = ask(catalog, incline="fr-en", incline_alpha=0.5)
    assert edit == Edit(catalog.get("fr-en").content, 0.5, 1.0, "last", 1)
    assert edit_of({"other": 1, "incline_fast": edit.wire()}) == edit
    assert ask(catalog, incline="fr-en").alpha == 0.2, "what the alignment recommends"
    assert ask(catalog, incline="de-en", incline_alpha=0.25).beta == 0.75, "interpolation"
    assert ask(catalog, prompt=(7, 8), incline="fr-en").first == 0
    assert ask(catalog, incline="fr-en", incline_positions="all").begin(3) == 1
    assert ask(catalog, incline="fr-en", incline_positions="generated").begin(3) == 2


def test_a_prompt_of_bos_alone_is_plain(catalog):
    assert ask(catalog, prompt=(BOS,), incline="fr-en") is None
    assert ask(catalog, prompt=(5,), incline="fr-en") is not None


REFUSED = {
    "unknown map": ({"incline": "xx-en"}, "'xx-en', which is not a loaded map; loaded: de-en, fr-en"),
    "map no text": ({"incline": 3}, "incline is 3, which is not a loaded map"),
    "alpha too large": ({"incline": "fr-en", "incline_alpha": 1.5}, "incline_alpha is 1.5; allowed: -1 to 1"),
    "alpha nan": ({"incline": "fr-en", "incline_alpha": float("nan")}, "nan; expected a finite number"),
    "alpha text": ({"incline": "fr-en", "incline_alpha": "0.1"}, "'0.1'; expected a finite number"),
    "alpha bool": ({"incline": "fr-en", "incline_alpha": True}, "True; expected a finite number"),
    "alpha missing": ({"incline": "de-en"}, "incline_alpha is missing, and 'de-en' recommends none"),
    "positions": ({"incline": "fr-en", "incline_positions": "first"}, "'first'; allowed: last, generated, all"),
    "positions list": ({"incline": "fr-en", "incline_positions": ["all"]}, r"\['all'\]; allowed: last"),
    "unknown key": ({"incline": "fr-en", "incline_beta": 1}, "incline_beta is not known; allowed: incline, "),
    "forged": ({"incline_fast": {"content": "x"}}, "incline_fast is not known"),
    "alpha alone": ({"incline_alpha": 0.5}, "incline_alpha is given without incline"),
}


@pytest.mark.parametrize(("extra_args", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(catalog, extra_args, message):
    with pytest.raises(RequestError, match=message):
        ask(catalog, **extra_args)


def test_an_engine_without_maps_says_so():
    with pytest.raises(RequestError, match="started without maps"):
        ask(None, incline="fr-en")


def test_salts_tell_apart_what_is_edited_differently():
    edit = Edit("a", 0.5, 1.0, "last", 0)
    others = [Edit("b", 0.5, 1.0, "last", 0), Edit("a", 0.25, 1.0, "last", 0), Edit("a", 0.5, 0.5, "last", 0)]
    others.append(Edit("a", 0.5, 1.0, "generated", 0))
    assert len({other.salt() for other in [edit, *others]}) == 5
