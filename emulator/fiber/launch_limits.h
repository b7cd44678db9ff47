// The limits of a launch and the CUDA runtime calls that launchers make.
#pragma once

#include <driver_types.h>
#include <vector_types.h>

#include <cstddef>
#include <string>

namespace cuda_on_cpu {

// Empty, or what is wrong with the launch: its shape, or shared memory or clusters that were not asked for.
std::string check_limits(const void* kernel, dim3 grid, dim3 block, std::size_t dynamic_bytes, unsigned cluster);

// What cudaGetLastError will say.
void note_launch(cudaError_t error);

}  // namespace cuda_on_cpu
