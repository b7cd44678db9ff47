"""Task files for the harness: one per set and language, each a line on top of the set's file in ``tasks/``.

A set's file has the wording and the metric, and the languages in its ``metadata``. Tasks are ``incline_SET_LANGUAGE``;
``incline_SET`` runs them all.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import yaml

__all__ = ["SETS", "write_task_files"]

_FOLDER = Path(__file__).parent / "tasks"

SETS = {
    "xcopa": ["et", "id", "it", "sw", "ta", "th", "tr", "vi", "zh"],
    "xwinograd": ["en", "fr", "jp", "pt", "ru", "zh"],
    "mgsm": ["de", "en", "es", "fr", "ja", "ru", "sw", "th", "zh"],
    "xstorycloze": ["ar", "en", "es", "hi", "id", "ru", "sw", "zh"],
    "xnli": ["ar", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "vi", "zh"],
    "xcsqa": ["ar", "de", "en", "es", "fr", "hi", "it", "ja", "nl", "pt", "ru", "sw", "vi", "zh"],
    "flores": ["ar", "el", "es", "fr", "hi", "ru", "tr", "vi", "zh"],
    "wmt23": ["de", "ja", "ru", "uk", "zh"],
    "mzsre": ["cs", "de", "en", "es", "fr", "nl", "pt", "ru", "th", "tr", "vi", "zh"],
}
"""Set -> its languages in Wang et al. (ACL 2025, arXiv 2410.12462), English where it is the target."""


def write_task_files(folder: str | PathLike[str]) -> None:
    """Write the files of every set and language, for the harness's ``--include_path``.

    Args:
        folder: an existing folder.
    """
    for name, languages in SETS.items():
        for language in languages:
            task = {
                "include": str(_FOLDER / f"{name}.yaml"),
                "task": f"incline_{name}_{language}",
                "tag": f"incline_{name}",
                "dataset_kwargs": {"language": language},
            }
            path = Path(folder) / f"incline_{name}_{language}.yaml"
            path.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
