"""Every table of the fused op on this machine: CSV, plots, and the tables of the READMEs.

python -m benchmarks.affine_norm            # some 25 minutes of an idle machine
python -m benchmarks.affine_norm --list     # the commands that it runs, each at most two minutes, to run by hand
python -m benchmarks.affine_norm --plot     # what comes after them: plots and README tables out of the CSV

Rows go to benchmarks/results/cpu-<processor>.csv; a table that is measured again replaces its old rows, so that an
interrupted run goes on with the commands that are left.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import pages, plots
from incline_fast.bench import TABLES
from incline_fast.bench.machine import cpu_name, cpu_slug

RESULTS = Path(__file__).parent / "results"
MATRIX_TABLES = tuple(name for name in TABLES if name.startswith(("dense", "low-rank", "int8")))
FORCED = {"avx512": ("dense-bf16", "low-rank-bf16"), "avx2": MATRIX_TABLES, "scalar": ("dense-fp32",)}
"""Tables that are measured again with a lesser instruction set; AMX differs from AVX-512 for bf16 maps alone."""


def instruction_sets() -> list[str]:
    """What this machine can run, the best first, from the op's own message about one that does not exist."""
    command = [sys.executable, "-c", "from incline_fast import ops; ops.explain()"]
    environment = {**os.environ, "INCLINE_FAST_CPU_ISA": "none"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return answer.stderr.strip().rpartition("allow: ")[2].split(", ")


def commands(output: Path, isas: Sequence[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Environment and arguments of every run: all tables, then some with two threads and lesser instruction sets."""
    tables = [name for name in TABLES if name != "quick"]
    runs: list[tuple[dict[str, str], str, int]] = [({}, name, 1) for name in tables]
    runs += [({}, name, 2) for name in MATRIX_TABLES]
    for isa in isas[1:]:
        runs += [({"INCLINE_FAST_CPU_ISA": isa}, name, 1) for name in FORCED.get(isa, ())]
    bench = [sys.executable, "-m", "incline_fast", "bench", "-o", str(output)]
    return [(isa, [*bench, "--threads", str(threads), "--table", name]) for isa, name, threads in runs]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--list", action="store_true", help="print the commands and stop")
    only.add_argument("--plot", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    output = RESULTS / f"cpu-{cpu_slug(cpu_name())}.csv"
    for isa, command in [] if arguments.plot else commands(output, instruction_sets()):
        print(*(f"{name}={value}" for name, value in isa.items()), *command, flush=True)
        if not arguments.list:
            subprocess.run(command, env={**os.environ, **isa}, check=True)
    if not arguments.list:
        plots.plot(output)
        pages.main([])


if __name__ == "__main__":
    main()
