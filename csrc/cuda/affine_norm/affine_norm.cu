#include <algorithm>
#include <map>
#include <set>

#include "affine_norm.h"
#include "one_cluster.h"
#include "plan.h"
#include "ring.h"

namespace incline_fast::cuda {
namespace {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::string message;
  ((message += parts), ...);
  throw std::invalid_argument(message);
}

bool aligned(const void* data, std::int64_t bytes = 0) {
  return (reinterpret_cast<std::uintptr_t>(data) | static_cast<std::uintptr_t>(bytes)) % 16 == 0;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

RowView view(const char* name, const Rows& rows) {
  RowView view;
  if (rows.data == nullptr) return view;
  if (rows.dtype == DType::kFloat64) refuse(name, " has dtype float64; allowed on CUDA: float32, bfloat16, float16");
  const std::int64_t last = rows.ndim - 1;
  view.leading = merge_leading(name, last, rows.sizes, rows.strides);
  bool wide = aligned(rows.data) && (rows.strides[last] == 1 || rows.sizes[last] == 1);
  for (int i = 0; i < view.leading.count; ++i) {
    wide = wide && view.leading.strides[i] * bytes_of(rows.dtype) % 16 == 0;
  }
  view.first = {static_cast<char*>(rows.data), rows.strides[last], rows.dtype, wide};
  return view;
}

// A vector, or the first one of a matrix of them.
Row row(const Rows& rows) {
  if (rows.data == nullptr) return {};
  const std::int64_t stride = rows.strides[rows.ndim - 1];
  bool wide = stride == 1 && aligned(rows.data) && rows.dtype != DType::kFloat64;
  if (rows.ndim == 2) wide = wide && rows.strides[0] * bytes_of(rows.dtype) % 16 == 0;
  return {static_cast<char*>(rows.data), stride, rows.dtype, wide};
}

MapView map_view(const char* name, const Maps& maps, std::int64_t num_maps) {
  if (maps.data == nullptr) return {};
  if (maps.dtype == DType::kFloat64) {
    refuse(name, " has dtype float64; allowed on CUDA: float32, bfloat16, float16, int8");
  }
  if (maps.packed) refuse(name, " is packed in the CPU's panel layout; on CUDA pass [G, columns, depth]");
  const bool contiguous = (maps.depth == 1 || maps.depth_stride == 1) &&
                          (maps.columns == 1 || maps.column_stride == maps.depth) &&
                          (num_maps == 1 || maps.map_stride == maps.columns * maps.depth);
  if (!contiguous) {
    refuse(name, " is not contiguous; pass ", name, ".contiguous()");
  }
  const bool wide = aligned(maps.data, maps.depth * bytes_of(maps.dtype));
  return {static_cast<const char*>(maps.data), maps.scale, maps.columns, maps.depth, wide};
}

// Everything but the rows of one launch and the workspace.
AffineCall describe(const AffineNorm& op, bool programmatic) {
  constexpr std::int64_t largest = 1 << 24;  // columns and depths are ints on the device, products of them are not
  if (op.hidden_size > largest) {
    refuse("x has hidden size ", std::to_string(op.hidden_size), "; allowed on CUDA: up to ", std::to_string(largest));
  }
  AffineCall call;
  call.norm = op.norm;
  call.programmatic = programmatic;
  call.hidden = static_cast<int>(op.hidden_size);
  call.num_maps = static_cast<int>(op.num_maps);
  call.tiles = static_cast<int>(ceil_div(op.hidden_size, kTileColumns));
  call.x = view("x", op.x);
  call.residual = view("residual", op.residual);
  call.edited = view("edited", op.edited);
  call.y = view("y", op.y);
  call.weight = row(op.weight);
  call.norm_bias = row(op.norm_bias);
  call.bias = row(op.bias);
  call.bias_stride = op.bias.ndim == 2 ? op.bias.strides[0] : 0;
  call.row_alpha = row(op.row_alpha);
  call.row_beta = row(op.row_beta);
  call.row_map = op.row_map;
  call.row_map_stride = op.row_map_stride;
  call.alpha = static_cast<float>(op.alpha);
  call.beta = static_cast<float>(op.beta);
  call.eps = static_cast<float>(op.eps);
  call.weight_offset = static_cast<float>(op.weight_offset);
  call.inverse_hidden = 1.0f / static_cast<float>(op.hidden_size);
  call.last_inverse = 1.0f / static_cast<float>(op.hidden_size - (call.tiles - 1) * kTileColumns);
  return call;
}

// The workspace of a launch of `rows` rows: slots, moments, early, inner; in bytes, all multiples of 16.
struct Layout {
  std::int64_t slots, moments, early, inner;

  Layout(const AffineNorm& op, std::int64_t rows) {
    const std::int64_t tiles = ceil_div(op.hidden_size, kTileColumns);
    slots = rows * tiles * kTileColumns * static_cast<std::int64_t>(sizeof(float));
    moments = ceil_div(rows * tiles * static_cast<std::int64_t>(sizeof(Moments)), 16) * 16;
    early = 16;
    const std::int64_t rank = op.down.data == nullptr ? 0 : op.down.columns;
    const std::int64_t pieces = ceil_div(op.hidden_size, piece_depth(rank));
    inner = pieces * rows * ceil_div(rank, kTileColumns) * kTileColumns * static_cast<std::int64_t>(sizeof(float));
  }
};

// A block of a GPU's hundred and some multiprocessors has one tile of columns as long as there are no more than these.
constexpr int kManyTiles = 128;

// The launch of ring_kernel, if it serves the call; its kernel is null otherwise.
Launch ring(const AffineNorm& op, const AffineCall& shared) {
  AffineCall call = shared;
  // int8 maps leave registers for two tiles of columns or of rows, but not for both.
  const bool narrow = op.up.dtype == DType::kInt8 && call.num_rows > kTileRows;
  const int column_tiles = call.tiles > kManyTiles && !narrow ? 2 : 1;
  const std::int64_t blocks = ceil_div(call.tiles, column_tiles);
  const bool serves = op.down.data == nullptr && op.row_map == nullptr && call.num_rows <= kMaxRingRows && call.up.wide;
  if (!serves) return {};
  call.stages = ring_stages(column_tiles, op.hidden_size * bytes_of(op.up.dtype));
  // A slot has room for the sums of its columns, of two row tiles as well.
  static_assert(slot_bytes(1) >= 2 * static_cast<int>(sizeof(WarpSums)));
  const std::int64_t bytes = call.stages * static_cast<std::int64_t>(slot_bytes(column_tiles));
  return {ring_kernel_for(call, op.up.dtype, column_tiles), dim3(static_cast<unsigned>(blocks)), bytes, call,
          kRingThreads};
}

// The rank and the pieces of down r.
void describe_low_rank(const AffineNorm& op, AffineCall& call) {
  call.rank = static_cast<int>(op.down.columns);
  call.splits = static_cast<int>(ceil_div(op.hidden_size, piece_depth(call.rank)));
}

// The launch of one_cluster_kernel, likewise.
Launch one_cluster(const AffineNorm& op, const AffineCall& shared) {
  if (op.down.data == nullptr || op.row_map != nullptr || !shared.up.wide) return {};
  AffineCall call = shared;
  if (op.down.columns > kClusterRank) return {};
  describe_low_rank(op, call);
  const int tiles = inner_pitch(call.rank) / kTileColumns;
  call.per_split = (65536 + tiles - 1) / tiles;
  const ClusterLayout layout(call, bytes_of(op.up.dtype));
  if (!layout.serves(call)) return {};
  return {
      one_cluster_kernel_for(call, op.up.dtype), dim3(kClusterBlocks), layout.bytes, call, kThreads, kClusterBlocks};
}

// The launch by what the device has, if there is one for the call; its kernel is null otherwise.
Launch with_features(const AffineNorm& op, const AffineCall& call, const Features& features) {
  if (features.clusters && op.down.data != nullptr) return one_cluster(op, call);
  if (features.bulk_copies) return ring(op, call);
  return {};
}

Launch decode(const AffineNorm& op, const Workspace& workspace, const AffineCall& shared, std::int64_t first,
              const Features& features) {
  AffineCall call = shared;
  call.first_row = first;
  call.num_rows = static_cast<int>(std::min<std::int64_t>(kMaxRows, op.num_rows - first));
  call.groups = op.row_map == nullptr ? 1 : std::min(call.num_maps, call.num_rows);
  const Layout layout(op, call.num_rows);
  char* const data = static_cast<char*>(workspace.data);
  call.slots = reinterpret_cast<float*>(data);
  call.moments = reinterpret_cast<Moments*>(data + layout.slots);
  call.early = reinterpret_cast<unsigned*>(data + layout.slots + layout.moments);
  call.inner = reinterpret_cast<float*>(data + layout.slots + layout.moments + layout.early);
  call.tickets = workspace.tickets;
  const Launch launch = with_features(op, call, features);
  if (launch.kernel != nullptr) return launch;
  if (op.down.data == nullptr) {
    const dim3 grid(static_cast<unsigned>(call.tiles), static_cast<unsigned>(call.groups));
    return {dense_kernel_for(call, op.up.dtype), grid, 0, call};
  }
  describe_low_rank(op, call);
  return {low_rank_kernel_for(call, op.up.dtype), dim3(count_inner(call) + count_outer(call)), 0, call};
}

}  // namespace

std::int64_t workspace_bytes(const AffineNorm& op) {
  const Layout layout(op, std::min<std::int64_t>(kMaxRows, op.num_rows));
  return layout.slots + layout.moments + layout.early + layout.inner;
}

bool has_kernel_with(const Features& features, const AffineNorm& op) {
  if (op.num_rows == 0) return false;
  AffineCall call = describe(op, false);
  call.up = map_view("up", op.up, op.num_maps);
  call.down = map_view("down", op.down, op.num_maps);
  call.num_rows = static_cast<int>(std::min<std::int64_t>(kMaxRows, op.num_rows));
  return with_features(op, call, features).kernel != nullptr;
}

void check_maps(const AffineNorm& op) {
  map_view("up", op.up, op.num_maps);
  map_view("down", op.down, op.num_maps);
}

std::vector<Launch> plan(const AffineNorm& op, const Workspace& workspace, bool programmatic,
                         const Features& features) {
  std::vector<Launch> launches;
  if (op.num_rows == 0) return launches;
  if (workspace.data == nullptr || !aligned(workspace.data)) {
    refuse("workspace.data is ", workspace.data == nullptr ? "null" : "misaligned", "; expected memory aligned to 16");
  }
  if (workspace.tickets == nullptr) refuse("workspace.tickets is null; expected counters at zero");
  AffineCall shared = describe(op, programmatic);
  shared.up = map_view("up", op.up, op.num_maps);
  shared.down = map_view("down", op.down, op.num_maps);
  for (std::int64_t first = 0; first < op.num_rows; first += kMaxRows) {
    launches.push_back(decode(op, workspace, shared, first, features));
  }
  return launches;
}

std::vector<Launch> plan_epilogue(const AffineNorm& op, const Rows& mapped, bool programmatic) {
  if (op.num_rows == 0) return {};
  AffineCall call = describe(op, programmatic);
  call.mapped = view("mapped", mapped);
  return {epilogue(call, op.num_rows)};
}

namespace {

constexpr double kFastMemory = 4.0;  // TB/s: between an H100 and an H200

struct Device {
  int number = -1;
  bool sm_90_code = false;
  Features features;
  std::set<Kernel> told;  // how much dynamic shared memory they may have, and how large their clusters may be
};

// What a kernel may have at most is the kernel's and not the launch's: the same for all of them, whatever thread sets
// it when. Unless it is set, 48 KB less the kernel's static shared memory, and clusters of eight.
void allow(Kernel kernel, std::int64_t dynamic_bytes, unsigned cluster) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  const auto bytes = static_cast<int>(std::max<std::int64_t>(dynamic_bytes, kRingBytes));
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "shared memory of a kernel of affine_norm");
  if (cluster <= 8) return;
  check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cluster of a kernel of affine_norm");
}

// Whether a cluster finds sixteen multiprocessors that can be one: in a part of a device there may be none, or even the
// question be an error, which is none of the call's.
bool has_place_for_cluster() {
  AffineCall call;
  call.down.wide = call.up.wide = true;
  const Kernel kernel = one_cluster_kernel_for(call, DType::kBFloat16);
  if (kernel == nullptr) throw std::logic_error("there is no kernel for one cluster");
  allow(kernel, kRingBytes, kClusterBlocks);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kClusterBlocks, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kClusterBlocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kRingBytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const auto* const function = reinterpret_cast<const void*>(kernel);
  if (cudaOccupancyMaxActiveClusters(&clusters, function, &config) == cudaSuccess) return clusters > 0;
  (void)cudaGetLastError();
  return false;
}

// In TB/s, twice its clock times its width; 0 if the driver does not say.
double memory_bandwidth(int device) {
  int khz = 0, bits = 0;
  const bool known = cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, device) == cudaSuccess;
  if (!known) (void)cudaGetLastError();
  return known ? 2e3 * khz * (bits / 8) / 1e12 : 0.0;
}

// Every block reads all rows from L2, which weighs the more the sooner memory has brought the map: on an H100 less than
// the pair's second launch, on an H200 more from ten rows on.
int ring_rows(double bandwidth) { return bandwidth > 0.0 && bandwidth < kFastMemory ? kMaxRingRows : 9; }

// The current device, asked once a thread. Its architecture does not tell what code it runs, which may have been
// compiled for an older one; all kernels are compiled for the same ones. Nor are later ones larger: of compute
// capability 12 a block has 99 KB of shared memory at most.
Device& current_device() {
  thread_local std::map<int, Device> known;
  int number = 0;
  check(cudaGetDevice(&number), "current device");
  Device& device = known[number];
  if (device.number == number) return device;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(dense_kernel_for({}, DType::kFloat32))),
        "attributes of a kernel");
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, number), "shared memory of a block");
  device.sm_90_code = attributes.ptxVersion >= 90;
  device.features.bulk_copies = device.sm_90_code && bytes >= kRingBytes + (8 << 10);
  device.features.ring_rows = ring_rows(memory_bandwidth(number));
  device.features.clusters = device.features.bulk_copies && has_place_for_cluster();
  device.number = number;
  return device;
}

void allow_once(Device& device, const Launch& launch) {
  if (launch.dynamic_bytes == 0) return;
  if (launch.dynamic_bytes <= kRingBytes && !device.told.insert(launch.kernel).second) return;
  allow(launch.kernel, launch.dynamic_bytes, launch.cluster);
}

}  // namespace

Features features() { return current_device().features; }

void run(const std::vector<Launch>& launches, void* cuda_stream) {
  if (launches.empty()) return;
  Device& device = current_device();
  for (const Launch& launch : launches) {
    allow_once(device, launch);
    const auto bytes = static_cast<std::size_t>(launch.dynamic_bytes);
    const auto threads = static_cast<unsigned>(launch.threads);
    const auto stream = static_cast<cudaStream_t>(cuda_stream);
    const bool programmatic = launch.call.programmatic && device.sm_90_code;
    if (launch.cluster > 1) {
      LAUNCH_CLUSTER(launch.cluster, programmatic, launch.kernel, launch.grid, dim3(threads), bytes, stream,
                     launch.call);
    } else if (programmatic) {
      LAUNCH_PROGRAMMATIC(launch.kernel, launch.grid, dim3(threads), bytes, stream, launch.call);
    } else {
      LAUNCH(launch.kernel, launch.grid, dim3(threads), bytes, stream, launch.call);
    }
    check(cudaGetLastError(), "launch of a kernel of affine_norm");
  }
}

void affine_norm(const AffineNorm& op, const Workspace& workspace, void* cuda_stream, bool programmatic,
                 const Features& features) {
  run(plan(op, workspace, programmatic, features), cuda_stream);
}

void affine_norm_epilogue(const AffineNorm& op, const Rows& mapped, void* cuda_stream, bool programmatic) {
  run(plan_epilogue(op, mapped, programmatic), cuda_stream);
}

}  // namespace incline_fast::cuda
