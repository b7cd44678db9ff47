"""The names that requests can use, and what each stands for at this moment. One catalog per front end."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from incline_fast.alignment.alignment import Alignment, AlignmentError
from incline_fast.alignment.metadata import Form
from incline_fast.models.identity import ModelIdentity
from incline_fast.serving.config import BankLayout, ServingConfig
from incline_fast.serving.errors import RequestError, ServingError

__all__ = ["Catalog", "Entry", "content_hash", "layout_of"]


@dataclass(frozen=True)
class Entry:
    """One served alignment.

    Attributes:
        content: hash of the file that the name stood for when it was loaded.
        path: that file.
        form: "add" or "interpolate".
        recommended_alpha: strength for requests that give none.
        source_language, target_language: as the alignment says.
        layers: number of sites with a map.
        rank: the largest rank, None if a map is dense.
    """

    content: str
    path: str
    form: Form
    recommended_alpha: float | None
    source_language: str | None
    target_language: str | None
    layers: int
    rank: int | None

    def describe(self) -> dict[str, Any]:
        """Plain values for clients, without the server's folders."""
        values = asdict(self)
        values["file"] = Path(values.pop("path")).name
        return values


def content_hash(path: Path) -> str:
    """The first 32 hex digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def layout_of(config: ServingConfig, hidden_size: int) -> BankLayout:
    """The sizes of the banks: large enough for every alignment that is loaded at start-up.

    Raises:
        ServingError: ``max_rank`` is too small for one of them.
        AlignmentError: a file is not an alignment.
    """
    rank = 0
    for name, path in config.files().items():
        largest = _rank(Alignment.load(path))
        if config.max_rank is not None and (largest or hidden_size) > config.max_rank:
            kind = "dense" if largest is None else f"of rank {largest}"
            raise ServingError(f"the map {name!r} is {kind}, max_rank is {config.max_rank}; raise it, or leave it out")
        rank = max(rank, largest or hidden_size)
    rank = config.max_rank or rank or hidden_size
    # Two factors of more than half the width are larger than the product.
    return BankLayout(None if 2 * rank > hidden_size else rank, config.max_maps, config.map_dtype)


def _rank(alignment: Alignment) -> int | None:
    ranks = [m.rank for m in alignment.maps.values()]
    return None if None in ranks else max(rank for rank in ranks if rank is not None)


class Catalog:
    """Name -> :class:`Entry`, for one model.

    Args:
        config: the operator's choices.
        layout: what the workers' banks can hold.
        identity: the model that alignments have to be made for.
    """

    def __init__(self, config: ServingConfig, layout: BankLayout, identity: ModelIdentity) -> None:
        self.config = config
        self.layout = layout
        self.identity = identity
        self._entries: dict[str, Entry] = {}

    def get(self, name: object) -> Entry:
        """The entry of a name.

        Raises:
            RequestError: there is none; the message lists what there is.
        """
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        known = ", ".join(sorted(self._entries)) or "none"
        raise RequestError(f"incline is {name!r}, which is not a loaded map; loaded: {known}", "incline", name)

    def entries(self) -> dict[str, Entry]:
        """All entries by name."""
        return dict(sorted(self._entries.items()))

    def read(self, path: Path) -> Entry:
        """Look at an alignment without serving it.

        Raises:
            RequestError: the file is missing, is no alignment, was made for another model, or does not fit the banks.
        """
        content = "" if not path.is_file() else content_hash(path)
        try:
            alignment = Alignment.load(path)
            alignment.check_identity(self.identity)
        except (AlignmentError, FileNotFoundError) as error:
            raise RequestError(str(error), "path", path.name) from error
        about, rank = alignment.metadata, _rank(alignment)
        if self.layout.rank is not None and (rank is None or rank > self.layout.rank):
            kind = "dense" if rank is None else f"of rank {rank}"
            raise RequestError(
                f"{path.name} is {kind}; the engine was started for maps of rank {self.layout.rank} at most, "
                "which max_rank changes",
                "path",
                path.name,
            )
        languages = (about.source_language, about.target_language)
        recommended = about.recommended_alpha
        return Entry(content, str(path), alignment.form, recommended, *languages, len(alignment.layers), rank)

    def file_of(self, path: str) -> Path:
        """A file of the configured folder, by its name there.

        Raises:
            RequestError: no folder is configured, or the path leads out of it.
        """
        folder = self.config.folder
        if folder is None:
            raise RequestError("no folder of maps is configured, so that none can be loaded", "path", path)
        file = (folder / path).resolve()
        if not file.is_relative_to(folder):
            raise RequestError(f"path is {path!r}; allowed: files of the configured folder", "path", path)
        return file

    def put(self, name: str, entry: Entry) -> None:
        """Let requests use ``name``; requests that were admitted keep what the name stood for before."""
        self._entries[name] = entry

    def remove(self, name: str) -> Entry:
        """Refuse requests for ``name`` from now on.

        Raises:
            RequestError: there is no such name.
        """
        entry = self.get(name)
        del self._entries[name]
        return entry

    def uses(self, content: str) -> list[str]:
        """Names that stand for a file's content."""
        return [name for name, entry in self._entries.items() if entry.content == content]
