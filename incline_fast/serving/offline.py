"""Maps of an offline engine: list, load and unload them while it lives."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from incline_fast.serving.catalog import Catalog
from incline_fast.serving.errors import RequestError
from incline_fast.serving.frontend import catalog_of

__all__ = ["list_maps", "load_map", "unload_map"]


def list_maps(llm: Any) -> dict[str, dict[str, Any]]:
    """What the names of an engine's maps stand for.

    Args:
        llm: a ``vllm.LLM``.

    Raises:
        RequestError: the engine was started without maps.
    """
    return {name: entry.describe() for name, entry in _catalog(llm).entries().items()}


def load_map(llm: Any, name: str, path: str | PathLike[str]) -> None:
    """Serve an alignment under a name; requests that are running keep what the name stood for before.

    Args:
        llm: a ``vllm.LLM``.
        name: what requests will say.
        path: the alignment's file.

    Raises:
        RequestError: the file does not fit the model or the engine, or no slot is free.
    """
    catalog = _catalog(llm)
    entry = catalog.read(Path(path).resolve())
    named = [other.content for key, other in catalog.entries().items() if key != name]
    problems = llm.collective_rpc("incline_load", args=(entry.path, entry.content, named))
    for problem in problems:
        if problem:
            raise RequestError(problem, "path", str(path))
    catalog.put(name, entry)


def unload_map(llm: Any, name: str) -> None:
    """Refuse requests for a name from now on. Its memory is used again when a map is loaded and no request needs it.

    Args:
        llm: a ``vllm.LLM``.
        name: as given to :func:`load_map`.

    Raises:
        RequestError: there is no such name.
    """
    _catalog(llm).remove(name)


def _catalog(llm: Any) -> Catalog:
    catalog = catalog_of(llm.llm_engine.input_processor)
    if catalog is None:
        raise RequestError("this engine was started without maps", "llm")
    return catalog
