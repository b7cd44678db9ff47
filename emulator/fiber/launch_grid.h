// LAUNCH: arguments are converted once, as a real launch does, and every thread gets its own copy of them.
#pragma once

#include <driver_types.h>

#include <tuple>
#include <utility>

#include "runtime.h"

namespace cuda_on_cpu {

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;

  static void run(const void* self) {
    const auto& call = *static_cast<const Call*>(self);
    std::apply(call.kernel, call.arguments);
  }
};

template <class... Parameters, class... Arguments>
void launch(Where at, unsigned cluster, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t dynamic_bytes,
            cudaStream_t, Arguments&&... arguments) {
  const Call<Parameters...> call{kernel, {static_cast<Parameters>(std::forward<Arguments>(arguments))...}};
  const auto* address = reinterpret_cast<const void*>(kernel);
  run_grid(address, cluster, grid, block, dynamic_bytes, &Call<Parameters...>::run, &call, at);
}

}  // namespace cuda_on_cpu
