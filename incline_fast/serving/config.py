"""What the operator chose: which alignments are served, and how much memory their maps may take."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

__all__ = ["KEY", "BankLayout", "ServingConfig", "read_config"]

KEY = "incline_fast"
"""Name of the plugin's part of ``--additional-config``."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ServingConfig:
    """The plugin's part of vLLM's configuration.

    Attributes:
        maps: a folder of ``*.safetensors`` alignments, one such file, or ``{name: file}``. A file's name without its
            ending is the name that requests use. Only files of the folder can be loaded while the server runs.
        max_maps: alignments that can be resident at the same time.
        max_rank: largest rank that can be loaded later; None: the largest of ``maps``, or dense if one of them is.
        map_dtype: "float32", "bfloat16" or "float16", of the resident maps.
        max_bytes: refuse to start if the maps would take more memory than this (per worker); None: no limit.
        max_alpha: largest magnitude of a request's alpha.
    """

    maps: str | dict[str, str]
    max_maps: int = 8
    max_rank: int | None = None
    map_dtype: str = "float32"
    max_bytes: int | None = None
    max_alpha: float = 1.0

    def __post_init__(self) -> None:
        named = isinstance(self.maps, dict) and all(isinstance(v, str) for v in self.maps.values())
        if not (named or (isinstance(self.maps, str) and self.maps)):
            raise ValueError(f"{KEY}.maps is {self.maps!r}; expected a folder, a file, or an object of names and files")
        for name in ("max_maps", "max_rank", "max_bytes"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not ((whole and value >= 1) or (value is None and name != "max_maps")):
                raise ValueError(f"{KEY}.{name} is {value!r}; expected a whole number of at least 1")
        if self.map_dtype not in _DTYPES:
            raise ValueError(f"{KEY}.map_dtype is {self.map_dtype!r}; allowed: {', '.join(_DTYPES)}")
        number = isinstance(self.max_alpha, int | float) and not isinstance(self.max_alpha, bool)
        if not number or not 0 < self.max_alpha < math.inf:
            raise ValueError(f"{KEY}.max_alpha is {self.max_alpha!r}; expected a positive number")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the resident maps."""
        return _DTYPES[self.map_dtype]

    @property
    def folder(self) -> Path | None:
        """The folder that maps can be loaded from while the engine runs; None where single files were named."""
        path = Path(self.maps) if isinstance(self.maps, str) else None
        return path.resolve() if path is not None and path.is_dir() else None

    def files(self) -> dict[str, Path]:
        """Name -> file of the alignments to load at start-up.

        Raises:
            FileNotFoundError: a folder or file is not there.
        """
        if isinstance(self.maps, dict):
            found = {name: Path(path) for name, path in self.maps.items()}
        elif Path(self.maps).is_dir():
            found = {path.stem: path for path in sorted(Path(self.maps).glob("*.safetensors"))}
        else:
            found = {Path(self.maps).stem: Path(self.maps)}
        for name, path in found.items():
            if not path.is_file():
                raise FileNotFoundError(f"{KEY}.maps: there is no file {path} for the map {name!r}")
        return {name: path.resolve() for name, path in found.items()}


@dataclass(frozen=True)
class BankLayout:
    """Sizes that the compiled graph depends on.

    Attributes:
        rank: of the resident factors; None: the maps are dense.
        max_maps: slots of every site's stack.
        dtype: name of the maps' dtype.
    """

    rank: int | None
    max_maps: int
    dtype: str


def read_config(given: Mapping[str, Any] | None) -> ServingConfig | None:
    """The configuration in ``--additional-config``, or in the environment; None: the plugin is not configured.

    ``INCLINE_FAST_SERVE`` holds the same JSON object, or just the folder.

    Raises:
        ValueError: an unknown key or a value that is not allowed; the message names it.
    """
    if given is None:
        text = os.environ.get("INCLINE_FAST_SERVE", "")
        if not text:
            return None
        given = _from_text(text)
    if not isinstance(given, Mapping):
        raise ValueError(f'{KEY} is {given!r}; expected an object such as {{"maps": "alignments/"}}')
    known = [field.name for field in fields(ServingConfig)]
    unknown = sorted(set(given) - set(known))
    if unknown or "maps" not in given:
        problem = f"has unknown keys {unknown}" if unknown else 'has no "maps"'
        raise ValueError(f"{KEY} {problem}; allowed: {', '.join(known)}")
    return ServingConfig(**given)


def _from_text(text: str) -> Mapping[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"maps": text}
    try:
        parsed: Mapping[str, Any] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"INCLINE_FAST_SERVE is not a folder and not valid JSON: {error}") from error
    return parsed
