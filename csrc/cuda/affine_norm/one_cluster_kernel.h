// r' and its norm for a map up (down r) of low rank and up to 8 rows on sm_90 and later, by the sixteen blocks of one
// cluster: one_cluster.h. The sums, and the order in which they are added up, are those of low_rank_kernel.h, and so
// are the bits.
#pragma once

#include "one_cluster.h"

namespace incline_fast::cuda {

// Partial sums of down r: the block's pieces, into the shared memory of all blocks.
template <class Types, class Product>
struct ClusterPieces {
  static constexpr int kRounds = kClusterDepth / (kWarps * Product::kStep);
  typename Product::template Operand<RowSource<Types>> operands[kClusterPieces][kRounds][Product::kPieces][1];

  // Where a warp multiplies in a piece, within it.
  static __device__ __forceinline__ int step(int round) { return (round * kWarps + warp_id()) * Product::kStep; }

  // The rows' elements, before the map is waited for.
  __device__ __forceinline__ void request(const Pieces& pieces, const RowSource<Types>& source) {
#pragma unroll
    for (int i = 0; i < kClusterPieces; ++i) {
      const Piece& piece = pieces.piece[i];
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        if (step(round) >= piece.depth) break;
        const int k = piece.begin + step(round) + lane_id() % 4 * Product::kChunk;
#pragma unroll
        for (int part = 0; part < Product::kPieces; ++part) {
          Product::request(source, 0, k + part * Product::kPiece, operands[i][round][part]);
        }
      }
    }
  }

  // Once the map is there: every warp's sums.
  __device__ __forceinline__ void multiply(const Pieces& pieces, const RowSource<Types>& source, const char* down,
                                           int segment, WarpSums* shared) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < kClusterPieces; ++i) {
      const Piece& piece = pieces.piece[i];
      if (piece.depth == 0) break;
      const char* const first = down + i * kTileColumns * segment;
      typename Product::Sums sums[1];
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        if (step(round) >= piece.depth) break;
        const int k = step(round) + t * Product::kChunk;
        const auto columns = Product::columns(shared_chunks<Product>(first, segment, piece.rows, k, piece.depth));
#pragma unroll
        for (int part = 0; part < Product::kPieces; ++part) {
          Product::add(sums, columns, part, source, operands[i][round][part]);
        }
      }
      float d[4];
      Product::collect(sums[0], d);
      for (int j = 0; j < 4; ++j) shared[i].values[warp_id()][2 * t + j % 2][g + 8 * (j / 2)] = d[j];
    }
  }

  // After a barrier of the block, and once all blocks are there: the sums of the warps, to everybody.
  static __device__ __forceinline__ void hand_out(const AffineCall& call, const Pieces& pieces, const WarpSums* shared,
                                                  float* partial) {
    static_assert(kClusterPieces * kTileRows * kTileColumns == kThreads && kClusterPieces == 2);
    const int unit = static_cast<int>(threadIdx.x) / kTileColumns, row = unit % kTileRows;
    const Piece piece = unit < kTileRows ? pieces.piece[0] : pieces.piece[1];
    if (piece.depth == 0 || row >= call.num_rows) return;
    const int place = static_cast<int>(threadIdx.x) % kTileColumns, column = piece.tile * kTileColumns + place;
    const auto& values = shared[unit / kTileRows].values;
    float sum = values[0][row][place];
    for (int warp = 1; warp < kWarps; ++warp) sum += values[warp][row][place];
    if (call.down.scale != nullptr && column < call.rank) sum *= call.down.scale[column];
    float* const target = partial + (piece.split * call.num_rows + row) * inner_pitch(call.rank) + column;
#pragma unroll 4
    for (unsigned i = 0; i < kClusterBlocks; ++i) {
      store_to_block(target, (cluster_rank() + i) % kClusterBlocks, sum);  // not all to the same one at once
    }
  }
};

// down r of all rows, in shared memory. 4 floats more from row to row: eight lanes read from two rows without a bank
// conflict.
struct ClusterInner {
  static constexpr int kPitch = kClusterRank + 4;
  alignas(16) float values[kTileRows][kPitch];

  // Adds up the pieces, in order: up to four warps for each row.
  __device__ __forceinline__ void add_up(const AffineCall& call, const float* partial) {
    const int pitch = inner_pitch(call.rank), shift = call.num_rows > 4 ? 0 : call.num_rows > 2 ? 1 : 2;
    const int row = warp_id() >> shift, part = warp_id() - (row << shift);
    if (row >= call.num_rows) return;
    for (int column = lane_id() + 32 * part; column < pitch; column += 32 << shift) {
      float sum = 0.0f;
      for (int split = 0; split < call.splits; ++split) {
        sum += partial[(split * call.num_rows + row) * pitch + column];
      }
      values[row][column] = sum;
    }
  }
};

// A lane's part of down r as the tensor cores take it, once for all tiles of a warp: what Product::add() makes of it.
template <class Product>
struct InnerWords {
  static constexpr int kSteps = kClusterRank / Product::kStep;
  unsigned words[kSteps][Product::kPieces][3][Product::kPiece / 2] = {};

  __device__ __forceinline__ void load(const AffineCall& call, const ClusterInner& inner) {
    const int row = lane_id() / 4;
    if (row >= call.num_rows) return;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int piece = 0; piece < Product::kPieces; ++piece) {
        const int k = step * Product::kStep + lane_id() % 4 * Product::kChunk + piece * Product::kPiece;
        if (k >= inner_pitch(call.rank)) continue;
        float values[Product::kPiece];
#pragma unroll
        for (int i = 0; i < Product::kPiece; i += 4) {
          const float4 part = *reinterpret_cast<const float4*>(&inner.values[row][k + i]);
          values[i] = part.x, values[i + 1] = part.y, values[i + 2] = part.z, values[i + 3] = part.w;
        }
#pragma unroll
        for (int part = 0; part < 3; ++part) take_part(values, words[step][piece][part]);
      }
    }
  }
};

// The sum over the 16 columns of a tile of two rows' values in a lane: value[i] of column g and value[2 + i] of g + 8,
// by the same tree as sum_of_16().
__device__ __forceinline__ void sum_of_tile(const float (&values)[4], float (&sums)[2]) {
  for (int i = 0; i < 2; ++i) {
    float low = values[i], high = values[2 + i];
    for (int step = 4; step < 32; step *= 2) {
      low += __shfl_xor_sync(kAllLanes, low, step);
      high += __shfl_xor_sync(kAllLanes, high, step);
    }
    sums[i] = low + high;
  }
}

// The tiles of r' of a warp, every eighth of the block's. Of each a lane has rows 2 t and 2 t + 1 of columns g and
// g + 8, as the tensor core leaves them: element j is of row 2 t + j % 2 and of column g + 8 (j / 2).
template <class Types, class Product>
struct ClusterTiles {
  const AffineCall& call;
  int first_tile, tiles;  // of the block
  int pitch;              // of the moments
  // From the lane's first column on, so that all others lie at constant distances.
  Row x[2], residual[2], r[2], y[2];
  RawTerms<Types, 1> terms[kWarpTiles][4];
  Vectors<Types, 1> vectors[kWarpTiles][2];
  Edit strengths[2];
  float values[kWarpTiles][4];

  static __device__ __forceinline__ int row(int j) { return lane_id() % 4 * 2 + j % 2; }
  static __device__ __forceinline__ int place(int j) { return lane_id() / 4 + 8 * (j / 2); }
  static __device__ __forceinline__ int distance(int i, int j) { return i * kWarps * kTileColumns + 8 * (j / 2); }
  static __device__ __forceinline__ int tile(int i) { return warp_id() + i * kWarps; }  // within the block
  __device__ __forceinline__ bool here(int i) const { return tile(i) < tiles; }
  __device__ __forceinline__ bool is_row(int j) const { return row(j) < call.num_rows; }
  __device__ __forceinline__ int first_column() const { return (first_tile + tile(0)) * kTileColumns + place(0); }

  __device__ __forceinline__ ClusterTiles(const AffineCall& call, const ClusterLayout& layout)
      : call(call),
        first_tile(static_cast<int>(cluster_rank()) * layout.columns / kTileColumns),
        tiles(count_columns(call, layout) / kTileColumns),
        pitch(layout.moments) {
    const auto at = [&](const RowView& view, int j) {
      return Types::of(row_at(view, Types::offset(view, call.first_row + row(j)) + first_column()));
    };
    for (int j = 0; j < 2; ++j) {
      x[j] = at(call.x, j), r[j] = at(call.edited, j), y[j] = at(call.y, j);
      if (Types::has_residual(call)) residual[j] = at(call.residual, j);
    }
  }

  // What the product will be joined with; `columns` are the block's, for a barrier of the block to follow.
  __device__ __forceinline__ void request(ColumnEdit* columns) {
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) {
      if (!here(i)) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (!is_row(j)) continue;
        terms[i][j].x = Types::template request<1>(call, x[j % 2], distance(i, j));
        if (!Types::has_residual(call)) continue;
        terms[i][j].residual = Types::template request<1>(call, residual[j % 2], distance(i, j));
      }
    }
    // These are waited for, to be widened.
    for (int i = static_cast<int>(threadIdx.x); i < tiles * kTileColumns; i += kThreads) {
      columns[i] = ColumnEdit::request(call, 0, first_tile * kTileColumns + i);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (is_row(j)) strengths[j] = strengths_of(call, call.first_row + row(j));
    }
  }

  __device__ __forceinline__ void request_vectors() {
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) {
      if (!here(i)) break;
      for (int half = 0; half < 2; ++half) {
        vectors[i][half] = Vectors<Types, 1>::request(call, first_column() + distance(i, 2 * half));
      }
    }
  }

  // up (down r) of a tile. In low_rank_kernel every step along k is another warp's, and there are at most eight.
  __device__ __forceinline__ void multiply(int i, const char* up, const InnerWords<Product>& inner,
                                           float (&sums)[4]) const {
    static_assert(kClusterRank <= kWarps * Product::kStep);
    constexpr int size = 16 / Product::kChunk;
    const int pitch = call.rank * size;
    const char* const first = up + tile(i) * kTileColumns * pitch;
#pragma unroll
    for (int step = 0; step < InnerWords<Product>::kSteps; ++step) {
      if (step * Product::kStep >= call.rank) break;
      const int k = step * Product::kStep + lane_id() % 4 * Product::kChunk;
      const int rows = here(i) ? kTileColumns : 0;
      const auto columns = Product::columns(shared_chunks<Product>(first, pitch, rows, k, call.rank));
      typename Product::Sums part;
#pragma unroll
      for (int piece = 0; piece < Product::kPieces; ++piece) {
        for (const auto& words : inner.words[step][piece]) Product::multiply(part, columns, piece, words);
      }
      float d[4];
      Product::collect(part, d);
      for (int j = 0; j < 4; ++j) sums[j] = step == 0 ? d[j] : sums[j] + d[j];
    }
    // The sums of the warps that have no step: of -0 they make 0.
    if (call.rank <= (kWarps - 1) * Product::kStep) {
      for (float& sum : sums) sum += 0.0f;
    }
  }

  // r' of a tile, rounded.
  __device__ __forceinline__ void edit(int i, const ColumnEdit* columns, const float (&products)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const ColumnEdit& column = columns[tile(i) * kTileColumns + place(j)];
      const Edit edit = {strengths[j % 2].alpha, strengths[j % 2].beta, column.scale, column.bias};
      float summed[1];
      terms[i][j].widen_to(call, summed);
      values[i][j] = is_row(j) ? round_to(Types::dtype(call.edited.first), edit(summed[0], products[j])) : 0.0f;
    }
  }

  // The moments of a tile, to all blocks: a lane to two of them.
  __device__ __forceinline__ void hand_out(int i, Moments* moments) const {
    float means[2], deviations[2], squares[4];
    sum_of_tile(values[i], means);
    for (float& mean : means) mean *= 1.0f / kTileColumns;
    for (int j = 0; j < 4; ++j) squares[j] = (values[i][j] - means[j % 2]) * (values[i][j] - means[j % 2]);
    sum_of_tile(squares, deviations);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (!is_row(j) || !here(i)) continue;
      Moments* const target = moments + row(j) * pitch + first_tile + tile(i);
      store_to_block(target, static_cast<unsigned>(place(j)), Moments{means[j % 2], deviations[j % 2]});
    }
  }

  __device__ __forceinline__ void edit_all(const char* up, const ClusterInner& inner, const ColumnEdit* columns,
                                           Moments* moments) {
    InnerWords<Product> words;
    words.load(call, inner);
    // Two by two, so that neither waits for the other.
#pragma unroll
    for (int i = 0; i < kWarpTiles; i += 2) {
      if (!here(i)) break;
      float products[2][4];
      multiply(i, up, words, products[0]);
      multiply(i + 1, up, words, products[1]);
      edit(i, columns, products[0]);
      edit(i + 1, columns, products[1]);
      hand_out(i, moments);
      hand_out(i + 1, moments);
    }
  }

  // r' to its place, which may be that of x or of the residual. A barrier of the cluster would wait for stores that are
  // under way.
  __device__ __forceinline__ void store() const {
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) {
      if (!here(i)) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (is_row(j)) store_element(r[j % 2], distance(i, j), values[i][j]);
      }
    }
  }

  __device__ __forceinline__ void normalise(const Statistics (&stats)[kTileRows]) const {
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) {
      if (!here(i)) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float value[1] = {values[i][j]};
        if (is_row(j)) vectors[i][j / 2].store_normed(call, y[j % 2], stats[row(j)], distance(i, j), value);
      }
    }
  }
};

template <class Types, class Inner, class Outer>
__device__ __forceinline__ void edit_and_normalise_in_cluster(const AffineCall& call) {
  constexpr int size = 16 / Inner::kChunk;
  __shared__ ClusterBarriers barriers;
  __shared__ Group group;
  __shared__ ColumnEdit columns[kWarpTiles * kWarps * kTileColumns];
  __shared__ ClusterInner inner;
  __shared__ Statistics stats[kTileRows];
  DYNAMIC_SHARED(char, memory);
  if (call.programmatic) allow_next_launch();
  cluster_arrive();
  const ClusterLayout layout(call, size);
  const Pieces pieces(call);
  WarpSums* const sums = reinterpret_cast<WarpSums*>(memory + layout.sums);
  float* const partial = reinterpret_cast<float*>(memory + layout.partial);
  Moments* const moments = reinterpret_cast<Moments*>(memory);
  list_all_rows<Types>(call, group);
  if (threadIdx.x == 0) barriers.init();
  __syncthreads();
  request_map<size>(call, layout, pieces, memory, barriers);
  wait_for_previous_launch();
  const RowSource<Types> source{call, group};
  ClusterPieces<Types, Inner> down;
  ClusterTiles<Types, Outer> tiles(call, layout);
  down.request(pieces, source);
  tiles.request(columns);
  barriers.down.wait(0);
  down.multiply(pieces, source, memory, layout.segment, sums);
  __syncthreads();
  cluster_wait();  // all blocks have started
  down.hand_out(call, pieces, sums, partial);
  cluster_arrive();
  tiles.request_vectors();
  cluster_wait();  // all of down r is here, and nobody reads the rows as a whole, or `down`, any more
  inner.add_up(call, partial);
  barriers.up.wait(0);
  __syncthreads();
  tiles.edit_all(memory + layout.up, inner, columns, moments);
  cluster_arrive();
  tiles.store();
  cluster_wait();  // the moments are here, and nothing more is stored to this block
  if (warp_id() < call.num_rows) {
    const Moments* const row = moments + warp_id() * layout.moments;
    const Statistics found = statistics_of_warp(call, [&](int tile) { return row[tile]; });
    if (lane_id() == 0) stats[warp_id()] = found;
  }
  __syncthreads();
  tiles.normalise(stats);
}

// One block to a multiprocessor: the launch has sixteen.
template <class Types, class Inner, class Outer>
__global__ void __launch_bounds__(kThreads, 1) one_cluster_kernel(const __grid_constant__ AffineCall call) {
  if constexpr (kHasBulkCopies) {
    edit_and_normalise_in_cluster<Types, Inner, Outer>(call);
  } else {
    __trap();
  }
}

}  // namespace incline_fast::cuda
