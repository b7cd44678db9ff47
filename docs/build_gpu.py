"""Write docs/gpu.md: what the compiler made of the CUDA kernels, and which check catches which fault.

python docs/build_gpu.py            rewrite docs/gpu.md
python docs/build_gpu.py --check    exit with 1 if docs/gpu.md is not what the compiler says now

Needs nvcc; the table of faults is read from docs/gpu_faults.csv, which tests/emulation/mutate.py writes.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from emulation import machine_code  # noqa: E402

TARGET = ROOT / "docs" / "gpu.md"
FAULTS = ROOT / "docs" / "gpu_faults.csv"
HEADER = """# The GPU kernels as compiled

Written by `python docs/build_gpu.py`; do not edit by hand. How the kernels work is in [gpu_design.md](gpu_design.md).
Nothing here was measured on a GPU: registers and shared memory are what ptxas and cuobjdump report, instructions are
counted in nvdisasm's listing, and the occupancy is computed from them.

"""
MACHINE_CODE = """## Machine code

nvcc 13.0 with `-O3 --fmad=false`. Resident are the blocks that fit on one multiprocessor with static shared memory,
and in brackets their share of its 64 warps. The tests require at least as many as `__launch_bounds__` intends, and no
stack, no local memory, and no spill. 16-byte loads (`LDG.E.128`, `LDGSTS`) and tensor-core instructions (`HMMA`,
`IMMA`) are counted for the architectures in their order.

"""
FAULT_TEXT = """## Planted faults

`python tests/emulation/mutate.py` plants one fault at a time into a copy of `csrc/cuda`, builds it and runs small
cases: as fibers under several schedules (wrong numbers, deadlocks, misaligned accesses), as fibers with the race
detector, and as PTX for sm_80 (wrong numbers, races, accesses out of bounds). A cell says what the check saw; an empty
one that it saw nothing.

"""


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with docs/gpu.md instead of writing it")
    check = parser.parse_args().check
    if shutil.which("nvcc") is None:
        sys.exit("docs/gpu.md describes what nvcc makes of csrc/cuda, and nvcc is not installed here")
    text = render()
    if not check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit("docs/gpu.md is not what the compiler says; run: python docs/build_gpu.py")


def render() -> str:
    """The whole page as Markdown."""
    sources, architectures = machine_code.SOURCES, machine_code.ARCHITECTURES
    codes = [code for source in sources for arch in architectures for code in machine_code.kernels_of(source, arch)]
    return "\n\n".join([HEADER + MACHINE_CODE + machine_code.table(codes), FAULT_TEXT + fault_table()]) + "\n"


def fault_table() -> str:
    """The table of faults as Markdown."""
    with FAULTS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
