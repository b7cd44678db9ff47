"""The machine-code gate: the code that ptxas made from every kernel, judged without running it.

Registers, stack and shared memory come from cuobjdump, instructions from nvdisasm, the intended threads and blocks from
the launch bounds in the PTX; the occupancy is computed from them.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from emulator import build

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def _has_kernels(source: Path) -> bool:
    return any("__global__" in path.read_text(encoding="utf-8") for path in build.dependencies(source, [build.CSRC]))


SOURCES = tuple(path for path in sorted((build.CSRC / "cuda").rglob("*.cu")) if _has_kernels(path))

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
SHARED_PER_MULTIPROCESSOR = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
WARPS_PER_MULTIPROCESSOR = 64
BLOCKS_PER_MULTIPROCESSOR = 32
PARTITIONS, REGISTERS_PER_PARTITION, REGISTER_UNIT = 4, 16384, 256
SHARED_UNIT, SHARED_RESERVED = 128, 1024

SM_90_KERNELS = ("ring_kernel", "one_cluster_kernel")
"""Their code for older architectures is a trap, which the launcher never runs."""

DTYPES = ("fp32", "fp64", "bf16", "fp16", "int8")  # the order of enum class DType


@dataclass(frozen=True)
class KernelCode:
    """One kernel as compiled for one architecture."""

    name: str
    arch: str
    registers: int
    stack: int
    local: int
    shared: int
    threads: int
    intended_blocks: int
    instructions: Mapping[str, int]
    wants_wide: bool = False  # refused without 16-byte loads
    wants_matrix: bool = False  # refused without tensor-core instructions

    @property
    def spills(self) -> int:
        """Accesses of local memory, where registers that do not fit are kept."""
        return sum(count for name, count in self.instructions.items() if name.split(".")[0] in ("LDL", "STL"))

    @property
    def wide_loads(self) -> int:
        """Loads of 16 bytes for each lane from global memory, to registers or shared memory; bulk copies."""
        return self._count(r"LDG(?=\.).*\.128\b|LDGSTS.*\.128\b|UBLKCP\b")

    @property
    def matrix_products(self) -> int:
        """Tensor-core instructions."""
        return self._count(r"[HIDQO]MMA\b")

    @property
    def blocks(self) -> int:
        """Blocks that fit on a multiprocessor at once, with the static shared memory alone."""
        warps = -(-self.threads // 32)
        registers = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        by_registers = PARTITIONS * (REGISTERS_PER_PARTITION // registers) // warps
        shared = -(-(self.shared + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
        by_shared = SHARED_PER_MULTIPROCESSOR[self.arch] // shared
        return min(by_registers, by_shared, WARPS_PER_MULTIPROCESSOR // warps, BLOCKS_PER_MULTIPROCESSOR)

    @property
    def occupancy(self) -> float:
        """Share of the warps that a multiprocessor can hold."""
        return self.blocks * -(-self.threads // 32) / WARPS_PER_MULTIPROCESSOR

    def complaints(self) -> list[str]:
        """The reasons why the gate refuses this kernel."""
        found = []
        if self.stack or self.local:
            found.append(f"stack of {self.stack} bytes, local memory of {self.local} bytes")
        if self.spills:
            found.append(f"{self.spills} accesses of local memory")
        if self.blocks < self.intended_blocks:
            found.append(f"{self.blocks} blocks fit on a multiprocessor, {self.intended_blocks} are intended")
        if self.wants_matrix and not self.matrix_products:
            found.append("no tensor-core instruction")
        if self.wants_wide and not self.wide_loads:
            found.append("no 16-byte load from global memory")
        return [f"{self.name} for {self.arch}: {complaint}" for complaint in found]

    def _count(self, pattern: str) -> int:
        return sum(count for name, count in self.instructions.items() if re.match(pattern, name))


@cache
def kernels_of(source: Path, arch: str, include: tuple[Path, ...] = (build.CSRC,)) -> list[KernelCode]:
    """Every kernel of a source, compiled for an architecture; raises MissingToolError without nvcc."""
    bounds = launch_bounds(build.ptx(source, arch, include=include))
    codes = read_cubin(build.cubin(source, arch, include=include), arch, bounds)
    codes = [replace(code, wants_wide="Product" in code.name, wants_matrix="TensorCore" in code.name) for code in codes]
    return [code for code in codes if arch != "sm_80" or not code.name.startswith(SM_90_KERNELS)]


def launch_bounds(ptx: str) -> dict[str, tuple[int, int]]:
    """(threads, intended blocks) of every entry of a PTX module."""
    found = {}
    for name, directives in re.findall(r"\.entry\s+([\w$]+)\s*\([^)]*\)([^{;]*)\{", ptx):
        shape = re.search(r"\.(?:maxntid|reqntid)\s+([\d, ]+)", directives)
        threads = 1
        for size in shape.group(1).split(",") if shape else ["1024"]:
            threads *= int(size)
        blocks = re.search(r"\.minnctapersm\s+(\d+)", directives)
        found[name] = (threads, int(blocks.group(1)) if blocks else 1)
    return found


def read_cubin(path: Path, arch: str, bounds: Mapping[str, tuple[int, int]]) -> list[KernelCode]:
    """Every kernel of a cubin; ``bounds`` are its threads and intended blocks by mangled name."""
    usage = _tool("cuobjdump", "-res-usage", str(path))
    resources = re.findall(r"Function ([\w$]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    code = _instructions(_tool("nvdisasm", "-c", str(path)))
    # From sm_90 on, a kernel's shared memory includes what the system keeps for itself, unless it has none at all.
    kept = 0 if arch == "sm_80" else SHARED_RESERVED
    found = []
    for name, registers, stack, shared, local in resources:
        memory = (int(stack), int(local), max(int(shared) - kept, 0))
        found.append(
            KernelCode(readable(name), arch, int(registers), *memory, *bounds.get(name, (1024, 1)), code[name])
        )
    return found


def readable(mangled: str) -> str:
    """A kernel's name without namespaces and arguments."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(incline_fast::DType\)(\d)", lambda match: DTYPES[int(match.group(1))], name)
    name = re.sub(r"\(anonymous namespace\)::|incline_fast::cuda::|incline_fast::|^void ", "", name)
    return name.rsplit("(", 1)[0] if name.endswith(")") else name


HEADS = ("kernel", "threads", *ARCHITECTURES, "16-byte loads", "MMA")


def table(codes: Sequence[KernelCode]) -> str:
    """Markdown: a row for each kernel in the order in which it first comes, the architectures side by side."""
    rows: dict[str, list[KernelCode]] = {}
    for code in codes:
        rows.setdefault(code.name, []).append(code)
    return markdown(HEADS, map(cells, rows.values()))


def cells(codes: Sequence[KernelCode]) -> list[str]:
    """A row of the table: one kernel on the architectures in their order."""
    of_arch = {
        code.arch: f"{code.registers} registers, {code.shared} B, {code.blocks} resident ({code.occupancy:.0%})"
        for code in codes
    }
    found = [f"`{codes[0].name}`", str(codes[0].threads), *(of_arch.get(arch, "-") for arch in ARCHITECTURES)]
    found.append(" / ".join(str(code.wide_loads) for code in codes))
    return [*found, " / ".join(str(code.matrix_products) for code in codes)]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join([markdown_row(heads), "|" + "---|" * len(heads), *map(markdown_row, rows)])


def markdown_row(row: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(row) + " |"


def _instructions(listing: str) -> dict[str, Counter[str]]:
    """Opcodes with their modifiers, counted for each function of a disassembly."""
    found: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in listing.splitlines():
        if match := re.match(r"\.text\.([\w$]+):", line):
            current = found.setdefault(match.group(1), Counter())
        elif match := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            current[match.group(1)] += 1
    return found


def _tool(name: str, *arguments: str) -> str:
    command = [str(build.nvidia_tool(name)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
