"""Put the compiled libraries into the package: those that were brought along if they load here, otherwise built ones.

    python -m benchmarks.gpu.libraries --output FOLDER --work FOLDER --pack FOLDER [--no-build]

Standard library alone: a library that crashes torch crashes a process of its own. The exit status is 1 when the package
ends up without a library. With --pack, wheels that were brought along are unpacked to WORK/site, and a copy of the
package with the debug build of the CUDA kernels goes to WORK/debug.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.gpu.pack_contents import CUDA_LIBRARY, LIBRARIES, Manifest, sources_digest
from benchmarks.gpu.tables import append

__all__ = ["install", "why_not_loadable"]

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("stage", "name", "value")
LOAD = "import ctypes, sys, torch\nfor path in sys.argv[1:]: ctypes.CDLL(path)"
"""What torch.ops.load_library does, with the loader's own message."""


def why_not_loadable(paths: list[Path], python: str = sys.executable) -> str:
    """Empty if torch loads the libraries one after another, otherwise what went wrong."""
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        return f"not there: {', '.join(missing)}"
    try:
        command = [python, "-c", LOAD, *map(str, paths)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if answer.returncode == 0:
        return ""
    return (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]


def install(package: Path, pack: Path | None, root: Path, build: bool) -> dict[str, str]:
    """Put the libraries into ``package``; what happened, by name, with an empty "problem" if all are there."""
    found = {"brought along": _why_not_usable(pack, root)}
    if pack is not None and not found["brought along"]:
        for name in LIBRARIES:
            _copy(pack / "lib" / name, package / name)
        return {**found, "brought along": "used", "problem": ""}
    if not build:
        return {**found, "built": "no, as asked", "problem": ""}
    environment = {**os.environ, "INCLINE_FAST_CUDA_ARCHS": os.environ.get("INCLINE_FAST_CUDA_ARCHS", "90")}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    code = subprocess.run(command, cwd=root, env=environment, check=False).returncode
    libraries = [package / name for name in LIBRARIES]
    problem = f"the build ended with status {code}" if code else why_not_loadable(libraries)
    if why_not_loadable(libraries[:1]):  # the package fails to import with it, and imports without it
        libraries[0].unlink(missing_ok=True)
    return {**found, "built": "no" if problem else "yes", "problem": problem}


def _why_not_usable(pack: Path | None, root: Path) -> str:
    if pack is None or not (pack / "lib").is_dir():
        return "none"
    manifest = Manifest.read(pack)
    if manifest is None or manifest.sources != sources_digest(root):
        return "built from other sources than these"
    return why_not_loadable([pack / "lib" / name for name in LIBRARIES])


def unpack_wheels(pack: Path, site: Path) -> list[str]:
    """Unpack pure Python wheels; the names of those that could be."""
    names = []
    for wheel in sorted((pack / "wheels").glob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            names.append(wheel.name)
        except (OSError, zipfile.BadZipFile) as error:
            print(f"{wheel.name} was not unpacked: {error}", flush=True)
    return names


def make_debug_package(package: Path, pack: Path, target: Path) -> str:
    """Copy the package, with the CUDA kernels that trap instead of waiting for ever; why that failed, or empty."""
    library = pack / "lib-debug" / CUDA_LIBRARY
    why = why_not_loadable([package / LIBRARIES[0], library])
    if not why:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        _copy(library, target / package.name / CUDA_LIBRARY)
    return why


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.part")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = install(arguments.package, arguments.pack, ROOT, not arguments.no_build)
    if arguments.pack is not None:
        found["wheels"] = " ".join(unpack_wheels(arguments.pack, arguments.work / "site")) or "none"
        why = make_debug_package(arguments.package, arguments.pack, arguments.work / "debug")
        found["debug build"] = why or "used by the small checks"
    rows = [{"stage": "libraries", "name": name, "value": value} for name, value in found.items()]
    append(arguments.output / "environment.csv", COLUMNS, rows)
    for name, value in found.items():
        print(f"{name}: {value}", flush=True)
    return int(bool(found["problem"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is needed during the run alone")
    parser.add_argument("--pack", type=Path, help="what make gpu-pack has prepared")
    parser.add_argument("--package", type=Path, default=ROOT / "incline_fast", help="where the libraries go")
    parser.add_argument("--no-build", action="store_true", help="do not compile when nothing was brought along")
    raise SystemExit(main(parser.parse_args()))
