// A map of low rank within one cluster (arch/cluster.h): what its sixteen blocks keep in shared memory.
//
// The blocks share out the pieces of down r (low_rank_kernel.h) and the tiles of r'. What one has found, the others'
// shared memory gets: neither the workspace nor a counter is needed, and a barrier of the cluster takes the place of a
// fence, an atomic in L2 and a waiting loop. Sixteen multiprocessors receive less at once than all of them; so this is
// for small maps.
#pragma once

#include "../arch/bulk_copy.h"
#include "../arch/cluster.h"
#include "low_rank_kernel.h"

namespace incline_fast::cuda {

constexpr int kClusterBlocks = 16;
constexpr int kClusterPieces = 2;  // of down r, of a block at most
constexpr int kWarpTiles = 4;      // of r', of a warp at most
constexpr int kClusterRank = 128;
constexpr int kClusterDepth = piece_depth(kClusterRank);

// In dynamic shared memory, each part at a multiple of 16 bytes: a block's pieces of `down`, its rows of `up`, the
// partial sums of down r of all blocks, and a block's sums by its warps. The moments of all tiles take the place of the
// pieces, which everybody has read by then.
struct ClusterLayout {
  int pieces;   // of down r, of all blocks
  int columns;  // of r', of a block; of the last ones fewer
  int moments;  // from one row's to the next one's: odd, so that every other row's of a tile meet in no bank
  int segment;  // bytes from one row of a piece to the next. In the gap, as in a ring (ring.h), nothing lies
  int up, partial, sums, bytes;

  __host__ __device__ ClusterLayout(const AffineCall& call, int size)
      : pieces(inner_pitch(call.rank) / kTileColumns * call.splits),
        columns((call.tiles + kClusterBlocks - 1) / kClusterBlocks * kTileColumns),
        moments(call.tiles | 1),
        segment(kClusterDepth * size + 64) {
    const int own = (pieces + kClusterBlocks - 1) / kClusterBlocks;
    const int down = own * kTileColumns * segment;
    up = (max(down, call.num_rows * moments * static_cast<int>(sizeof(Moments))) + 15) / 16 * 16;
    partial = up + columns * call.rank * size;
    sums = partial + call.splits * call.num_rows * inner_pitch(call.rank) * static_cast<int>(sizeof(float));
    bytes = sums + own * static_cast<int>(sizeof(WarpSums));
  }

  // Whether it serves the call's shape.
  bool serves(const AffineCall& call) const {
    return call.num_rows <= kTileRows && pieces <= kClusterPieces * kClusterBlocks &&
           columns <= kWarpTiles * kWarps * kTileColumns;
  }
};

struct Piece {
  int tile, split;
  int begin, depth;  // along k; no depth if the block has no such piece
  int rows;          // of the map
};

// A block's pieces.
struct Pieces {
  Piece piece[kClusterPieces];

  __device__ __forceinline__ explicit Pieces(const AffineCall& call) {
    const int tiles = inner_pitch(call.rank) / kTileColumns;
#pragma unroll
    for (int i = 0; i < kClusterPieces; ++i) {
      const int index = static_cast<int>(cluster_rank()) + i * kClusterBlocks;
      const int split = index * call.per_split >> 16;  // index / tiles, for such small numbers
      const int tile = index - split * tiles, begin = split * kClusterDepth;
      piece[i] = {tile, split, begin, max(0, min(kClusterDepth, call.hidden - begin)),
                  min(kTileColumns, call.rank - tile * kTileColumns)};
    }
  }
};

// Of r', of the block: from its first column on.
__device__ __forceinline__ int count_columns(const AffineCall& call, const ClusterLayout& layout) {
  return max(0, min(layout.columns, call.hidden - static_cast<int>(cluster_rank()) * layout.columns));
}

struct ClusterBarriers {
  PhaseBarrier down, up;

  // By one thread; a __syncthreads() has to follow.
  __device__ __forceinline__ void init() {
    down.init(1);
    up.init(1);
    share_barriers();
  }
};

// Requests all that the block reads of the map, and nothing else, so that it need not wait for the launch ahead: by all
// threads, a row of a piece each, for one warp would start its copies one after the other.
template <int size>
__device__ __forceinline__ void request_map(const AffineCall& call, const ClusterLayout& layout, const Pieces& pieces,
                                            char* memory, ClusterBarriers& barriers) {
  static_assert(kClusterPieces == 2);
  const int up_bytes = count_columns(call, layout) * call.rank * size;
  if (threadIdx.x == 0) {
    int down_bytes = 0;
    for (const Piece& piece : pieces.piece) down_bytes += piece.rows * piece.depth * size;
    barriers.down.arrive_and_expect(static_cast<unsigned>(down_bytes));
    barriers.up.arrive_and_expect(static_cast<unsigned>(up_bytes));
  }
  const int segment = lane_id() * kWarps + warp_id(), row_of_piece = segment % kTileColumns;
  if (segment < kClusterPieces * kTileColumns) {
    const Piece piece = segment < kTileColumns ? pieces.piece[0] : pieces.piece[1];
    const std::int64_t row = piece.tile * kTileColumns + row_of_piece;
    if (row_of_piece < piece.rows && piece.depth > 0) {
      barriers.down.copy(memory + segment * layout.segment, call.down.data + (row * call.hidden + piece.begin) * size,
                         static_cast<unsigned>(piece.depth * size));
    }
  }
  if (threadIdx.x == kThreads - 1 && up_bytes > 0) {  // needed last, so behind its warp's rows
    const std::int64_t first = static_cast<std::int64_t>(cluster_rank()) * layout.columns;
    barriers.up.copy(memory + layout.up, call.up.data + first * call.rank * size, static_cast<unsigned>(up_bytes));
  }
}

// The lane's chunks at `k` of rows g and g + 8, which lie `pitch` bytes apart, as load_chunks() has them; zeros from
// row `rows` on, and from `limit` on along k.
template <class Product>
__device__ __forceinline__ Chunks shared_chunks(const char* first, int pitch, int rows, int k, int limit) {
  constexpr int size = 16 / Product::kChunk;
  Chunks chunks = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane_id() / 4 + 8 * half;
    if (row < rows && k < limit) chunks.rows[half] = *reinterpret_cast<const uint4*>(first + row * pitch + k * size);
  }
  return chunks;
}

}  // namespace incline_fast::cuda
