"""What ``make gpu-pack`` puts together and a run looks for. Standard library alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["CUDA_LIBRARY", "LIBRARIES", "Manifest", "sources_digest"]

CUDA_LIBRARY = "_cuda.abi3.so"
LIBRARIES = ("_C.abi3.so", CUDA_LIBRARY)
"""In the order in which they are loaded."""


@dataclass(frozen=True)
class Manifest:
    """Commit and digest of the sources that the libraries were built from, and which torch and nvcc built them."""

    commit: str
    sources: str
    torch: str
    nvcc: str

    @classmethod
    def read(cls, pack: Path) -> Manifest | None:
        """That of a pack, None if there is none that can be read."""
        try:
            return cls(**json.loads((pack / "manifest.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, pack: Path) -> None:
        """Write manifest.json."""
        (pack / "manifest.json").write_text(json.dumps(asdict(self), indent=2) + "\n")


def sources_digest(root: Path) -> str:
    """A digest of all that the libraries are compiled from: the names and the content of csrc/ and setup.py."""
    digest = hashlib.sha256()
    for path in [root / "setup.py", *sorted(path for path in (root / "csrc").rglob("*") if path.is_file())]:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
