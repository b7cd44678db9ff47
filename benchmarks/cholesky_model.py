"""How long the Cholesky block of csrc/cuda should take on a GPU on which it has not run: PREDICTIONS only.

python -m benchmarks.cholesky_model          a table of factor and inverse of one block on an H100

One matrix is one block of threads, and what it takes is the chain of its pivots. The latencies are those of
``decode_model.py``; what the chain consists of was read from the machine code for sm_90 (nvdisasm) and counted in the
emulator of PTX. Expect errors of a quarter either way, in fp64 of a half: no latency of fp64 was found published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.decode_model import (
    ADD_CLOCKS,
    BARRIER_CLOCKS,
    DIVISION_CLOCKS,
    DRAM_US,
    GPUS,
    LAUNCH_US,
    SHARED_CLOCKS,
    Gpu,
)

__all__ = ["block_us", "block_us_by_pivots", "table"]

WARPS, SCHEDULERS = 8, 4
"""Warps that share the arithmetic of a block; schedulers of a multiprocessor."""


@dataclass(frozen=True)
class Arithmetic:
    """What one dtype costs."""

    dependent: int
    """Clocks of a dependent multiply-add."""
    issue: int
    """Clocks of a scheduler for one of a warp's: fp64 units are half as many."""
    division: int
    """Clocks of an IEEE division or root."""
    tile_pivots: int
    """Clocks of the 16 pivots of a tile: the code of ``factor_tile`` in order, every instruction when its operands are
    there and 23 clocks for a shuffle, 20 for an approximate root, 30 for a load. Of the shortest chain that is 84 (126)
    a pivot; the rest are waits that ptxas left in the last columns."""
    substitution: int
    """Clocks of ``substitute``, read likewise."""


ARITHMETIC = {
    torch.float32: Arithmetic(ADD_CLOCKS, 1, DIVISION_CLOCKS, 1636, 451),
    torch.float64: Arithmetic(2 * ADD_CLOCKS, 2, 2 * DIVISION_CLOCKS, 2529, 682),
}
"""Assumed of fp64: twice the clocks of fp32 for a multiply-add, a division and a root."""

PIVOT_INSTRUCTIONS, PIVOT_PRODUCTS = 250, 72
"""The kernel with a step a pivot: instructions of a warp and step (emulator of PTX), and those of them that multiply or
add elements."""
TILE = 16
PIECE_BYTES, PIECE_PASSES = 16, 4
"""Bytes that a lane reads from shared memory at once, and the passes that a warp's read takes at most."""
WRITING = 150
"""Instructions of a warp and tile column that hand over the next column and write results (emulator of PTX)."""
ENDS_CLOCKS = 600
"""Assumed: from the arrival of the matrix to the first pivot, and from the last one to the end."""


def block_us_by_pivots(gpu: Gpu, size: int, dtype: torch.dtype) -> float:
    """The kernel before: every pivot a step of all warps, with a barrier and two IEEE operations in sequence."""
    cost = ARITHMETIC[dtype]
    chain = 2 * SHARED_CLOCKS + BARRIER_CLOCKS + 2 * cost.division + 2 * cost.dependent
    issued = PIVOT_INSTRUCTIONS + (cost.issue - 1) * PIVOT_PRODUCTS
    return LAUNCH_US + DRAM_US + gpu.us(size * (chain + WARPS // SCHEDULERS * issued))


def block_us(gpu: Gpu, size: int, dtype: torch.dtype) -> float:
    """The kernel of tiles: pivots of a tile in one warp, and the products of the tile before in their shadow."""
    cost, tiles = ARITHMETIC[dtype], -(-size // TILE)
    next_tile = 2 * SHARED_CLOCKS + TILE * cost.dependent
    clocks = ENDS_CLOCKS + tiles * (cost.substitution + next_tile + 3 * BARRIER_CLOCKS)
    for k in range(tiles):
        clocks += max(cost.tile_pivots, 0 if k == 0 else shadow_clocks(k - 1, tiles, dtype))
    return LAUNCH_US + DRAM_US + gpu.us(clocks)


def shadow_clocks(k: int, tiles: int, dtype: torch.dtype) -> float:
    """What the other warps do with tile column ``k`` meanwhile: limited by issue, or by reads of shared memory."""
    cost = ARITHMETIC[dtype]
    products = TILE * (sum(range(k + 2, tiles + 1)) - 1)
    loads = TILE * dtype.itemsize // PIECE_BYTES * (tiles - 1 - k + tiles)
    issued = WARPS // SCHEDULERS * (cost.issue * products + loads + WRITING)
    return max(issued, WARPS * PIECE_PASSES * loads)


def table(gpu: Gpu = GPUS["H100"]) -> str:
    """Markdown."""
    rows = [f"| rows | dtype | a step a pivot, µs | tiles, µs | (predicted, {gpu.name}) |", "|---|---|---|---|---|"]
    for dtype in ARITHMETIC:
        for size in (32, 64, 128):
            before, after = block_us_by_pivots(gpu, size, dtype), block_us(gpu, size, dtype)
            name = str(dtype).removeprefix("torch.")
            rows.append(f"| {size} | {name} | {before:.1f} | {after:.1f} | {before / after:.1f}x |")
    return "\n".join(rows)


if __name__ == "__main__":
    print("Predictions of a model, not measurements: factor and inverse of one block\n")
    print(table())
