// A ring buffer that bulk copies fill, right and wrong in one respect each, and what is wrong by itself.
#include "cuda/arch/bulk_copy.h"

using incline_fast::cuda::PhaseBarrier;
using incline_fast::cuda::share_barriers;

namespace {

constexpr int kStages = 3;
constexpr int kConsumers = 64;                        // threads of the consuming warps; one warp more produces
constexpr int kRow = kConsumers;                      // floats that fill a stage
constexpr unsigned kHalf = kRow / 2 * sizeof(float);  // a stage is filled by two copies

enum class Variant : int {
  // Right.
  kUsual,
  kOneLaneWaits,
  kAllArrive,
  kProducerReads,
  // The producer.
  kNoEmptyWait,
  kEmptyParity,
  kNoAnnounce,
  kHalfAnnounced,
  kNoCopy,
  kCopyTwice,
  kArriveTwice,
  kWriteSource,
  // The consumers.
  kNoFullWait,
  kFullParity,
  kOneWaits,
  kNoArrival,
  kArriveFirst,
  kNoWarpBarrier,
  kReadAfterArrival,
  // The barriers.
  kNotShown,
  kShownByAnother,
  kShownLate,
  kNoBlockBarrier,
  kReadAsData,
  kWrittenAsData,
};

struct Ring {
  float rows[kStages][kRow];
  PhaseBarrier full[kStages];
  PhaseBarrier empty[kStages];
};

__device__ bool all_arrive(Variant variant) {
  return variant == Variant::kAllArrive || variant == Variant::kReadAfterArrival;
}

__device__ void prepare(Ring& ring, Variant variant) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; stage++) {
      ring.full[stage].init(1);
      ring.empty[stage].init(all_arrive(variant) ? kConsumers : kConsumers / 32);
    }
    if (variant != Variant::kNotShown && variant != Variant::kShownByAnother && variant != Variant::kShownLate)
      share_barriers();
  }
  if (threadIdx.x == 40 && variant == Variant::kReadAsData) ring.rows[0][0] = static_cast<float>(ring.full[0].state);
  if (threadIdx.x == 1 && variant == Variant::kShownByAnother) share_barriers();
  if (variant != Variant::kNoBlockBarrier) __syncthreads();
  if (threadIdx.x == 0 && variant == Variant::kShownLate) share_barriers();
}

// By one thread: row after row of x into the stages.
__device__ void produce(Ring& ring, float* x, int rows, Variant variant) {
  for (int row = 0; row < rows; row++) {
    const int stage = row % kStages;
    const unsigned turn = static_cast<unsigned>(row / kStages);
    PhaseBarrier& full = ring.full[stage];
    if (variant != Variant::kNoEmptyWait) ring.empty[stage].wait(variant == Variant::kEmptyParity ? 1 : turn % 2 ^ 1);
    if (variant == Variant::kProducerReads && ring.rows[stage][0] == 0) return;
    if (variant == Variant::kNoAnnounce) {
      full.arrive();
    } else {
      full.arrive_and_expect(variant == Variant::kHalfAnnounced ? kHalf : 2 * kHalf);
    }
    if (variant == Variant::kArriveTwice) full.arrive();
    full.copy(ring.rows[stage], x + row * kRow, kHalf);
    if (variant == Variant::kNoCopy && row == rows - 1) continue;
    full.copy(ring.rows[stage] + kRow / 2, x + row * kRow + kRow / 2, kHalf);
    if (variant == Variant::kCopyTwice) full.copy(ring.rows[stage], x + row * kRow, kHalf);
    if (variant == Variant::kWriteSource) x[row * kRow] = 0;
  }
}

// y becomes x with every row reversed.
__device__ void consume(Ring& ring, float* y, int rows, Variant variant) {
  const int me = static_cast<int>(threadIdx.x) % kConsumers;
  for (int row = 0; row < rows; row++) {
    const int stage = row % kStages;
    const unsigned turn = static_cast<unsigned>(row / kStages);
    const bool one_waits = variant == Variant::kOneWaits || variant == Variant::kOneLaneWaits;
    const bool waits = variant != Variant::kNoFullWait && (!one_waits || me % 32 == 0);
    if (waits) ring.full[stage].wait(variant == Variant::kFullParity ? 0 : turn % 2);
    if (variant == Variant::kOneLaneWaits) __syncwarp();
    if (variant == Variant::kWrittenAsData && me == 0) ring.full[stage].state = 0;
    const bool arrives = all_arrive(variant) || (me % 32 == 0 && variant != Variant::kNoArrival);
    if (variant == Variant::kArriveFirst && arrives) ring.empty[stage].arrive();
    y[row * kRow + me] = ring.rows[stage][kRow - 1 - me];
    if (variant != Variant::kNoWarpBarrier && !all_arrive(variant)) __syncwarp();
    if (variant != Variant::kArriveFirst && arrives) ring.empty[stage].arrive();
    if (variant == Variant::kReadAfterArrival) y[row * kRow + me] += ring.rows[stage][kRow - 1 - me];
  }
}

}  // namespace

extern "C" {

// `rows` rows for each block. The producer is the last warp's first thread, or the first warp's.
__global__ void ring_buffer(float* x, float* y, int rows, bool producer_first, Variant variant) {
  __shared__ __align__(16) Ring ring;
  prepare(ring, variant);
  const int first = static_cast<int>(blockIdx.x) * rows * kRow, warp = static_cast<int>(threadIdx.x) / 32;
  if (warp == (producer_first ? 0 : kConsumers / 32)) {
    if (threadIdx.x % 32 == 0) produce(ring, x + first, rows, variant);
  } else {
    consume(ring, y + first, rows, variant);
  }
}

// Thread 0 starts a copy over the same numbers; the first `waiting` threads wait before they read, the others
// afterwards.
__global__ void read_early(const float* x, float* y, int waiting) {
  __shared__ __align__(16) float row[kRow];
  __shared__ PhaseBarrier arrived;
  const int me = static_cast<int>(threadIdx.x);
  row[me] = x[me];
  if (me == 0) {
    arrived.init(1);
    share_barriers();
  }
  __syncthreads();
  if (me == 0) {
    arrived.copy(row, x, 2 * kHalf);
    arrived.arrive_and_expect(2 * kHalf);
  }
  __syncthreads();
  if (me < waiting) arrived.wait(0);
  y[me] = row[me];
  arrived.wait(0);
}

// Every lane of the second warp copies its part; one announces them all. The others announce nothing, or arrive at all.
__global__ void copy_together(const float* x, float* y, bool announced_first) {
  __shared__ __align__(16) float row[4 * 32];
  __shared__ PhaseBarrier arrived;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    arrived.init(announced_first ? 1 : 32);
    share_barriers();
  }
  __syncthreads();
  if (threadIdx.x >= 32) {
    if (lane == 0 && announced_first) arrived.arrive_and_expect(sizeof row);
    if (announced_first) __syncwarp();
    arrived.copy(row + 4 * lane, x + 4 * lane, 16);
    if (lane == 0 && !announced_first) arrived.arrive_and_expect(sizeof row);
    if (lane != 0 && !announced_first) arrived.arrive();
  }
  arrived.wait(0);
  y[threadIdx.x] = row[threadIdx.x] + row[64 + threadIdx.x];
}

// Two copies; the thread that waits for the first says later that it has seen it, the other one says whether it knew.
__global__ void land_apart(const float* x, unsigned* seen) {
  __shared__ __align__(16) float rows[2][4];
  __shared__ PhaseBarrier arrived[2], other;
  if (threadIdx.x == 0) {
    other.init(1);
    for (int i = 0; i < 2; i++) arrived[i].init(1);
    share_barriers();
    for (int i = 0; i < 2; i++) {
      arrived[i].arrive_and_expect(16);
      arrived[i].copy(rows[i], x, 16);
    }
  }
  __syncthreads();
  arrived[threadIdx.x].wait(0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 20; i++) other.arrive();
    atomicExch(&seen[0], 1u);
  } else {
    seen[1] = atomicAdd(&seen[0], 0u);
  }
}

// One thread arrives again and again. The other waits afterwards, or has gone to sleep before.
__global__ void count_phases(int phases, int parity, bool before) {
  __shared__ PhaseBarrier counted;
  if (threadIdx.x == 0) counted.init(1);
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; before && i < 40; i++) __nanosleep(1);
    for (int phase = 0; phase < phases; phase++) counted.arrive();
  }
  if (!before) __syncthreads();
  if (threadIdx.x == 1) counted.wait(static_cast<unsigned>(parity));
}

// A thread waits for a copy, which perhaps nobody starts; the other one in a loop for what the first does next.
__global__ void wait_for_a_waiting_thread(const float* x, unsigned* flag, bool started) {
  __shared__ __align__(16) float row[16];
  __shared__ PhaseBarrier arrived;
  if (threadIdx.x == 1) {
    arrived.init(1);
    share_barriers();
    arrived.arrive_and_expect(sizeof row);
    if (started) arrived.copy(row, x, sizeof row);
    arrived.wait(0);
    atomicExch(flag, 1u);
  } else {
    while (atomicAdd(flag, 0u) == 0) {
    }
  }
}

enum class Misuse : int {
  kNone,
  kTargetMisaligned,
  kSourceMisaligned,
  kBytesMisaligned,
  kNoBytes,
  kTargetBeyond,
  kTargetGlobal,
  kSourceShared,
  kTargetIsBarrier,
  kTooManyBytes,
  kNoArrivals,
  kTooManyArrivals,
  kParity,
  kTwice,
  kNeverInitialised,
  kCopiedBarrier,
  kGlobalBarrier,
  kEndsEarly,
};

// One thread copies four numbers of x to shared memory and adds 1 to them on their way back.
__global__ void misuse(float* x, Misuse fault) {
  struct Memory {
    float row[8];
    PhaseBarrier arrived;
    PhaseBarrier other;
  };
  DYNAMIC_SHARED(Memory, memory);
  PhaseBarrier *initialised = &memory->arrived, *used = &memory->arrived;
  float* target = memory->row;
  const float* source = x;
  unsigned bytes = 16, arrivals = 1, parity = 0;
  if (fault == Misuse::kTargetMisaligned) target += 1;
  if (fault == Misuse::kSourceMisaligned) source += 1;
  if (fault == Misuse::kBytesMisaligned) bytes = 8;
  if (fault == Misuse::kNoBytes) bytes = 0;
  if (fault == Misuse::kTargetBeyond) target += 8, bytes = 32;
  if (fault == Misuse::kTargetGlobal) target = x + 4;
  if (fault == Misuse::kSourceShared) source = memory->row + 4;
  if (fault == Misuse::kTargetIsBarrier) target += 8;
  if (fault == Misuse::kNoArrivals) arrivals = 0;
  if (fault == Misuse::kTooManyArrivals) arrivals = 1 << 20;
  if (fault == Misuse::kParity) parity = 2;
  if (fault == Misuse::kNeverInitialised || fault == Misuse::kCopiedBarrier) used = &memory->other;
  if (fault == Misuse::kGlobalBarrier) initialised = used = reinterpret_cast<PhaseBarrier*>(x + 4);

  initialised->init(arrivals);
  if (fault == Misuse::kTwice) initialised->init(arrivals);
  share_barriers();
  if (fault == Misuse::kCopiedBarrier) *used = *initialised;
  used->arrive_and_expect(fault == Misuse::kTooManyBytes ? 1 << 20 : bytes);
  used->copy(target, source, bytes);
  if (fault == Misuse::kEndsEarly) return;
  used->wait(parity);
  for (int i = 0; i < 4; i++) x[i] = target[i] + 1;
}

#if defined(INCLINE_FAST_EMULATED)
void run_ring_buffer(float* x, float* y, int blocks, int rows, bool producer_first, int variant) {
  LAUNCH(ring_buffer, blocks, kConsumers + 32, 0, nullptr, x, y, rows, producer_first, static_cast<Variant>(variant));
}
void run_read_early(const float* x, float* y, int waiting) { LAUNCH(read_early, 1, kRow, 0, nullptr, x, y, waiting); }
void run_copy_together(const float* x, float* y, bool announced_first) {
  LAUNCH(copy_together, 1, 64, 0, nullptr, x, y, announced_first);
}
void run_land_apart(const float* x, unsigned* seen) { LAUNCH(land_apart, 1, 2, 0, nullptr, x, seen); }
void run_count_phases(int phases, int parity, bool before) {
  LAUNCH(count_phases, 1, 2, 0, nullptr, phases, parity, before);
}
void run_wait_for_a_waiting_thread(const float* x, unsigned* flag, bool started) {
  LAUNCH(wait_for_a_waiting_thread, 1, 2, 0, nullptr, x, flag, started);
}
void run_misuse(float* x, int fault) { LAUNCH(misuse, 1, 1, 48, nullptr, x, static_cast<Misuse>(fault)); }
#endif
}
