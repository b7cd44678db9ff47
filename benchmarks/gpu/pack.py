"""Prepare what travels to a machine with a GPU, and print the command to run there: ``make gpu-pack``.

Puts into a folder that git ignores: the libraries, compiled for Hopper alone (sm_90), once as they are released and
once with kernels that trap instead of waiting for ever; wheels of what such a machine may lack; and a manifest by which
a run knows that the libraries belong to its sources. The machine needs a checkout with that folder and torch 2.11 or
newer, but neither git nor a network. Files that are up to date are kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.pack_contents import CUDA_LIBRARY, LIBRARIES, Manifest, sources_digest
from benchmarks.gpu.plan import ROOT, SPIN_LIMIT

WHEELS = ("liger-kernel==0.8.5", "polib==1.2.0")
"""A peer, and what the package imports that images with torch do not have. Pure Python."""
MEBIBYTE = 1 << 20
LONGEST_COMMAND = 2000


def build(folder: Path, objects: Path, spin_limit: str = "") -> None:
    """Compile the libraries for sm_90 into ``folder``; ``spin_limit``: with kernels that trap."""
    settings = {"INCLINE_FAST_CUDA": "1", "INCLINE_FAST_CUDA_ARCHS": "90", "INCLINE_FAST_SPIN_LIMIT": spin_limit}
    fresh = objects / folder.name
    command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={fresh}", f"--build-temp={objects}"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in LIBRARIES if not spin_limit else (CUDA_LIBRARY,):
        shutil.copyfile(fresh / "incline_fast" / name, folder / name)
        if shutil.which("strip"):
            subprocess.run(["strip", "--strip-unneeded", folder / name], check=True)


def download(folder: Path) -> None:
    """Fetch the wheels that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    stems = {wheel: wheel.replace("-", "_").replace("==", "-") for wheel in WHEELS}
    for old in folder.glob("*.whl"):
        if not old.name.startswith(tuple(stems.values())):
            old.unlink()
    missing = [wheel for wheel, stem in stems.items() if not list(folder.glob(f"{stem}-*.whl"))]
    if missing:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
        subprocess.run([*pip, *missing], check=True)


def write_manifest(pack: Path) -> Manifest:
    """Of the checkout as it is."""
    commit = _told(["git", "rev-parse", "--short", "HEAD"])
    changed = _told(["git", "status", "--porcelain"])
    torch = _told([sys.executable, "-c", "import torch; print(torch.__version__)"])
    nvcc = _told(["nvcc", "--version"]).splitlines()[-2]
    manifest = Manifest(commit + ("-dirty" if changed else ""), sources_digest(ROOT), torch, nvcc)
    manifest.write(pack)
    return manifest


def size_of_tree() -> int:
    """Bytes of the files that git tracks or would track."""
    names = _told(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def command_for(manifest: Manifest, pack: str) -> str:
    """What to run on the other machine, in the checkout's root."""
    settings: Mapping[str, str] = {"INCLINE_FAST_COMMIT": manifest.commit, "PYTHONPATH": "."}
    variables = " ".join(f"{name}={value}" for name, value in settings.items())
    return f'{variables} python3 -m benchmarks.gpu --pack {pack} --output "${{OUT:-build/gpu}}" --work /tmp/gpu-work'


def _told(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main(pack: Path, limit: float) -> int:
    """Prepare, print, and return the exit status: 1 if it is too large to travel."""
    objects, sources = ROOT / "build" / "gpu-pack-objects", sources_digest(ROOT)
    build(pack / "lib", objects)
    build(pack / "lib-debug", objects, SPIN_LIMIT)
    download(pack / "wheels")
    manifest = write_manifest(pack)
    if manifest.sources != sources:
        print("the sources have changed during the compilation: run it again", file=sys.stderr)
        return 1
    carried, tree = size_of(pack), size_of_tree()
    command = command_for(manifest, str(pack.relative_to(ROOT)))
    print(f"prepared for commit {manifest.commit}, with torch {manifest.torch}, {manifest.nvcc}")
    print(f"to carry beside the {tree / MEBIBYTE:.1f} MiB of the checkout:")
    print(f"  {pack.relative_to(ROOT)}    {carried / MEBIBYTE:.1f} MiB")
    print("to run there, in the checkout's root; it takes up to 430 s, so allow 460:")
    print(f"  {command}")
    if carried + tree > limit * MEBIBYTE or len(command) > LONGEST_COMMAND:
        print(f"too large: {(carried + tree) / MEBIBYTE:.1f} MiB, allowed {limit:g} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-pack"), help="in the checkout, ignored by git")
    parser.add_argument("--limit", type=float, default=64.0, help="MiB that may travel, the checkout included")
    given = parser.parse_args()
    raise SystemExit(main(ROOT / given.folder, given.limit))
