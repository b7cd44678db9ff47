"""The faults that mutate.py plants, one at a time, into a copy of csrc/cuda/affine_norm."""

from __future__ import annotations

from dataclasses import dataclass

from emulator.build import CSRC

AFFINE_NORM = CSRC / "cuda" / "affine_norm"


@dataclass(frozen=True)
class Fault:
    """``before``, once in ``file`` of csrc/cuda/affine_norm, becomes ``after``; ``cases`` are those of fault_checks."""

    name: str
    file: str
    before: str
    after: str
    cases: tuple[str, ...]


BOTH = ("dense", "low rank")
FAULTS = (
    Fault(
        "no barrier before a block publishes", "tickets.h",
        "  __shared__ bool last;\n  __syncthreads();\n", "  __shared__ bool last;\n", BOTH,
    ),
    Fault(
        "no fence before the ticket (release)", "tickets.h",
        "    __threadfence();\n    last = ", "    last = ", BOTH,
    ),
    Fault(
        "no fence after the ticket (acquire)", "tickets.h",
        "total - 1;\n    __threadfence();\n", "total - 1;\n", BOTH,
    ),
    Fault(
        "the last but one block finishes", "tickets.h",
        "== total - 1;", "== total - 2;", BOTH,
    ),
    Fault(
        "counters are not reset", "dense_kernel.h",
        "call.tickets[threadIdx.x] = 0;", "call.tickets[threadIdx.x] += 0;", BOTH,
    ),
    Fault(
        "no barrier after work is taken", "tickets.h",
        "work = atomicAdd(counter, 1u);\n  __syncthreads();", "work = atomicAdd(counter, 1u);", ("low rank",),
    ),
    Fault(
        "work by block index, not by ticket", "low_rank_kernel.h",
        "take_work(call.tickets + kNextWork)", "gridDim.x - 1 - blockIdx.x", ("low rank",),
    ),
    Fault(
        "up r is not waited for", "low_rank_kernel.h",
        "work.tile, shared, wait);", "work.tile, shared, NoWait{});", ("low rank",),
    ),
    Fault(
        "no barrier between the warps' sums and their total", "projection.h",
        "g + 8 * (i / 2)] = d[i];\n    __syncthreads();", "g + 8 * (i / 2)] = d[i];", BOTH,
    ),
    Fault(
        "the next row tile overwrites sums that are still read", "projection.h",
        "      finish(first + row_tile * kTileRows + row, column, sum);\n    }\n    __syncthreads();",
        "      finish(first + row_tile * kTileRows + row, column, sum);\n    }", ("many rows",),
    ),
    Fault(
        "stale prefetch: a step's weights are used again", "projection.h",
        "k + (ahead + i) * stride + lane_k, end);", "k + i * stride + lane_k, end);", ("wide",),
    ),
    Fault(
        "row_map: the group's number taken for its map", "group.h",
        "    group.map = chosen;", "    group.map = number;", BOTH,
    ),
    Fault(
        "row_map: no barrier before the maps are compared", "group.h",
        "group.maps[row] = map;\n  __syncthreads();", "group.maps[row] = map;", ("many rows",),
    ),
    Fault(
        "mask: rows without a map are edited by map 0", "group.h",
        "return map >= 0 && map < call.num_maps;", "return map < call.num_maps;", BOTH,
    ),
    Fault(
        "off by one at the last column of a map", "projection.h",
        "row >= map.columns ||", "row > map.columns ||", ("odd",),
    ),
    Fault(
        "shuffles of a tile stop too early", "row_norm.h",
        "step < kTileColumns; step *= 2) value", "step < kTileColumns / 2; step *= 2) value", BOTH,
    ),
    Fault(
        "mask: 16-byte loads cross the end of a row", "rows.h",
        "if (!row.wide || k + count > limit || row.dtype", "if (!row.wide || row.dtype", ("odd",),
    ),
    Fault(
        "mask: wide stores cross the end of a row", "rows.h",
        "if (!row.wide || k + 4 > limit) {", "if (!row.wide) {", ("odd",),
    ),
    Fault(
        "statistics: deviations of two parts without the gap between their means", "row_norm.h",
        "other_deviations + delta * delta * (n * other_n / total);", "other_deviations;", BOTH,
    ),
    Fault(
        "statistics: parts of different sizes get the same weight", "row_norm.h",
        "mean += delta * (other_n / total);", "mean += delta * 0.5f;", BOTH,
    ),
    Fault(
        "the lowest of the three parts of an fp32 number is dropped", "products.h",
        "for (int part = 0; part < 3; ++part) {", "for (int part = 0; part < 2; ++part) {", ("fp32 rows",),
    ),
    Fault(
        "int8: the scale of another column", "row_norm.h",
        "call.up.columns + column];", "call.up.columns + (column ^ 1)];", ("int8",),
    ),
    Fault(
        "int8: the scale of another row of down", "low_rank_kernel.h",
        "group.map * call.rank + column + place];", "group.map * call.rank + (column + place ^ 1)];",
        ("low rank int8",),
    ),
    Fault(
        "after a GEMM: no barrier between the moments and the statistics", "normalise.cu",
        "  __syncthreads();\n  const Statistics stats", "  const Statistics stats", ("after a GEMM",),
    ),
)  # fmt: skip
