"""Write docs/gpu.md: what the compilers made of the GPU kernels, what these move, and which check catches which fault.

python -m docs.build_gpu            rewrite docs/gpu.md
python -m docs.build_gpu --check    exit with 1 if docs/gpu.md is not what the compiler says now

Needs nvcc and Triton. Traffic is read from docs/gpu_traffic.csv, which `make gpu-traffic` writes, and
faults from docs/gpu_faults.csv, which `python -m emulator.mutate` writes.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path

import triton

from emulator import faults, machine_code, triton_code

ROOT = Path(__file__).parents[1]

TARGET = ROOT / "docs" / "gpu.md"
FAULTS = ROOT / "docs" / "gpu_faults.csv"
TRAFFIC = ROOT / "docs" / "gpu_traffic.csv"
HEADER = """# The GPU kernels as compiled

Written by `python -m docs.build_gpu`; do not edit by hand. How the kernels work is in [gpu_design.md](gpu_design.md).
Nothing here was measured on a GPU: registers and shared memory are what ptxas and cuobjdump report, instructions are
counted in nvdisasm's listing, the occupancy is computed from them, and traffic is counted in the emulator.

"""
CUDA_TEXT = """## Machine code of the CUDA kernels

nvcc 13.0 with `-O3 --fmad=false`. Resident are the blocks that fit on one multiprocessor with their shared memory,
and in brackets their share of its 64 warps. `ring_kernel` and
`one_cluster_kernel` are for sm_90 and later, and have up to 104 and 94 KB of dynamic shared memory besides, with which
two blocks of the ring fit. The tests require at least as many as `__launch_bounds__` intends,
and no stack, no local memory, and no spill. 16-byte loads (`LDG.E.128`, `LDGSTS`), with them bulk copies (`UBLKCP`),
and tensor-core instructions (`HMMA`, `IMMA`) are counted for the architectures in their order.

"""
TRITON_TEXT = """## Machine code of the Triton kernels

Triton {version}, with its own ptxas. `decode` is compiled with every option that costs registers, for the widest tile
of tokens, in every configuration that the autotuner may choose: rows of a map x length of a step, stages of the
pipeline. The tests require no stack, no local memory, no spill, 16-byte loads (but for the Cholesky kernels), and
tensor cores for all maps that are not fp32.

"""
AMD_TEXT = """For gfx942 (MI300) the first configuration of each compiles; these are the compiler's own numbers.
Spilled SGPRs go to lanes of VGPRs and not to memory.

"""
TRAFFIC_TEXT = """## Traffic

Counted in the emulator at d = 4096 in bf16 (sm_80; bulk copies and the cluster: sm_90), in sectors of 32 bytes, over
the compulsory bytes: every operand and both results once. *Memory* counts a sector once in each direction, as a cache
that keeps everything would let it through. *Requested* counts the sectors of every warp's every request, which the
caches serve; the difference is x and, for a low rank, the intermediate, which every block reads anew. The result of a
GEMM counts as an operand. *Map loads*: bits for each lane (8192: bulk copies of 1 KB, 262144: of 32 KB); *conflict*:
the worst of any shared-memory access, 1 is none. The tests hold memory to 1.03 for dense maps and 1.05 for low rank,
and for fp16 and int8 maps too map loads to 128 bits and conflicts to 2. Triton's products of fp32 maps, without tensor
cores, have conflicts of 8.

"""
FAULT_TEXT = """## Planted faults

`python -m emulator.mutate` plants one fault at a time into a copy of `csrc/cuda`, builds it and runs small
cases: as fibers under several schedules (wrong numbers, deadlocks, misaligned accesses), as fibers with the race
detector, and as PTX for sm_80 (wrong numbers, races, accesses out of bounds), programmatic launches for sm_90 (accesses
before the dependency wait as well), as are the launches with bulk copies. A cell says what the check saw; an empty one
that it saw nothing. In Triton's PTX a missing wait for an asynchronous copy is planted by
`tests/ops/triton_kernels/test_triton_faults.py`, a missing dependency wait by `test_triton_programmatic.py` beside it.

"""


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with docs/gpu.md instead of writing it")
    check = parser.parse_args().check
    if shutil.which("nvcc") is None:
        sys.exit("docs/gpu.md describes what nvcc makes of csrc/cuda, and nvcc is not installed here")
    text = HEADER + "\n\n".join([cuda_part(), triton_part(), traffic_part(), fault_part()]) + "\n"
    if not check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit("docs/gpu.md is not what the compiler says; run: python -m docs.build_gpu")


def cuda_part() -> str:
    """What nvcc makes of csrc/cuda."""
    sources, architectures = machine_code.SOURCES, machine_code.ARCHITECTURES
    codes = [code for source in sources for arch in architectures for code in machine_code.kernels_of(source, arch)]
    return CUDA_TEXT + machine_code.table(sorted(codes, key=lambda code: code.name))


def triton_part() -> str:
    """What Triton makes of its kernels."""
    codes = [code for variant in triton_code.variants() for code in triton_code.codes_of(variant)]
    amd = machine_code.markdown(triton_code.AMD_HEADS, map(triton_code.amd_cells, triton_code.amd_variants()))
    text = TRITON_TEXT.format(version=triton.__version__)
    return "\n\n".join([text + machine_code.table(codes), AMD_TEXT + amd])


def traffic_part() -> str:
    """What the emulator counted."""
    return TRAFFIC_TEXT + csv_table(TRAFFIC)


def fault_part() -> str:
    """Which check catches which fault."""
    planted = len(FAULTS.read_text(encoding="utf-8").splitlines()) - 1
    remaining = len(faults.FAULTS) - planted
    told = f"{remaining} of {len(faults.FAULTS)} faults are not planted yet (`--resume`).\n\n" if remaining else ""
    return FAULT_TEXT + told + csv_table(FAULTS)


def csv_table(path: Path) -> str:
    """A CSV file as Markdown."""
    with path.open(newline="", encoding="utf-8") as file:
        heads, *rows = csv.reader(file)
    return machine_code.markdown(heads, rows)


if __name__ == "__main__":
    main()
