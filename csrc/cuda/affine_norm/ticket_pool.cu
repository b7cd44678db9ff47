#include <map>
#include <mutex>
#include <utility>

#include "call.h"
#include "ticket_pool.h"

namespace incline_fast::cuda {
namespace {

constexpr int kSlots = 65536;
constexpr int kSlotWords = 8;  // one 32-byte sector: slots of two streams do not meet in one
static_assert(kTicketCount <= kSlotWords);

// Device memory of the module, zero when it is loaded, once per device. No allocation and no copy, so that the first
// call may just as well be a captured one.
__device__ __align__(32) unsigned pool[kSlots * kSlotWords];

struct Slots {
  std::mutex mutex;
  std::map<int, int> used;                         // by device
  std::map<std::pair<int, void*>, int> of_stream;  // by device and stream

  int take(int device) {
    int& count = used[device];
    if (count == kSlots) {
      throw std::runtime_error("65536 streams and launches captured into CUDA graphs have been served on device " +
                               std::to_string(device) + "; there are no counters left for another one");
    }
    return count++;
  }
};

}  // namespace

unsigned* tickets_for(int device, void* cuda_stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(cuda_stream), &status), "state of the current stream");
  void* first = nullptr;
  check(cudaGetSymbolAddress(&first, pool), "counters of incline_fast");
  static Slots slots;
  const std::lock_guard<std::mutex> lock(slots.mutex);
  int slot;
  if (status != cudaStreamCaptureStatusNone) {
    slot = slots.take(device);
  } else if (const auto found = slots.of_stream.find({device, cuda_stream}); found != slots.of_stream.end()) {
    slot = found->second;
  } else {
    slot = slots.take(device);
    slots.of_stream[{device, cuda_stream}] = slot;
  }
  return static_cast<unsigned*>(first) + slot * kSlotWords;
}

}  // namespace incline_fast::cuda
