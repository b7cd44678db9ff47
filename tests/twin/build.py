"""Build the twin of a GPU machine: the oldest supported torch and Triton under Python 3.12, on a machine without a GPU.

    python tests/twin/build.py          builds .twin/ (about 1 GB is downloaded); what is up to date is kept

    .twin/venv    Python 3.12 with torch.txt and requirements.txt; NVIDIA's large libraries are stand-ins
    .twin/bin     every program of the PATH but git, which such a machine may lack
    .twin/tree    a copy of the working tree, as it would be carried there, with the libraries compiled in it

TWIN_PYTHON names the interpreter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TWIN = ROOT / ".twin"
TREE = TWIN / "tree"
PYTHON = TWIN / "venv" / "bin" / "python"
HERE = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """Variables of a process in the twin: its own Python first, no git, nothing of the surrounding environment's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    path = [str(PYTHON.parent), str(TWIN / "bin")]
    # nvcc finds its toolkit beside itself: a link to it would not do.
    path += [str(Path(nvcc).resolve().parent)] if (nvcc := shutil.which("nvcc")) else []
    return {**kept, "PATH": os.pathsep.join(path), "TRITON_CACHE_DIR": str(TWIN / "triton")}


def run(*command: str | Path, **options: object) -> None:
    """Run a command; a failure ends the script with it."""
    begin = time.monotonic()
    shown = " ".join(Path(part).name if isinstance(part, Path) else part for part in command)
    print(f"== {shown}", flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]
    print(f"   {time.monotonic() - begin:.0f} s", flush=True)


def find_python() -> str:
    """An interpreter of Python 3.12."""
    named = os.environ.get("TWIN_PYTHON")
    installed = sorted(Path.home().glob(".pyenv/versions/3.12.*/bin/python3.12"))
    candidates = [named] if named else ["python3.12", *map(str, installed)]
    for candidate in candidates:
        if shutil.which(candidate) is None:
            continue
        told = subprocess.run([candidate, "-V"], capture_output=True, text=True, check=False)
        if told.stdout.startswith("Python 3.12."):
            return candidate
    raise SystemExit(f"Python 3.12 was not found ({', '.join(candidates)}); name it in TWIN_PYTHON")


def install() -> None:
    """The virtual environment, anew when what it holds is another."""
    wanted = "".join((HERE / name).read_text() for name in ("torch.txt", "requirements.txt", "stand_ins.py"))
    stamp = TWIN / "venv" / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    run(find_python(), "-m", "venv", "--clear", TWIN / "venv")
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-compile", "--no-warn-conflicts")
    run(*pip, "--no-deps", "-r", HERE / "torch.txt")
    run(*pip, "-r", HERE / "requirements.txt")
    packages = next((TWIN / "venv" / "lib").glob("python3.*/site-packages"))
    run(sys.executable, HERE / "stand_ins.py", packages / "torch", packages / "nvidia" / "cu13" / "lib")
    stamp.write_text(wanted)


def link_programs() -> None:
    """Links to all programs of the PATH but git; of two with one name the first counts."""
    folder = TWIN / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for directory in map(Path, os.environ["PATH"].split(os.pathsep)):
        for program in directory.iterdir() if directory.is_dir() else ():
            link = folder / program.name
            if not link.is_symlink() and not program.name.startswith(("git", "nvcc")):
                link.symlink_to(program)


def copy_tree() -> None:
    """The files that git tracks or would track; what was built of them there stays."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        (TREE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, TREE / name)
    record = TWIN / "copied.txt"
    before = set(record.read_text().splitlines()) if record.exists() else set()
    for name in before - names:
        (TREE / name).unlink(missing_ok=True)
    record.write_text("\n".join(sorted(names)))


def compile_libraries() -> None:
    """Both libraries in the copy, against the headers of its torch; compiled kernels are taken over."""
    for folder in (ROOT / "build").glob("temp.*/cuda"):
        # nvcc sees no torch: its objects are the same for every torch.
        shutil.copytree(folder, TREE / "build" / "twin" / "cuda", dirs_exist_ok=True)
    command = (PYTHON, "setup.py", "-q", "build_ext", "--inplace", "--build-temp", "build/twin")
    run(*command, cwd=TREE, env={**environment(), "INCLINE_FAST_CUDA": "1", "CFLAGS": "-Werror"})


def main() -> None:
    """Bring the twin up to date."""
    TWIN.mkdir(exist_ok=True)
    install()
    link_programs()
    copy_tree()
    compile_libraries()


if __name__ == "__main__":
    main()
