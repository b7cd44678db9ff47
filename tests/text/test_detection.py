"""Detected languages: certain ones by the name that was asked for, and None for every doubt."""

from __future__ import annotations

import sys

import pytest

from incline_fast.text import detection
from incline_fast.text.detection import detect_languages

FRENCH = "Le mot de passe que vous avez saisi est trop court, veuillez en choisir un autre."
TURKISH = "Girdiğiniz parola çok kısa, lütfen başka bir parola seçin ve yeniden deneyin."
ENGLISH = "The password that you have entered is too short, please choose another one."


def test_without_the_package_the_extra_is_named(monkeypatch):
    detection._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ImportError, match=r"incline-fast\[detect\]"):
        detect_languages([FRENCH], ["fr"])


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("py3langid", reason="pip install incline-fast[detect]")

    def test_rows_of_a_mixed_batch(self):
        texts = [FRENCH, ENGLISH, TURKISH, "", "  "]
        assert detect_languages(texts, ["fr", "tr"]) == ["fr", None, "tr", None, None]

    def test_names_may_have_a_region_or_script(self):
        assert detect_languages([FRENCH, TURKISH], ["fr_Latn", "tr-TR"]) == ["fr_Latn", "tr-TR"]

    def test_a_doubtful_text_is_in_no_language(self):
        texts = ["ok", "12 34 56", "Bonjour"]
        certain = detect_languages(texts, ["fr", "tr"])
        assert certain[:2] == [None, None]
        with_less = detect_languages([FRENCH[:12]], ["fr"], threshold=1e-6)
        assert with_less == ["fr"]
        assert detect_languages([FRENCH[:12]], ["fr"], threshold=1.0) == [None]

    @pytest.mark.parametrize(
        ("languages", "threshold", "message"),
        [
            (["klingon"], 0.9, "klingon"),
            (["fr", "fr-CA"], 0.9, "one language"),
            (["fr"], 0.0, "threshold is 0"),
            (["fr"], 1.5, "threshold is 1.5"),
        ],
    )
    def test_arguments(self, languages, threshold, message):
        with pytest.raises(ValueError, match=message):
            detect_languages([FRENCH], languages, threshold=threshold)

    def test_texts_are_strings(self):
        with pytest.raises(TypeError, match="one string"):
            detect_languages(FRENCH, ["fr"])
        with pytest.raises(TypeError, match="int"):
            detect_languages([3], ["fr"])
