"""The file of an alignment: named tensors and one JSON document in a safetensors container.

safetensors holds no code, so a hostile file can at worst be refused; every reason for a refusal is named here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from incline_fast.files import replacing
from incline_fast.maps import MAP_DTYPES

__all__ = ["FORMAT_VERSION", "AlignmentError", "read", "read_document", "write"]

FORMAT = "incline_fast.alignment"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 16 * 2**20
"""A header holds names, shapes and metadata of some hundred layers at most; a larger one belongs to no alignment."""
_FRAMING = 8
"""A safetensors file begins with the length of its header in 8 bytes, little-endian; the header is a JSON object."""

_FOREIGN = {
    b"PK": "a zip archive, as torch.save writes",
    b"\x80": "a pickle",
    b"GGUF": "a GGUF file",
    b"{": "JSON text",
}


class AlignmentError(ValueError):
    """An alignment, or a file that claims to hold one, cannot be used; the message says why."""


def write(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write atomically: the file under ``path`` is the old one until the new one is whole and on the disk.

    Args:
        path: the file.
        tensors: name -> tensor.
        document: what JSON can hold.

    Raises:
        AlignmentError: the metadata is larger than :func:`read` takes.
        OSError: the folder is missing or the disk refuses; the old file is intact.
    """
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "alignment": json.dumps(document, ensure_ascii=False, allow_nan=False),
    }
    # The container writes the document as a JSON string inside its own JSON, which escapes it once more.
    size = len(json.dumps(header, ensure_ascii=False).encode()) + sum(len(name) + 128 for name in tensors)
    if size > MAX_HEADER_BYTES:
        sizes = {name: len(json.dumps(value)) for name, value in document.get("metadata", {}).items()}
        largest = max(sizes, key=sizes.__getitem__, default="")
        raise AlignmentError(
            f"the metadata takes {size} bytes, of which metadata.{largest} takes {sizes.get(largest)}; allowed are "
            f"{MAX_HEADER_BYTES}"
        )
    with replacing(path) as temporary:
        save_file(_separate(tensors), temporary, metadata=header)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, none sharing memory: several sites may share one vector, or have parts of one stack.

    The container refuses tensors that share memory, because after loading they would no longer share it. Maps are
    never written to, so that makes no difference here.
    """
    separate: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous().resolve_neg()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in taken or memory.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def read(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and document of a file that :func:`write` made.

    Args:
        path: the file.
        prefix: read only the tensors whose names begin with it, and take it off their names.

    Raises:
        FileNotFoundError: there is no such file.
        AlignmentError: the file is not a whole, finite alignment of a known version.
    """
    with _opened(path) as (file, document):
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
        tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor)
    return tensors, document


def read_document(path: Path) -> dict[str, Any]:
    """The document alone: no tensor is read.

    Raises:
        FileNotFoundError, AlignmentError: as :func:`read`.
    """
    with _opened(path) as (_, document):
        return document


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    _check_container(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file, _document(path, file.metadata() or {})
    except (SafetensorError, AttributeError, UnicodeDecodeError) as error:
        # AttributeError: the container names a dtype that this torch does not have.
        raise AlignmentError(f"{path} is not a whole safetensors file: {error}") from error


def _check_container(path: Path) -> None:
    """Refuse what is not a safetensors file before any library parses it."""
    if not path.exists():
        raise FileNotFoundError(f"there is no alignment {path}")
    if not path.is_file():
        raise AlignmentError(f"{path} is a folder or a device, not a file; an alignment is one .safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_FRAMING + 1)
    length = int.from_bytes(start[:_FRAMING], "little")
    # A file is of this kind if a JSON header of the stated length follows, even if the bytes of that length are also
    # the magic number of another format.
    if len(start) > _FRAMING and start[_FRAMING:] == b"{" and length <= min(size - _FRAMING, MAX_HEADER_BYTES):
        return
    for magic, kind in _FOREIGN.items():
        if start.startswith(magic):
            raise AlignmentError(f"{path} is {kind}; alignments are safetensors files, and nothing else is ever loaded")
    if len(start) < _FRAMING:
        raise AlignmentError(f"{path} has {size} bytes; it is empty or truncated")
    if length > MAX_HEADER_BYTES:
        raise AlignmentError(f"{path} announces a header of {length} bytes; allowed are {MAX_HEADER_BYTES}")
    if length > size - _FRAMING:
        raise AlignmentError(f"{path} is truncated: a header of {length} bytes does not fit a file of {size} bytes")
    raise AlignmentError(f"{path} is not a safetensors file: its header is not a JSON object")


def _document(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise AlignmentError(f"{path} is a safetensors file, but not an alignment: its header names no '{FORMAT}'")
    stored = header.get("format_version", "")
    if not (stored.isascii() and stored.isdecimal()):
        raise AlignmentError(f"{path} has format_version {stored!r}; expected a whole number")
    if int(stored) != FORMAT_VERSION:
        raise AlignmentError(
            f"{path} has format_version {stored}, this library reads {FORMAT_VERSION}; "
            "it was written by another version of incline_fast"
        )
    try:
        document = json.loads(header.get("alignment", ""))
    except (ValueError, RecursionError) as error:
        raise AlignmentError(f"{path}: the header's 'alignment' is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise AlignmentError(f"{path}: the header's 'alignment' is a {type(document).__name__}; expected an object")
    return document


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in MAP_DTYPES:
        allowed = ", ".join(map(str, MAP_DTYPES))
        raise AlignmentError(f"{path}: tensor {name} has dtype {tensor.dtype}; allowed: {allowed}")
    if not bool(tensor.isfinite().all()):
        raise AlignmentError(f"{path}: tensor {name} holds NaN or infinite values")
