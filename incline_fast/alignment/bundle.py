"""Bundle: the alignments of several language pairs of one model in one file, each read when it is first used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from incline_fast.alignment import storage
from incline_fast.alignment.alignment import Alignment, AlignmentError

__all__ = ["AlignmentBundle"]


class AlignmentBundle(Mapping[str, Alignment]):
    """Language -> :class:`Alignment`, in one safetensors file.

    Opening reads the header alone. ``bundle["fr"]`` reads the maps of ``"fr"``, once, and checks them as
    :meth:`Alignment.load` does; the other languages stay on the disk. A bundle is a mapping, so that
    ``dict(bundle)`` reads all of them.

    Args:
        path: a file that :meth:`save` wrote.
        model: check every alignment that is read against this model.

    Raises:
        FileNotFoundError: there is no such file.
        AlignmentError: the file is not a whole bundle.
    """

    def __init__(self, path: str | PathLike[str], model: nn.Module | None = None) -> None:
        self.path = Path(path)
        self._model = model
        document = storage.read_document(self.path)
        documents = document.get("bundle")
        if not isinstance(documents, dict) or not documents:
            raise AlignmentError(f"{self.path} holds one alignment, not a bundle; read it with Alignment.load")
        self._documents: dict[str, Any] = documents
        self._read: dict[str, Alignment] = {}

    @staticmethod
    def save(path: str | PathLike[str], alignments: Mapping[str, Alignment]) -> None:
        """Write the alignments of one model, atomically; keys are the names by which they will be asked for.

        Raises:
            AlignmentError: no alignment, a name that is empty or holds a ``/``, or alignments of different models.
        """
        if not alignments:
            raise AlignmentError("alignments is empty; a bundle needs at least one")
        for name in alignments:
            if not name or "/" in name:
                raise AlignmentError(f"alignments has the name {name!r}; expected text without '/'")
        for field in ("hidden_size", "num_layers", "config_hash"):
            values = {name: getattr(one.metadata, field) for name, one in alignments.items()}
            known = {value for value in values.values() if value}
            if len(known) > 1:
                raise AlignmentError(f"alignments of different models: {field} is {values}")
        tensors: dict[str, Tensor] = {}
        documents: dict[str, Any] = {}
        for name, alignment in alignments.items():
            own, documents[name] = alignment.to_parts()
            tensors |= {f"{name}/{key}": tensor for key, tensor in own.items()}
        storage.write(Path(path), tensors, {"bundle": documents})

    def __getitem__(self, name: str) -> Alignment:
        if name not in self._documents:
            raise KeyError(name)
        if name not in self._read:
            tensors, _ = storage.read(self.path, prefix=f"{name}/")
            alignment = Alignment.from_parts(tensors, self._documents[name], f"{self.path}, {name!r}")
            if self._model is not None:
                alignment.check(self._model)
            self._read[name] = alignment
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    def __repr__(self) -> str:
        return f"AlignmentBundle({self.path.name!r}: {', '.join(self._documents)}; {len(self._read)} read)"
