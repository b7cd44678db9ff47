"""The gate on machine code: what it lets pass, what it does not, and every kernel of csrc/cuda."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from test_fiber import KERNELS

from docs import build_gpu
from emulator import build, machine_code
from emulator.machine_code import ARCHITECTURES, KernelCode

pytestmark = pytest.mark.gpu_emulated


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", machine_code.SOURCES, ids=lambda path: path.stem)
def test_kernels_of_the_library(source: Path, arch: str) -> None:
    kernels = machine_code.kernels_of(source, arch)
    for kernel in kernels:
        print(
            f"{kernel.name}: {kernel.registers} registers, {kernel.blocks} blocks, {kernel.occupancy:.0%} of the warps"
        )
    assert [complaint for kernel in kernels for complaint in kernel.complaints()] == []


def test_every_kernel_is_judged() -> None:
    kernels = [kernel for source in machine_code.SOURCES for kernel in machine_code.kernels_of(source, "sm_90")]
    families = {kernel.name.split("<")[0] for kernel in kernels}
    decode = {"dense_kernel", "low_rank_kernel", "ring_kernel", "one_cluster_kernel"}
    assert families == decode | {"edit_and_normalise_rows", "edit_and_normalise_uniform_rows", "cholesky_kernel"}


def test_page_says_what_the_compiler_says() -> None:
    """Other releases of nvcc allocate other registers, which the gate judges and docs/gpu.md need not show.

    The rows of Triton's kernels are compared where these are compiled, in test_triton_machine_code.py.
    """
    if shutil.which("nvcc") is None or "release 13.0" not in build.compiler_version("nvcc"):
        pytest.skip("docs/gpu.md describes nvcc 13.0, and another release is installed")
    text = build_gpu.TARGET.read_text(encoding="utf-8")
    for part in (build_gpu.cuda_part(), build_gpu.traffic_part(), build_gpu.fault_part()):
        assert part in text, "run: python -m docs.build_gpu"


def sample(arch: str) -> dict[str, KernelCode]:
    found = machine_code.kernels_of(KERNELS / "machine_code.cu", arch, (KERNELS,))
    return {kernel.name: kernel for kernel in found}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gate_on_small_kernels(arch: str) -> None:
    kernels = sample(arch)
    assert kernels["wide"].complaints() == []
    assert kernels["wide"].wide_loads == 1
    assert kernels["wide"].intended_blocks == 4
    assert kernels["on_the_stack"].stack == 1024
    complaints = kernels["on_the_stack"].complaints()
    assert f"on_the_stack for {arch}: stack of 1024 bytes, local memory of 0 bytes" in complaints
    assert any("accesses of local memory" in complaint for complaint in complaints)
    assert kernels["much_shared"].blocks == (4 if arch == "sm_80" else 5)
    assert any("6 are intended" in complaint for complaint in kernels["much_shared"].complaints())


CODE = KernelCode("kernel", "sm_80", 32, 0, 0, 0, 256, 1, Counter())


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, 8),  # 64 warps
        ({"threads": 32}, 32),  # the limit on blocks
        ({"registers": 128}, 2),  # 4 partitions of 4 warps of 4096 registers each
        ({"registers": 96}, 2),  # 4 x 5 warps
        ({"registers": 255, "threads": 512}, 0),  # 16 warps wanted, 4 x 2 possible
        ({"shared": 48 << 10}, 3),  # 3 x 49 KB of 164
        ({"shared": 48 << 10, "arch": "sm_90"}, 4),
    ],
)
def test_occupancy_by_hand(changes: dict[str, int | str], blocks: int) -> None:
    code = replace(CODE, **changes)
    assert code.blocks == blocks
    assert code.occupancy == blocks * (code.threads // 32) / 64


def test_complaints_about_instructions() -> None:
    code = replace(CODE, wants_wide=True, wants_matrix=True, instructions={"LDG.E.64": 3, "FFMA": 9})
    text = "\n".join(code.complaints())
    assert "no tensor-core instruction" in text
    assert "no 16-byte load" in text
    good = {"LDG.E.NA.128.CONSTANT": 3, "HMMA.16816.F32.BF16": 4}
    assert replace(code, instructions=good).complaints() == []
    assert replace(code, instructions={**good, "STL.64": 2}).spills == 2


def test_table() -> None:
    codes = [replace(CODE, arch=arch, instructions={"LDG.E.128": i + 1}) for i, arch in enumerate(ARCHITECTURES)]
    row = machine_code.table(codes).splitlines()[-1]
    cell = "32 registers, 0 B, 8 resident (100%)"
    assert row == f"| `kernel` | 256 | {cell} | {cell} | {cell} | 1 / 2 / 3 | 0 / 0 / 0 |"
