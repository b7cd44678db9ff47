"""Plants the faults of faults.py one at a time and shows which check catches each.

python -m emulator.mutate                  all faults; rewrites docs/gpu_faults.csv
python -m emulator.mutate --only fence     those whose name contains "fence"; prints, writes nothing
python -m emulator.mutate --resume         those that docs/gpu_faults.csv does not have yet; its rows are kept

The table is for the kernels as they are: after a change of theirs begin it anew.

Every fault goes into a copy of the sources, which is built and checked in processes of its own. Exits with 1 if the
unchanged sources do not pass, or a fault is caught by no check. Takes about a minute of processor time for each fault.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from emulator.build import ROOT
from emulator.faults import AFFINE_NORM, FAULTS, Fault

RESULTS = ROOT / "docs" / "gpu_faults.csv"
CHECKS = ("fibers", "races", "ptx")
TIME_LIMIT = 600  # seconds for building and running one check


def main() -> None:
    """Plant, check, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", metavar="TEXT", help="plant the faults whose name contains TEXT, and write no results"
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows of the table, and plant the other faults")
    arguments = parser.parse_args()
    only = arguments.only
    rows = read() if arguments.resume else []
    known = {row[0] for row in rows}
    faults = [fault for fault in FAULTS if fault.name not in known and (only is None or only in fault.name)]
    if shutil.which("nvcc") is None:
        sys.exit("nvcc is not installed, so the check on PTX cannot be made")
    sound = check_unchanged(faults)
    for fault in faults:
        rows.append([fault.name, f"`{fault.file}`", *outcomes(fault)])
        if only is None:
            write(rows)
    missed = [row[0] for row in rows if not any(row[2:])]
    print(
        f"{len(rows) - len(missed)} of {len(rows)} faults were caught",
        *(f"missed: {name}" for name in missed),
        sep="\n",
    )
    sys.exit(0 if sound and not missed else 1)


def write(rows: list[list[str]]) -> None:
    """Rewrite the published table."""
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["fault", "in", *CHECKS], *rows])


def read() -> list[list[str]]:
    """The published table, without its head."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def check_unchanged(faults: list[Fault]) -> bool:
    """The sources as they are must pass every check on every case."""
    cases = sorted({case for fault in faults for case in fault.cases})
    found = [run_check(ROOT, check, cases) for check in CHECKS]
    print(
        "unchanged sources:",
        "; ".join(f"{check}: {text or 'passed'}" for check, text in zip(CHECKS, found, strict=True)),
    )
    return not any(found)


def outcomes(fault: Fault) -> list[str]:
    """The message of each check about a fault; empty where the check passes."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_sources(copy)
        plant(copy, fault)
        found = [run_check(copy, check, list(fault.cases)) for check in CHECKS]
    print(f"{fault.name}: " + "; ".join(f"{check}: {text or '-'}" for check, text in zip(CHECKS, found, strict=True)))
    return found


def copy_sources(copy: Path) -> None:
    """What building and checking need. Compiled objects are shared: their names say what went into them."""
    for name in ("csrc", "emulator", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "incline_fast").symlink_to(ROOT / "incline_fast")
    (ROOT / "build").mkdir(exist_ok=True)
    (copy / "build").symlink_to(ROOT / "build")


def plant(copy: Path, fault: Fault) -> None:
    """Write the fault into the copied source, where its text must occur once."""
    path = copy / AFFINE_NORM.relative_to(ROOT) / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.before) != 1:
        raise ValueError(
            f"fault {fault.name!r}: its text occurs {text.count(fault.before)} times in {fault.file}, not once"
        )
    path.write_text(text.replace(fault.before, fault.after), encoding="utf-8")


def run_check(root: Path, check: str, cases: list[str]) -> str:
    """Empty if the check passes, otherwise what it found, in short."""
    folders = (root, root / "tests" / "helpers", root / "tests" / "csrc")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-m", "cuda.fault_checks", check, *cases]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{check} on {cases} did not run to its end:\n{done.stdout}{done.stderr}")
    text = done.stdout.strip().splitlines()[-1]
    return "" if text == "passed" else text.split(":")[0].replace("|", "/")


if __name__ == "__main__":
    main()
