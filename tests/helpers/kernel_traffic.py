"""What the kernels move at the size of a real model, counted in the emulator.

make gpu-traffic      all cases; rewrites docs/gpu_traffic.csv, which docs/gpu.md shows

The tests of both families run the same cases, hold them to limits, and compare them with the file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from cuda.launcher import prepare, run_ptx
from op_cases import Case, make
from torch import Tensor

from emulator.build import ROOT
from emulator.ptx import TrafficReport
from emulator.triton_driver import emulated
from incline_fast.ops._arguments import op_tail
from incline_fast.ops.triton_kernels._decode import decode
from incline_fast.ops.triton_kernels.affine_norm import affine_rms_norm

HIDDEN, BF16 = 4096, torch.bfloat16
AFTER_A_GEMM = 72  # tokens: more than the decode kernels take
RESULTS = ROOT / "docs" / "gpu_traffic.csv"
HEADS = ("kernel", "tokens", "compulsory, KB", "memory", "requested", "map loads", "conflict")


@dataclass(frozen=True)
class Counted:
    """A case that has run: its results, what it had to move, and what it did move."""

    name: str
    case: Case
    results: tuple[Tensor, Tensor]
    compulsory: int
    report: TrafficReport
    maps: Sequence[str]

    @property
    def excess(self) -> float:
        """Bytes of distinct sectors over the compulsory bytes."""
        return self.report.distinct_bytes() / self.compulsory

    @property
    def widths(self) -> set[int]:
        """Bits that a lane loads of a map at once."""
        return {width for name in self.maps for width in self.report.reads[name].widths}

    def cells(self) -> list[str]:
        """The case's row of the file."""
        requested = (self.report.bytes_read() + self.report.bytes_written()) / self.compulsory
        return [
            self.name,
            str(self.case.x.numel() // HIDDEN),
            f"{self.compulsory / 1024:.0f}",
            f"{self.excess:.3f}",
            f"{requested:.3f}",
            ", ".join(map(str, sorted(self.widths))) or "none",
            str(self.report.worst_bank_conflict),
        ]


def compulsory_bytes(case: Case, results: Sequence[Tensor], mapped: Tensor | None = None) -> int:
    """Every operand once and both results once; where a GEMM has computed M r, it stands in the place of the maps."""
    maps = (case.map.down, case.map.up, case.map.down_scale, case.map.up_scale) if mapped is None else (mapped,)
    options = [value for value in case.options.values() if isinstance(value, Tensor)]
    operands = (case.x, case.weight, case.norm_bias, *options, *maps, *results)
    return sum(tensor.numel() * tensor.element_size() for tensor in operands if tensor is not None)


def bf16_case(rank: int | None, num_tokens: int) -> Case:
    return make("rms", HIDDEN, (num_tokens,), rank=rank, dtype=BF16, alpha=0.4)


def cuda(name: str, case: Case, mapped: Tensor | None = None, *, sm_90: bool = False) -> Counted:
    """nvcc's code for sm_80, or that of the kernels that there are for sm_90."""
    y, edited, report = run_ptx(prepare(case, mapped=mapped, bulk_copies=sm_90), "sm_90" if sm_90 else "sm_80")
    maps = [buffer for buffer in ("down", "up") if buffer in report.reads]
    return Counted(name, case, (y, edited), compulsory_bytes(case, (y, edited), mapped), report, maps)


def cuda_after_a_gemm(name: str) -> Counted:
    """M r is torch's, in the type of its operands."""
    case = bf16_case(None, AFTER_A_GEMM)
    return cuda(name, case, (case.x.double() @ case.map.up[0].double().T).to(BF16))


def triton(name: str, case: Case) -> Counted:
    """Triton's code for sm_80, in the first configuration; its launches do not know the buffers' names."""
    options = {"bias": None, "alpha": 1.0, "beta": 1.0, "row_map": None, "eps": 1e-6, "weight_offset": 0.0}
    options |= {key: value for key, value in case.options.items() if key != "residual"}
    tunings = decode.configs
    decode.configs = tunings[:1]
    try:
        with emulated(80) as launches:
            tail = op_tail("triton", case.map, **options)
            results = affine_rms_norm(case.x, case.options.get("residual"), case.weight, *tail)
    finally:
        decode.configs = tunings
    (launch,) = launches
    sizes = {map.numel() * map.element_size() for map in (case.map.down, case.map.up) if map is not None}
    maps = [buffer for buffer, traffic in launch.report.reads.items() if traffic.bytes in sizes]
    mapped = None if launch.name == "decode" else torch.empty(case.x.shape)
    return Counted(name, case, results, compulsory_bytes(case, results, mapped), launch.report, maps)


CASES: dict[str, Callable[[str], Counted]] = {
    "CUDA, dense": lambda name: cuda(name, bf16_case(None, 1)),
    "CUDA, dense, a row tile": lambda name: cuda(name, bf16_case(None, 8)),
    "CUDA, dense, bulk copies": lambda name: cuda(name, bf16_case(None, 1), sm_90=True),
    "CUDA, dense, bulk copies, ten tokens": lambda name: cuda(name, bf16_case(None, 10), sm_90=True),
    "CUDA, rank 64": lambda name: cuda(name, bf16_case(64, 1)),
    "CUDA, rank 64, one cluster": lambda name: cuda(name, bf16_case(64, 1), sm_90=True),
    "CUDA, rank 64, one cluster, eight tokens": lambda name: cuda(name, bf16_case(64, 8), sm_90=True),
    "CUDA, rank 512": lambda name: cuda(name, bf16_case(512, 1)),
    "CUDA, after a GEMM": cuda_after_a_gemm,
    "Triton, dense": lambda name: triton(name, bf16_case(None, 1)),
    "Triton, rank 512": lambda name: triton(name, bf16_case(512, 1)),
    "Triton, after a GEMM": lambda name: triton(name, bf16_case(None, AFTER_A_GEMM)),
}


def count(name: str) -> Counted:
    """Run a case."""
    return CASES[name](name)


def published(name: str) -> list[str]:
    """A case's row of docs/gpu_traffic.csv."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return next(row for row in csv.reader(file) if row[0] == name)


def main() -> None:
    """Run all cases and write the file."""
    rows = []
    for name in CASES:
        rows.append(count(name).cells())
        print(", ".join(rows[-1]), flush=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADS, *rows])


if __name__ == "__main__":
    main()
