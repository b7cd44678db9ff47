"""A folder of hidden states that grows batch by batch and survives an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from incline_fast.files import is_temporary, replacing

__all__ = ["Shards", "StatesError", "text_hash"]

FORMAT = "incline_fast.states"
FORMAT_VERSION = 1


class StatesError(ValueError):
    """Hidden states cannot be computed, or kept ones cannot be used; the message says why."""


def text_hash(texts: Iterable[str]) -> str:
    """First 16 hex digits of the SHA-256 of a list of texts, lengths included: ``ab, c`` is not ``a, bc``."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


class Shards:
    """One safetensors file per batch and a manifest of what the states depend on.

    A shard holds ``indices`` int64 ``[b]`` and ``layer.{l}`` fp32 ``[b, d]``. Each file is written atomically, so a
    killed run leaves whole shards only.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Open or create the folder.

        Raises:
            StatesError: the folder holds something else, or states that depend on something else.
        """
        self._folder = folder
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest}
        path = folder / "manifest.json"
        if path.exists():
            self._compare(path, manifest)
            return
        if folder.exists() and not (folder.is_dir() and all(is_temporary(item) for item in folder.iterdir())):
            raise StatesError(f"resume is {folder}, which is not a folder of states: it has no manifest.json")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")

    def check(self, sites: Sequence[int], n: int, hidden_size: int) -> None:
        """Read every shard of ``n`` rows and keep nothing, so that a damaged one is known before work begins.

        Raises:
            StatesError: a shard is damaged or does not belong to these states.
        """
        for path in self._paths():
            _read(path, sites, n, hidden_size)

    def restore(self, states: Mapping[int, Tensor]) -> set[int]:
        """Fill ``states`` (site -> ``[n, d]``) from the shards and return the indices of the rows that were filled.

        Raises:
            StatesError: a shard is damaged or does not belong to these states.
        """
        done: set[int] = set()
        n, hidden_size = next(iter(states.values())).shape
        for path in self._paths():
            indices, rows = _read(path, list(states), n, hidden_size)
            for site, kept in rows.items():
                states[site][indices] = kept
            done.update(indices.tolist())
        return done

    def write(self, indices: Tensor, pooled: Mapping[int, Tensor]) -> None:
        """Keep one batch: rows ``indices`` of every site."""
        tensors = {f"layer.{site}": rows.contiguous() for site, rows in pooled.items()}
        with replacing(self._folder / f"shard-{int(indices.min()):08d}.safetensors") as temporary:
            save_file({"indices": indices, **tensors}, temporary)

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep other tensors under a name."""
        with replacing(self._folder / f"{name}.safetensors") as temporary:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)

    def find(self, name: str) -> dict[str, Tensor] | None:
        """What :meth:`keep` has kept, None if there is nothing under the name.

        Raises:
            StatesError: the file is damaged.
        """
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            return None
        try:
            found: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise StatesError(f"{path} is damaged ({error}); remove it, and it is computed again") from error
        return found

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("shard-*.safetensors"))

    def _compare(self, path: Path, manifest: Mapping[str, Any]) -> None:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StatesError(f"{path} cannot be read: {error}") from error
        if not isinstance(kept, dict):
            raise StatesError(f"{path} is not a manifest of states")
        changed = [
            f"{name}: {kept.get(name)!r} then, {manifest.get(name)!r} now"
            for name in sorted({*kept, *manifest})
            if kept.get(name) != manifest.get(name)
        ]
        if changed:
            raise StatesError(
                f"resume is {self._folder}, which holds states of other input ({'; '.join(changed)}). "
                "Give another folder, or remove this one"
            )


def _read(path: Path, sites: Sequence[int], n: int, hidden_size: int) -> tuple[Tensor, dict[int, Tensor]]:
    """The indices of a shard's rows, below n, and site -> rows ``[b, d]``; raises StatesError if it is damaged."""
    expected = {"indices", *(f"layer.{site}" for site in sites)}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StatesError(f"{path} is damaged ({error}); remove it, and its sentences are computed again") from error
    indices = tensors.get("indices", torch.empty(0))
    shape = (len(indices), hidden_size)
    whole = (
        set(tensors) == expected
        and indices.dtype == torch.int64
        and indices.dim() == 1
        and bool(((indices >= 0) & (indices < n)).all())
        and all(tuple(t.shape) == shape and bool(t.isfinite().all()) for k, t in tensors.items() if k != "indices")
    )
    if not whole:
        raise StatesError(f"{path} is not a shard of these states; remove it, and its sentences are computed again")
    return indices, {site: tensors[f"layer.{site}"] for site in sites}
