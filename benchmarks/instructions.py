"""Instructions that one call of the fused op executes, counted by valgrind: numbers without noise, on any machine.

python -m benchmarks.instructions            # count and store in benchmarks/results/instructions.csv
python -m benchmarks.instructions --check    # count and compare: exit 1 if a count is off by more than 3%

The kernels are those of the torch-free driver in tests/csrc/cpp, compiled as setup.py compiles them; the instruction
set is AVX2, the widest that valgrind 3.19 knows. One compiler gives the same counts every time (the size of the
environment moves them by a few); another gives others, so the file says which one it was made with, and --check
refuses to compare with another.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path

from incline_fast.files import replacing

__all__ = ["CASES", "STORED", "Count", "compiler", "count", "differences", "read"]

ROOT = Path(__file__).parents[1]
STORED = ROOT / "benchmarks" / "results" / "instructions.csv"
MARGIN = 0.03
ISA = "avx2"
DTYPES = (("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"), ("bfloat16", "int8"))
CASES = [
    ("rms", 1, 64, 0, "float32", "float32"),
    ("layer", 4, 512, 0, "float32", "float32"),
    *(("rms", m, 512, rank, x, map) for rank, (x, map), m in product((0, 64), DTYPES, (1, 4, 16))),
]
"""Norm, tokens, hidden size, rank (0: dense), dtype of x and of the map; the first is all overhead."""


@dataclass(frozen=True)
class Count:
    """Instructions of one call."""

    norm: str
    num_tokens: int
    hidden_size: int
    rank: int
    dtype: str
    map_dtype: str
    isa: str
    instructions: int
    compiler: str

    @property
    def case(self) -> tuple[str, int, int, int, str, str]:
        """The call that was counted."""
        return self.norm, self.num_tokens, self.hidden_size, self.rank, self.dtype, self.map_dtype


def compiler() -> str:
    """Name and version of the C++ compiler."""
    command = [os.environ.get("CXX", "g++"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[0]


def count() -> list[Count]:
    """Build the driver and count every case.

    Raises:
        RuntimeError: the driver does not compile, or a case is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        _run(["make", "-s", "-j2", "-C", str(ROOT / "tests" / "csrc" / "cpp"), f"OUT={folder}", "FLAGS=-O3"])
        return [Count(*case, ISA, _instructions(Path(folder), case), compiler()) for case in CASES]


def _instructions(folder: Path, case: tuple[str, int, int, int, str, str]) -> int:
    counted = "incline_fast::cpu::affine_norm(*"  # and what it calls; not the driver's own loops
    valgrind = ["valgrind", "--tool=callgrind", f"--toggle-collect={counted}", f"--callgrind-out-file={folder}/out"]
    report = _run([*valgrind, str(folder / "kernels"), "run", *map(str, case)])
    found = re.search(r"Collected : (\d+)", report)
    if found is None or int(found[1]) == 0:
        raise RuntimeError(f"callgrind counted nothing in {counted}:\n{report}")
    return int(found[1])


def _run(command: list[str]) -> str:
    """Standard error of a command that must succeed."""
    environment = {**os.environ, "INCLINE_FAST_CPU_ISA": ISA}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if answer.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{answer.stdout}{answer.stderr}")
    return answer.stderr


def read(path: Path = STORED) -> list[Count]:
    """The stored counts."""
    numbers = ("num_tokens", "hidden_size", "rank", "instructions")
    with path.open(newline="") as file:
        return [Count(**{k: int(v) if k in numbers else v for k, v in line.items()}) for line in csv.DictReader(file)]


def write(counts: list[Count], path: Path = STORED) -> None:
    """Store counts."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Count)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in counts)


def differences(counts: list[Count], stored: list[Count]) -> list[str]:
    """One line per case whose count is off by more than the margin, or that only one of the two has.

    Raises:
        ValueError: the stored counts are those of another compiler.
    """
    others = {one.compiler for one in stored} - {one.compiler for one in counts}
    if others:
        raise ValueError(f"the stored counts are of {', '.join(others)}; this is {counts[0].compiler}")
    new, old = ({one.case: one.instructions for one in some} for some in (counts, stored))
    lines = []
    for case in new | old:
        name = " ".join(map(str, case))
        if case not in new or case not in old:
            lines.append(f"{name}: only {'stored' if case in old else 'counted'}")
        elif abs(new[case] / old[case] - 1) > MARGIN:
            lines.append(f"{name}: {new[case]} instructions, stored {old[case]} ({new[case] / old[case] - 1:+.1%})")
    return lines


def main() -> int:
    """Count; store or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored counts, write nothing")
    check = parser.parse_args().check
    counts = count()
    if not check:
        write(counts)
        return 0
    lines = differences(counts, read())
    print("\n".join(lines) if lines else f"{len(counts)} counts are within {MARGIN:.0%} of the stored ones")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
