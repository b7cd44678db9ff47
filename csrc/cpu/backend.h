// What the CPU library says of itself.
#pragma once

#include <string>

namespace incline_fast::cpu {

// The instruction set that the kernels of this process use.
std::string isa();

}  // namespace incline_fast::cpu
