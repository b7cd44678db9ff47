// Argument checks whose messages name the argument, what it was, and what is allowed; worded as in
// incline_fast/ops/_arguments.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../affine_norm.h"
#include "backend.h"

namespace incline_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
// A view of sizes, which copies nothing; a list in braces converts to it: {rows, columns}.
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline std::string show(const Sizes& sizes) {
  std::string text = "(";
  for (std::size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + (sizes.size() == 1 ? ",)" : ")");
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(type);
  }
}

// The dtype, if it is one of the allowed ones.
inline ScalarType check_dtype(const char* name, const Tensor& tensor, std::initializer_list<ScalarType> allowed) {
  const ScalarType type = tensor.scalar_type();
  if (std::find(allowed.begin(), allowed.end(), type) != allowed.end()) return type;
  std::string names;
  for (const ScalarType& t : allowed) {
    if (std::find(allowed.begin(), &t, t) == &t) names += (names.empty() ? "" : ", ") + std::string(name_of(t));
  }
  fail(name, " has dtype ", name_of(type), "; allowed: ", names);
}

inline ScalarType check_float(const char* name, const Tensor& tensor) {
  return check_dtype(name, tensor, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double});
}

inline void check_shape(const char* name, const Tensor& tensor, const Sizes& expected, const char* meaning) {
  const Sizes sizes = tensor.sizes();
  if (!sizes.equals(expected)) fail(name, " has shape ", show(sizes), "; expected ", show(expected), ", ", meaning);
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "another device:") + std::to_string(tensor.get_device_index());
}

// torch calls the CUDA op when any of its tensors is on a GPU, whichever one.
inline void check_served(const char* name, const Tensor& tensor) {
  if (!backend::serves(tensor)) fail(name, " is on device ", device_of(tensor), "; expected ", backend::device());
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  if (a.is_cpu() || b.is_cpu()) return a.is_cpu() && b.is_cpu();
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline void check_device(const char* name, const Tensor& tensor, const Tensor& first, const char* first_name = "x") {
  if (same_device(tensor, first)) return;
  fail(name, " is on device ", device_of(tensor), "; expected ", device_of(first), ", the device of ", first_name);
}

// An output that maps several elements to one address (an expanded tensor) cannot be written.
inline void check_writable(const char* name, const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && strides[i] == 0) {
      fail(name, " has stride 0 in dimension ", i, " of size ", sizes[i], "; an output must not overlap itself");
    }
  }
}

inline DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Char:
      return DType::kInt8;
    default:  // check_dtype has refused everything else
      return DType::kFloat32;
  }
}

}  // namespace incline_fast
