"""How long the decode kernels of csrc/cuda should take on GPUs on which they have not run: PREDICTIONS only.

Bytes over bandwidth is not a prediction for a call of some 15 microseconds. What is counted here as well is

    bytes in flight     a multiprocessor receives no more than it has requested and not yet got, per latency
    traffic from L2     every block reads all of x, which the bandwidth of memory does not see
    dependent steps     trips to L2, barriers, fences, atomics, reductions: each waits for the one before

A :class:`Design` says which steps a version of the kernels has, as read from its machine code (nvdisasm on the cubins
of ``emulator/machine_code.py``). The unfused pair is the vendor's product and one kernel for add and norm, in one CUDA
graph, with the same latencies.

Every constant is an assumption with its source beside it. Expect errors of a quarter either way; the difference of two
designs is known better than that, for they share most of their errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.served import (
    CLUSTER_BLOCKS,
    PIECE_DEPTH,
    TILE,
    cluster_pieces,
    in_one_cluster,
    in_ring,
    ring_limit,
)
from incline_fast.bench.problems import Problem
from incline_fast.ops._arguments import DECODE_TOKENS, decode_limit

__all__ = ["DESIGNS", "GPUS", "Design", "Gpu", "decode_us", "pair_us", "peak", "prefill_us"]


@dataclass(frozen=True)
class Gpu:
    """Datasheet figures: TB/s of memory, dense Tflop/s of the tensor cores in 16 bits and of the fp32 units."""

    name: str
    bandwidth: float
    tensor: float
    vector: float
    multiprocessors: int
    clock_ghz: float
    source: str
    sm_90: bool = True
    """Whether it has bulk copies and programmatic dependent launch (compute capability 9.0 and later)."""

    def us(self, clocks: float) -> float:
        """Clocks in microseconds."""
        return clocks / self.clock_ghz / 1e3

    @property
    def l2_bandwidth(self) -> float:
        """TB/s that all multiprocessors together receive from L2."""
        return L2_SHARE * SM_BYTES_PER_CLOCK * self.multiprocessors * self.clock_ghz / 1e3


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 2.039, 312, 19.5, 108, 1.41, "NVIDIA A100 80GB datasheet (June 2021), SXM; A100 whitepaper", False),
        Gpu("H100", 3.35, 989.4, 66.9, 132, 1.83, "NVIDIA H100 datasheet (2023), SXM; H100 whitepaper"),
        Gpu("H200", 4.8, 989.4, 66.9, 132, 1.83, "NVIDIA H200 datasheet (2024), SXM"),
        Gpu("B200", 8.0, 2250, 80, 148, 1.85, "NVIDIA Blackwell architecture technical brief (2024), HGX B200"),
    )
}
"""Tensor figures are half of those that the datasheets give with sparsity."""

ATTAINABLE_BANDWIDTH = 0.91
"""Assumed share of the datasheet's bandwidth that a long read reaches; for every kernel alike."""
ATTAINABLE_FLOPS = 0.7
"""Assumed share of the peak that a vendor's large product reaches."""
SM_BYTES_PER_CLOCK = 64
"""Bytes that one multiprocessor receives from L2 per clock: A100 and H100 whitepapers."""
L2_SHARE = 0.35
"""Assumed share of that which all multiprocessors get at once: 5.4 TB/s on an H100, the order that is published for it
(Chips and Cheese, 2 July 2023: 5.5 to 7 TB/s)."""
LAUNCH_US = 1.1
"""Assumed: from the end of a kernel to the first instruction of the one that depends on it in a CUDA graph."""
DEPENDENCY_US = 0.5
"""Assumed, and no published figure was found: from the end of a kernel to the first instruction behind the dependency
wait of one that was launched programmatically and is resident already. That it is resident assumes that the kernel
ahead leaves room for it."""
DRAM_US, LOADED_DRAM_US = 0.7, 0.85
"""Assumed: a trip to memory when nothing else is under way, and under the load of a whole device that reads."""
L2_CLOCKS = 270
"""A trip to L2: the order that microbenchmarks of the H100 find (Luo et al., arXiv 2402.13499)."""
ATOMIC_CLOCKS = 500
"""Assumed: an atomic in L2 whose old value is needed."""
BARRIER_CLOCKS, SHUFFLE_CLOCKS, DIVISION_CLOCKS, SHARED_CLOCKS, ADD_CLOCKS = 40, 25, 90, 30, 4
"""Assumed: bar.sync of 256 threads; a shuffle and the addition after it; an IEEE division or root; a load from shared
memory; a dependent addition. Counted in the machine code, with the latencies of the same microbenchmarks."""
INDEX_CLOCKS = 150
"""A 64-bit division with remainder, of which the kernels of 0.1 need one for every row that they look up: some 110
instructions, most of them dependent (nvdisasm)."""
NOTICE_CLOCKS = L2_CLOCKS + 120 + BARRIER_CLOCKS
"""A block that waits sees a counter: half a sleep of 64 to 128 ns, a read, a barrier."""
SECOND_CLOCKS, ROW_CLOCKS, STEP_CLOCKS = 300, 60, 70
"""Assumed: from the first instruction of a kernel that normalises to its first request; from the statistics to y; the
tensor-core products of a step and what surrounds them."""
BLOCK_WARPS, BLOCKS_PER_SM, STEP_BYTES, ROW_TILE = 8, 2, 1024, 8
"""csrc/cuda: warps of a block, resident blocks, bytes that a warp requests in a step, tokens of a tensor-core
product."""
RING_BYTES, SEGMENT_BYTES, GAP_BYTES, MANY_TILES = 104 << 10, 1024, 64, 128
"""csrc/cuda, the kernel with bulk copies: shared memory of its ring at most, bytes of a row of the map in a
slot and between two, tiles of columns from which on a block has two."""
COPY_CLOCKS = 40
"""A bulk copy, of which a warp issues one after the other: a loop over its lanes (nvdisasm)."""
STAGE_CLOCKS = 300
"""Assumed: from the arrival of a stage to the end of its products: a barrier in shared memory is seen; twice, operands
are loaded from there and multiplied."""
REMOTE_CLOCKS = 180
"""Into another multiprocessor's shared memory: Luo et al., arXiv 2402.13499. Assumed: a cluster's barrier takes as long
once more, beside that of a block."""
GEMM_SLOWDOWN, GEMM_TAIL_US = 1.05, 0.3
"""Assumed of the vendor's product: its weights take 5% longer than a long read, and its epilogue 0.3 us."""


@dataclass(frozen=True)
class Design:
    """A version of the kernels: the steps that its machine code has one after another."""

    name: str
    what: str
    prologue_clocks: int
    """From the first instruction to the first request of weights: which rows use which map."""
    tile_clocks: int
    """From the last product to r' and its moments in the workspace."""
    release_clocks: int
    acquire_clocks: int
    """The fences before and after the addition to a counter."""
    one_launch_rows: int
    """Rows that the last block of the launch normalises; a second launch normalises more."""
    shares_rows: bool
    """The last blocks normalise a row each, which request everything before they wait, and there is no second launch.
    Otherwise warps add up tile after tile."""
    steps_requested: tuple[int, int]
    """Steps of weights that a warp has requested when it waits for one: with one row tile, with several."""
    tiles_at_once: int
    """Row tiles whose x is requested together."""
    short_pieces: int
    """Depth of a piece of ``down`` for ranks up to 128; 1024 otherwise."""
    pieces_at_once: int
    """Pieces of ``down r`` that are requested together."""
    decode_tokens: int | None
    """More tokens, with one map, take torch's product; None: as the op decides by the shape of the map."""
    sm_90: bool
    """Whether it has the kernels for sm_90: with bulk copies for dense maps, within one cluster for low rank."""

    def decodes(self, gpu: Gpu, problem: Problem) -> bool:
        """Whether the decode kernels serve the problem, and not torch's product."""
        if self.takes_cluster(gpu, problem):
            return True
        limit = self.decode_tokens or decode_limit(problem.hidden_size, problem.rank or 0)
        return problem.num_tokens <= max(limit, ring_limit(gpu.bandwidth) if self.takes_ring(gpu, problem) else 0)

    def takes_ring(self, gpu: Gpu, problem: Problem) -> bool:
        """Whether it is the kernel with bulk copies that can serve the problem."""
        return self.sm_90 and gpu.sm_90 and in_ring(problem)

    def takes_cluster(self, gpu: Gpu, problem: Problem) -> bool:
        """Whether it is the kernel for one cluster that serves the problem."""
        return self.sm_90 and gpu.sm_90 and in_one_cluster(problem)

    @property
    def publish_clocks(self) -> int:
        """Barrier, fence, counter, fence."""
        return BARRIER_CLOCKS + self.release_clocks + ATOMIC_CLOCKS + self.acquire_clocks


_REDUCE = 5 * SHUFFLE_CLOCKS + BARRIER_CLOCKS + SHARED_CLOCKS + BLOCK_WARPS * ADD_CLOCKS
_COMBINE = BARRIER_CLOCKS + SHARED_CLOCKS + BLOCK_WARPS * ADD_CLOCKS + 8 * SHUFFLE_CLOCKS

BEFORE = Design(
    name="first",
    what="the kernels as they were first built",
    prologue_clocks=2 * INDEX_CLOCKS + 4 * BARRIER_CLOCKS + L2_CLOCKS + 500,
    # Rows are looked up and x is fetched after the product, and the mean of a tile is a division.
    tile_clocks=_COMBINE + 2 * INDEX_CLOCKS + L2_CLOCKS + DIVISION_CLOCKS,
    release_clocks=900,  # fence.sc, as __threadfence() compiles
    acquire_clocks=400,  # another one
    one_launch_rows=16,
    shares_rows=False,
    steps_requested=(4, 2),
    tiles_at_once=1,
    short_pieces=1024,
    pieces_at_once=2,
    decode_tokens=DECODE_TOKENS,
    sm_90=False,
)

NOW = Design(
    name="now",
    what="the kernels of this checkout, for rows and vectors of one 16-bit type",
    # Without a row_map the first weights are requested before the rows are looked up.
    prologue_clocks=200,
    tile_clocks=_COMBINE,
    release_clocks=500,  # fence.acq_rel: the stores' way to L2 and back
    acquire_clocks=150,  # nothing is under way any more; the L1 cache is emptied
    one_launch_rows=DECODE_TOKENS,
    shares_rows=True,
    steps_requested=(3, 2),
    tiles_at_once=4,
    short_pieces=512,
    pieces_at_once=4,
    decode_tokens=None,
    sm_90=True,
)

DESIGNS = (BEFORE, NOW)
"""In the order of time; the last one is what this checkout builds."""


def decode_us(gpu: Gpu, problem: Problem, design: Design = DESIGNS[-1], *, programmatic: bool = False) -> float:
    """The fused op by one or two launches of csrc/cuda.

    ``programmatic``: launched so. The first weights have then been requested when the kernel ahead ends; what is waited
    for is the end itself and x. That more than these weights arrives while the kernel ahead runs is not counted.
    """
    m, d, rank = problem.num_tokens, problem.hidden_size, problem.rank
    begin = LAUNCH_US + gpu.us(design.prologue_clocks) + DRAM_US
    time = DEPENDENCY_US + gpu.us(L2_CLOCKS) if programmatic else begin
    if design.takes_ring(gpu, problem):
        return time + _ring_us(gpu, design, problem)
    if design.takes_cluster(gpu, problem):
        return time + _cluster_us(gpu, problem)
    if rank is None:
        time += _factor_us(gpu, design, problem, d, d, 1)
    else:
        depth = design.short_pieces if rank <= 128 else 1024
        splits = math.ceil(d / depth)
        time += gpu.us(ATOMIC_CLOCKS)  # which piece of work
        time += _factor_us(gpu, design, problem, rank, d, splits)
        time += gpu.us(design.tile_clocks + design.publish_clocks - design.acquire_clocks + NOTICE_CLOCKS)
        # `up` was requested while `down` was read, as far as registers go; its first step waits for the pieces.
        pieces = splits * min(m, ROW_TILE) * rank * 4 / SM_BYTES_PER_CLOCK
        time += gpu.us(math.ceil(splits / design.pieces_at_once) * L2_CLOCKS + pieces)
        time += _factor_us(gpu, design, problem, d, rank, 1)
    return time + gpu.us(design.tile_clocks) + _rows_us(gpu, design, problem, programmatic)


def _factor_us(gpu: Gpu, design: Design, problem: Problem, columns: int, depth: int, splits: int) -> float:
    """All of one factor from memory, and the rows that it is multiplied with from L2."""
    m, size = problem.num_tokens, problem.map_dtype.itemsize
    tiles = math.ceil(m / ROW_TILE)
    blocks = math.ceil(columns / TILE) * splits
    steps = math.ceil(depth / splits * size * TILE / STEP_BYTES / BLOCK_WARPS)  # of one warp
    ahead = min(design.steps_requested[0 if tiles == 1 else 1], steps)
    weights = columns * depth * size
    busiest = math.ceil(blocks / gpu.multiprocessors)  # blocks of the busiest multiprocessor
    working = min(blocks, gpu.multiprocessors)
    bandwidth = gpu.bandwidth * ATTAINABLE_BANDWIDTH
    share = weights * busiest / blocks  # bytes of the busiest multiprocessor
    from_memory = max(weights / bandwidth / 1e6, share * working / bandwidth / 1e6 if busiest == 1 else 0.0)
    operands = 1 if problem.rank is None or columns == problem.rank else 2 * splits  # z is fp32
    from_l2 = (weights + blocks * m * depth / splits * problem.dtype.itemsize * operands) / gpu.l2_bandwidth / 1e6
    waves = math.ceil(blocks / gpu.multiprocessors / BLOCKS_PER_SM)
    # Trips to memory one after another, beyond the first one, which the caller counts.
    latency = (waves * math.ceil(steps / ahead) - 1) * LOADED_DRAM_US
    batches = math.ceil(tiles / design.tiles_at_once)
    chain = gpu.us(waves * steps * batches * (L2_CLOCKS + STEP_CLOCKS))
    flops = 2 * m * columns * depth / peak(gpu, problem) / 1e6
    return max(from_memory, latency, from_l2, chain if tiles > 1 else 0.0, flops)


def _ring_us(gpu: Gpu, design: Design, problem: Problem) -> float:
    """The kernel with bulk copies, from its first weights on: the last blocks to finish normalise a row each."""
    m, d, size = problem.num_tokens, problem.hidden_size, problem.map_dtype.itemsize
    tiles = math.ceil(d / TILE)
    columns = TILE * (2 if tiles > MANY_TILES else 1)
    blocks = math.ceil(d / columns)
    depth = SEGMENT_BYTES // size
    stages = min(RING_BYTES // (columns * (SEGMENT_BYTES + GAP_BYTES)), math.ceil(d / depth))
    weights = d * d * size
    in_flight = min(blocks, BLOCKS_PER_SM * gpu.multiprocessors) * stages * columns * SEGMENT_BYTES
    waves = math.ceil(blocks / gpu.multiprocessors / BLOCKS_PER_SM)
    streamed = max(
        weights / (gpu.bandwidth * ATTAINABLE_BANDWIDTH) / 1e6,
        weights / in_flight * LOADED_DRAM_US,
        (weights + blocks * m * d * problem.dtype.itemsize) / gpu.l2_bandwidth / 1e6,
        gpu.us(waves * math.ceil(d / depth) * max(STAGE_CLOCKS, columns * COPY_CLOCKS)),
    )
    return streamed + gpu.us(
        STAGE_CLOCKS + design.tile_clocks + BARRIER_CLOCKS + _share_clocks(design, problem, blocks)
    )


def _cluster_us(gpu: Gpu, problem: Problem) -> float:
    """The kernel for one cluster, from its first weights on. That its multiprocessors get more from L2 when the others
    are idle is likely and not assumed."""
    m, d, size, rank = problem.num_tokens, problem.hidden_size, problem.map_dtype.itemsize, problem.rank or 0
    weights = 2 * d * rank * size
    streamed = max(
        weights / (gpu.bandwidth * ATTAINABLE_BANDWIDTH) / 1e6,
        gpu.us(weights / CLUSTER_BLOCKS / (SM_BYTES_PER_CLOCK * L2_SHARE)),
    )
    exchange = 2 * REMOTE_CLOCKS + BARRIER_CLOCKS
    pieces, splits = cluster_pieces(problem), math.ceil(d / PIECE_DEPTH)
    # A lane adds up the pieces of an element after the other, and a warp makes a tile after the other.
    inner = SHARED_CLOCKS + math.ceil(rank / 32) * splits * ADD_CLOCKS + BARRIER_CLOCKS
    tile = SHARED_CLOCKS + STEP_CLOCKS + ROW_CLOCKS + 6 * SHUFFLE_CLOCKS
    tiles = math.ceil(math.ceil(d / TILE) / CLUSTER_BLOCKS / BLOCK_WARPS)
    means = 2 if problem.norm == "layer" else 1
    rows = SHARED_CLOCKS + means * (5 * SHUFFLE_CLOCKS + 2 * BLOCK_WARPS * ADD_CLOCKS) + 2 * DIVISION_CLOCKS
    hand_out = CLUSTER_BLOCKS * ADD_CLOCKS + math.ceil(m * CLUSTER_BLOCKS / BLOCK_WARPS) * ADD_CLOCKS
    clocks = pieces * STAGE_CLOCKS + _COMBINE + hand_out + exchange + inner + tiles * tile + exchange
    return streamed + gpu.us(clocks + rows + BARRIER_CLOCKS + ROW_CLOCKS)


def _share_clocks(design: Design, problem: Problem, blocks: int) -> float:
    """From the last tile to y: the block of one row learns that it was the last, those of several notice."""
    m = problem.num_tokens
    publish = design.publish_clocks if m == 1 else design.publish_clocks - design.acquire_clocks + NOTICE_CLOCKS
    return publish + math.ceil(m / blocks) * _row_clocks(problem)


def _row_clocks(problem: Problem) -> float:
    """A row by one block, from the request of its slots to y."""
    d = problem.hidden_size
    trips = math.ceil(d / (4 * 32 * BLOCK_WARPS * 4))
    received = (4 * d + problem.dtype.itemsize * d + 8 * d / TILE) / SM_BYTES_PER_CLOCK
    means = 2 if problem.norm == "layer" else 1
    return trips * L2_CLOCKS + received + means * _REDUCE + 2 * DIVISION_CLOCKS + ROW_CLOCKS


def _rows_us(gpu: Gpu, design: Design, problem: Problem, programmatic: bool) -> float:
    """From the last tile to y: by the last block, or by a second launch with a block for every row."""
    m, d = problem.num_tokens, problem.hidden_size
    tiles = d / TILE
    if design.shares_rows:
        return gpu.us(_share_clocks(design, problem, math.ceil(tiles)))
    in_launch = m <= design.one_launch_rows
    time = gpu.us(design.publish_clocks)
    if not in_launch:
        time += _next_launch_us(programmatic) + gpu.us(SECOND_CLOCKS)
    statistics = math.ceil(tiles / 32) * (L2_CLOCKS + DIVISION_CLOCKS) + 5 * 110 + 150
    sharing = BLOCK_WARPS
    while in_launch and sharing > 1 and sharing * m > BLOCK_WARPS:
        sharing //= 2
    rows = math.ceil(m / (BLOCK_WARPS // sharing)) if in_launch else 1
    passes = math.ceil(d / (4 * 32 * sharing))
    # A load of the slots, a store, a load of the weight that may not pass it, a store; later, the weight is in L1.
    first, later = 2 * L2_CLOCKS + 130, L2_CLOCKS + 45 + 130
    return time + gpu.us(rows * statistics + passes * first + (rows - 1) * passes * later)


def _next_launch_us(programmatic: bool) -> float:
    """From the end of a launch to the first instruction of the next one that may read what it wrote."""
    return DEPENDENCY_US if programmatic else LAUNCH_US


def pair_us(gpu: Gpu, problem: Problem, *, programmatic: bool = False) -> float:
    """Vendor products, then one kernel that adds, rounds and normalises, reading its row twice as published ones do.

    ``programmatic``: every kernel but the first is launched so, with the weights of a second product requested early.
    """
    m, d, rank = problem.num_tokens, problem.hidden_size, problem.rank
    factors = [(d, d)] if rank is None else [(rank, d), (d, rank)]
    time = LAUNCH_US + DRAM_US + sum(_gemm_us(gpu, problem, columns, depth) for columns, depth in factors)
    if rank is not None:
        time += DEPENDENCY_US + gpu.us(L2_CLOCKS) if programmatic else LAUNCH_US + DRAM_US
    row = d * problem.dtype.itemsize
    received = (2 * row + 2 * row) / SM_BYTES_PER_CLOCK  # x and the product; r' again, and the weight
    means = 2 if problem.norm == "layer" else 1
    clocks = SECOND_CLOCKS + 2 * L2_CLOCKS + received + means * _REDUCE + 2 * DIVISION_CLOCKS + ROW_CLOCKS
    moved = 4 * m * row / (gpu.bandwidth * ATTAINABLE_BANDWIDTH) / 1e6  # x, the product, r' and y
    return time + _next_launch_us(programmatic) + max(gpu.us(clocks), moved)


def prefill_us(gpu: Gpu, problem: Problem, *, programmatic: bool = False) -> float:
    """Vendor products, then the epilogue, which moves what the pair's kernel moves.

    Above :data:`DECODE_TOKENS`, where the map has another type, it is Triton's, and the product written and read in
    fp32.
    """
    m, d = problem.num_tokens, problem.hidden_size
    triton = m > DECODE_TOKENS and problem.map_dtype is not problem.dtype
    more = m * d * (4 - problem.dtype.itemsize) if triton else 0
    return pair_us(gpu, problem, programmatic=programmatic) + 2 * more / (gpu.bandwidth * ATTAINABLE_BANDWIDTH) / 1e6


def _gemm_us(gpu: Gpu, problem: Problem, columns: int, depth: int) -> float:
    """A product, from the arrival of its first weights on."""
    m, size = problem.num_tokens, problem.map_dtype.itemsize
    moved = columns * depth * size + m * (depth + columns) * problem.dtype.itemsize
    memory = GEMM_SLOWDOWN * moved / (gpu.bandwidth * ATTAINABLE_BANDWIDTH) / 1e6
    flops = 2 * m * columns * depth / (peak(gpu, problem) * ATTAINABLE_FLOPS) / 1e6
    return max(memory, flops) + GEMM_TAIL_US


def peak(gpu: Gpu, problem: Problem) -> float:
    """Tflop/s for the map's type."""
    return gpu.vector if problem.map_dtype is torch.float32 else gpu.tensor
