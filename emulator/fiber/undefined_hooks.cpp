// Answers g++ -fsanitize=alignment,bounds in place of the compiler's own library: a misaligned vector access or an
// index beyond a shared array ends the launch with a message instead of the process with a signal.
#include <cstdint>
#include <cstdio>

#include "grid.h"

namespace {

// The leading fields of what the compiler passes.
struct Source {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
};
struct Mismatch {
  Source source;
  const void* type;
  unsigned char log2_alignment;
};

[[noreturn]] void end(const Source& source, const char* what) {
  cuda_on_cpu::report(std::string(what) + ": " + cuda_on_cpu::name_of_current() + " at " + source.file + ":" +
                      std::to_string(source.line));
  cuda_on_cpu::abandon_thread();
}

}  // namespace

extern "C" {
[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(Mismatch* data, std::uintptr_t address) {
  char text[120];
  std::snprintf(text, sizeof text, "misaligned access: 0x%zx is not a multiple of %u",
                static_cast<std::size_t>(address), 1u << data->log2_alignment);
  end(data->source, text);
}

[[noreturn]] void __ubsan_handle_out_of_bounds_abort(Source* source, std::uintptr_t index) {
  end(*source, ("index " + std::to_string(static_cast<std::ptrdiff_t>(index)) + " is beyond its array").c_str());
}
}
