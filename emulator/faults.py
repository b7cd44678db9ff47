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


BOTH, ONE_ROW, SHARED = ("dense", "low rank"), ("one row", "one row, low rank"), ("dense", "ring, many rows")
# Of the first of two kernels that have the lines before these in common.
EPILOGUE_ROW = "  const std::int64_t row = call.first_row + blockIdx.x;\n  const int map = map_of(call, blockIdx.x);"
EPILOGUE_STATISTICS = "  const Statistics stats = statistics(call, [&](int tile) { return moments[tile]; });\n  for"
AFTER_PIECES = (
    "  cluster_wait();  // all of down r is here, and nobody reads the rows as a whole, or `down`, any more\n"
)
FAULTS = (
    Fault(
        "no barrier before a block publishes", "share_rows.h",
        "  __shared__ Share share;\n  __syncthreads();\n", "  __shared__ Share share;\n", ("one row, unedited",),
    ),
    Fault(
        "no fence before the ticket (release)", "share_rows.h",
        "    fence_acq_rel();\n    const Progress before", "    const Progress before", ONE_ROW,
    ),
    Fault(
        "no fence after the ticket (acquire)", "share_rows.h",
        "      fence_acq_rel();\n      share.count", "      share.count", ONE_ROW,
    ),
    Fault(
        "the last but one block finishes", "share_rows.h",
        "total - 1 - static_cast<unsigned>(before)", "total - 2 - static_cast<unsigned>(before)", ONE_ROW,
    ),
    Fault(
        "counters are not reset", "share_rows.h",
        "    atomicExch(progress_of(call), Progress{0});\n", "", ONE_ROW,
    ),
    Fault(
        "counters are reset while a block still waits", "share_rows.h",
        "  if (share.count > 1) wait_for(call.tickets + kSeen, share.count - 1);\n", "", SHARED,
    ),
    Fault(
        "a block waits before all have started", "share_rows.h",
        "} else if (rank < most && before / kOneStarted == total) {", "} else if (rank < most) {", SHARED,
    ),
    Fault(
        "rows of blocks that could not wait are forgotten", "share_rows.h",
        "*call.early = static_cast<unsigned>(started);", "*call.early = 0;", SHARED,
    ),
    Fault(
        "a block does not wait for the others before it normalises its share", "share_rows.h",
        "      spin_until(progress_of(call), total * kOneStarted + total);\n", "", SHARED,
    ),
    Fault(
        "no barrier between two rows of a share", "share_rows.h",
        "    if (row != share.rank) __syncthreads();", "   ", ("ring, many rows",),
    ),
    Fault(
        "ring: rows are read before the dependency wait", "ring_kernel.h",
        "  wait_for_previous_launch();\n", "", ("programmatic, ring",),
    ),
    Fault(
        "ring: a stage is not waited for", "ring_kernel.h",
        "      if constexpr (held > 1) filled.wait(parity);\n", "", ("ring",),
    ),
    Fault(
        "ring: the parity of a phase never turns", "ring.h",
        "    parity ^= 1;\n", "", ("ring, slots used again",),
    ),
    Fault(
        "ring: a slot is requested again while it is read", "ring.h",
        "    barriers.read[turn.slot].wait(turn.parity ^ 1);", "    ", ("ring, slots used again",),
    ),
    Fault(
        "ring: not all bytes of a stage are announced", "ring.h",
        "filled.arrive_and_expect(columns * bytes)", "filled.arrive_and_expect((columns - 1) * bytes)", ("ring",),
    ),
    Fault(
        "ring: the barriers are not shown to the copies", "ring.h",
        "    share_barriers();\n", "", ("ring",),
    ),
    Fault(
        "ring: no thread waits until the barriers are made", "ring_kernel.h",
        "barriers.init(call.stages);\n  __syncthreads();", "barriers.init(call.stages);", ("ring",),
    ),
    Fault(
        "ring: the sums overwrite slots that are still read", "ring_kernel.h",
        "    __syncthreads();  // nothing in the ring is read any more\n", "", ("ring",),
    ),
    Fault(
        "ring: a warp says that it has read before all of its lanes have", "ring_kernel.h",
        "    __syncwarp();\n", "", ("ring, slots used again",),
    ),
    Fault(
        "ring: the segment of another column", "ring.h",
        "lane * kSegmentPitch, row", "(lane ^ 1) * kSegmentPitch, row", ("ring",),
    ),
    Fault(
        "one cluster: rows are read before the dependency wait", "one_cluster_kernel.h",
        "  wait_for_previous_launch();\n", "", ("programmatic, one cluster",),
    ),
    Fault(
        "one cluster: a block stores to others before they have started", "one_cluster_kernel.h",
        "  cluster_wait();  // all blocks have started\n  down.hand_out(call, pieces, sums, partial);\n",
        "  down.hand_out(call, pieces, sums, partial);\n  cluster_wait();\n", ("one cluster",),
    ),
    Fault(
        "one cluster: a block arrives before it has handed out its pieces", "one_cluster_kernel.h",
        "  down.hand_out(call, pieces, sums, partial);\n  cluster_arrive();\n",
        "  cluster_arrive();\n  down.hand_out(call, pieces, sums, partial);\n", ("one cluster",),
    ),
    Fault(
        "one cluster: pieces are added up before all are there", "one_cluster_kernel.h",
        f"{AFTER_PIECES}  inner.add_up(call, partial);\n", f"  inner.add_up(call, partial);\n{AFTER_PIECES}",
        ("one cluster",),
    ),
    Fault(
        "one cluster: a block ends while moments are stored to it", "one_cluster_kernel.h",
        "  cluster_arrive();\n  tiles.store();\n  cluster_wait();", "  tiles.store();", ("one cluster",),
    ),
    Fault(
        "one cluster: a block does not keep its own pieces", "one_cluster_kernel.h",
        "for (unsigned i = 0; i < kClusterBlocks; ++i)", "for (unsigned i = 1; i < kClusterBlocks; ++i)",
        ("one cluster",),
    ),
    Fault(
        "one cluster: moments for half of the blocks", "one_cluster_kernel.h",
        "static_cast<unsigned>(place(j))", "static_cast<unsigned>(place(j % 2))", ("one cluster",),
    ),
    Fault(
        "one cluster: no barrier between the warps' sums and their total", "one_cluster_kernel.h",
        "  __syncthreads();\n  cluster_wait();  // all blocks have started\n",
        "  cluster_wait();  // all blocks have started\n", ("one cluster",),
    ),
    Fault(
        "one cluster: no barrier before down r is used", "one_cluster_kernel.h",
        "  barriers.up.wait(0);\n  __syncthreads();\n", "  barriers.up.wait(0);\n", ("one cluster",),
    ),
    Fault(
        "one cluster: no barrier before the statistics are used", "one_cluster_kernel.h",
        "  __syncthreads();\n  tiles.normalise(stats);", "  tiles.normalise(stats);", ("one cluster",),
    ),
    Fault(
        "one cluster: up is not waited for", "one_cluster_kernel.h",
        "  barriers.up.wait(0);\n", "", ("one cluster",),
    ),
    Fault(
        "one cluster: not all bytes of down are announced", "one_cluster.h",
        "down_bytes += piece.rows * piece.depth * size;", "down_bytes += (piece.rows - 1) * piece.depth * size;",
        ("one cluster",),
    ),
    Fault(
        "one cluster: rows beyond the rank are what was in shared memory", "one_cluster.h",
        "if (row < rows && k < limit)", "if (k < limit)", ("one cluster",),
    ),
    Fault(
        "one cluster: a warp's steps in the order of another kernel", "one_cluster_kernel.h",
        "return (round * kWarps + warp_id()) * Product::kStep;", "return (round + warp_id()) * Product::kStep;",
        ("one cluster, two pieces",),
    ),
    Fault(
        "one cluster: r' is stored before everybody has read the rows", "one_cluster_kernel.h",
        "  tiles.request(columns);\n", "  tiles.request(columns);\n  tiles.store();\n", ("one cluster, in place",),
    ),
    Fault(
        "one cluster, int8: the scale of another row of down", "one_cluster_kernel.h",
        "call.down.scale[column];", "call.down.scale[column ^ 1];", ("one cluster, int8",),
    ),
    Fault(
        "no fence before a piece is counted", "tickets.h",
        "    fence_acq_rel();\n    atomicAdd", "    atomicAdd", ("low rank",),
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
        "    wait_for(call.tickets + kInnerDone, count_inner(call));\n", "", ("low rank",),
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
        "k + requested * stride + lane_k, end);", "k + lane_k, end);", ("wide",),
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
        "shuffles of a tile stop too early", "row_edit.h",
        "step < kTileColumns; step *= 2) value", "step < kTileColumns / 2; step *= 2) value", BOTH,
    ),
    Fault(
        "mask: 16-byte loads cross the end of a row", "rows.h",
        "if (!row.wide || k + count > limit || row.dtype", "if (!row.wide || row.dtype", ("odd",),
    ),
    Fault(
        "mask: wide stores cross the end of a row", "rows.h",
        "if (!row.wide || k + count > limit) {", "if (!row.wide) {", ("odd",),
    ),
    Fault(
        "statistics: deviations of a tile without the gap between its mean and the row's", "row_norm.h",
        "return moments.deviations + columns * (gap * gap);", "return moments.deviations;", BOTH,
    ),
    Fault(
        "statistics: a tile that is not full gets the weight of a full one", "row_norm.h",
        "return columns * (moments.mean - about);", "return kTileColumns * (moments.mean - about);", ("after a GEMM",),
    ),
    Fault(
        "statistics: no barrier before the warps' sums are added", "row_norm.h",
        "sums[warp_id()] = value;\n  __syncthreads();", "sums[warp_id()] = value;", ONE_ROW,
    ),
    Fault(
        "without a row_map: the rows are never looked up", "dense_kernel.h",
        "if (first == 0) fill<Types>(call, group);", "", ONE_ROW,
    ),
    Fault(
        "without a row_map: no barrier after the rows are looked up", "group.h",
        "  list_all_rows<Types>(call, group);\n  __syncthreads();", "  list_all_rows<Types>(call, group);", ONE_ROW,
    ),
    Fault(
        "uniform rows: another type of the norm's weight is read as theirs", "row_types.h",
        "row.dtype == type && row.wide", "row.wide", ("fp32 weight",),
    ),
    Fault(
        "uniform rows: of a width that is no multiple of a step", "row_types.h",
        "return call.hidden % kWholeSteps == 0 && ", "return ", ("narrow",),
    ),
    Fault(
        "uniform rows: x is taken for aligned where only its weight is", "row_types.h",
        "rows(call.x) && rows(call.residual)", "rows(call.residual)", ("misaligned",),
    ),
    Fault(
        "the lowest of the three parts of an fp32 number is dropped", "products.h",
        "for (int part = 0; part < 3; ++part) {", "for (int part = 0; part < 2; ++part) {", ("fp32 rows",),
    ),
    Fault(
        "int8: the scale of another column", "row_edit.h",
        "call.up.columns + column];", "call.up.columns + (column ^ 1)];", ("int8",),
    ),
    Fault(
        "int8: the scale of another row of down", "low_rank_kernel.h",
        "members.map * call.rank + column + place];", "members.map * call.rank + (column + place ^ 1)];",
        ("low rank int8",),
    ),
    Fault(
        "missing dependency wait: the rows are read while the previous launch may write them", "group.h",
        "if (call.row_map != nullptr) return;\n  wait_for_previous_launch();", "if (call.row_map != nullptr) return;",
        ("programmatic",),
    ),
    Fault(
        "missing dependency wait: row_map is read too early", "group.h",
        "return {0, call.num_rows};\n  wait_for_previous_launch();", "return {0, call.num_rows};",
        ("programmatic, row_map",),
    ),
    Fault(
        "missing dependency wait: the launch after a GEMM", "epilogue.cu",
        f"  wait_for_previous_launch();\n{EPILOGUE_ROW}", EPILOGUE_ROW,
        ("programmatic, after a GEMM",),
    ),
    Fault(
        "a ticket is drawn before the dependency wait", "low_rank_kernel.h",
        "  wait_for_previous_launch();\n  const Work work", "  const Work work", ("programmatic, low rank",),
    ),
    Fault(
        "the prefetch of a map reaches beyond its rows", "low_rank_kernel.h",
        "threadIdx.x >= kTileColumns || row >= map.columns) return;", "threadIdx.x >= kTileColumns + 1) return;",
        ("programmatic, low rank",),
    ),
    Fault(
        "after a GEMM: no barrier between the moments and the statistics", "epilogue.cu",
        f"  __syncthreads();\n{EPILOGUE_STATISTICS}", EPILOGUE_STATISTICS,
        ("after a GEMM",),
    ),
    Fault(
        "after a GEMM, in 16-byte loads: a lane adds up half of a tile", "epilogue.cu",
        "return sum + __shfl_xor_sync(kAllLanes, sum, 1);", "return 2.0f * sum;", ("after a GEMM, uniform",),
    ),
)  # fmt: skip
