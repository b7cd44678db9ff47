// The CPU kernels without torch: checked against plain loops, or run once for a tool that counts.
//
//   kernels check [EVERY]                               all cases, or one in EVERY of them
//   kernels run NORM ROWS HIDDEN RANK DTYPE MAP_DTYPE   one call of the fused op; rank 0 is a dense map
//
// INCLINE_FAST_CPU_ISA chooses the instruction set. Exit status 1: a case is wrong; 2: the command line is.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "affine_norm_problem.h"
#include "cholesky_check.h"
#include "cpu/dispatch.h"

namespace incline_fast::test {
namespace {

const Threads kOne;

// Three threads, as torch's pool would run them: disjoint ranges, at least `grain` long but the last.
const Threads kThree{3, [](std::int64_t begin, std::int64_t end, std::int64_t grain,
                           void (*body)(std::int64_t, std::int64_t, void*), void* context) {
                       const std::int64_t step = std::max(grain, (end - begin + 2) / 3);
                       std::vector<std::jthread> threads;
                       for (; begin < end; begin += step) {
                         threads.emplace_back(body, begin, std::min(end, begin + step), context);
                       }
                     }};

// Counts cases, runs one in `every`, and keeps what went wrong.
class Report {
 public:
  explicit Report(std::int64_t every) : every_(every) {}

  template <class Check>
  void add(const std::string& name, const Check& check) {
    if (seen_++ % every_ != 0) return;
    ++run_;
    const std::string error = check();
    if (error.empty()) return;
    ++wrong_;
    std::cerr << "WRONG " << name << ": " << error << '\n';
  }

  int finish() const {
    std::cout << cpu::isa_name() << ": " << run_ << " cases, " << wrong_ << " wrong\n";
    return wrong_ == 0 && run_ > 0 ? 0 : 1;
  }

 private:
  std::int64_t every_;
  std::int64_t seen_ = 0;
  std::int64_t run_ = 0;
  std::int64_t wrong_ = 0;
};

std::string check_affine_norm(const Case& c) {
  AffineNormProblem problem(c), parallel = problem;
  cpu::affine_norm(problem.op(), kOne);
  if (const std::string error = problem.error(); !error.empty()) return error;
  cpu::affine_norm(parallel.op(), kThree);
  const bool same = problem.edited_bytes() == parallel.edited_bytes() && problem.y_bytes() == parallel.y_bytes();
  return same ? "" : "three threads give other bits than one";
}

constexpr Norm kNorms[] = {Norm::kRms, Norm::kLayer, Norm::kNone};

struct Dtypes {
  DType x, map, residual;
};

constexpr DType kF32 = DType::kFloat32, kF64 = DType::kFloat64, kBF16 = DType::kBFloat16, kF16 = DType::kFloat16,
                kI8 = DType::kInt8;
constexpr Dtypes kDtypes[] = {{kF32, kF32, kF32}, {kF32, kBF16, kF32},   {kF32, kF16, kF32},   {kF64, kF64, kF64},
                              {kF32, kF64, kF64}, {kBF16, kBF16, kBF16}, {kBF16, kF32, kF32},  {kBF16, kBF16, kF32},
                              {kF16, kF16, kF16}, {kF16, kF32, kF16},    {kBF16, kF16, kBF16}, {kBF16, kI8, kBF16},
                              {kF32, kI8, kF32}};

// Shapes and dtypes in full; the switches are drawn, so that every pair of them meets somewhere.
void check_affine_norms(Report& report) {
  std::mt19937 random(2);
  const auto coin = [&] { return random() % 2 == 0; };
  for (const std::int64_t hidden : {1, 7, 8, 15, 16, 17, 33, 111, 515}) {
    for (const std::int64_t rows : {0, 1, 2, 3, 7, 33}) {
      for (const std::int64_t rank : {0, 1, 7, 64}) {
        for (const Dtypes& dtypes : kDtypes) {
          if (hidden == 515 && rows == 33 && !coin()) continue;  // the dearest
          const Norm norm = kNorms[random() % 3];
          const Case c{.norm = norm,
                       .rows = rows,
                       .hidden = hidden,
                       .rank = rank,
                       .maps = coin() ? 1 : 3,
                       .x = dtypes.x,
                       .map = dtypes.map,
                       .residual = dtypes.residual,
                       .has_residual = dtypes.residual != dtypes.x || coin(),
                       .packed = coin(),
                       .strided = coin(),
                       .row_map = coin(),
                       .bias = coin(),
                       .per_row = coin(),
                       .in_place = coin() || norm == Norm::kNone};
          report.add(c.text(), [&] { return check_affine_norm(c); });
        }
      }
    }
  }
}

void check_cholesky(Report& report) {
  for (const DType dtype : {kF32, kF64}) {
    for (const std::int64_t size : {1, 7, 8, 9, 33, 64, 129}) {
      for (const bool strided : {false, true}) {
        for (const std::int64_t bad_pivot : {std::int64_t{0}, (size + 1) / 2}) {
          const std::string name = "cholesky of size " + std::to_string(size) + ' ' + name_of(dtype) +
                                   (strided ? " strided" : "") + " bad pivot " + std::to_string(bad_pivot);
          for (const Threads& threads : {kOne, kThree}) {
            report.add(name, [&] { return CholeskyProblem(dtype, size, strided, bad_pivot).run(threads); });
          }
        }
      }
    }
  }
}

DType dtype_named(const std::string& name) {
  for (const DType dtype : {kF32, kF64, kBF16, kF16, kI8}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw std::invalid_argument("unknown dtype " + name);
}

int run_once(const std::vector<std::string>& words) {
  const Case c{.norm = words[0] == "rms" ? Norm::kRms : Norm::kLayer,
               .rows = std::stoll(words[1]),
               .hidden = std::stoll(words[2]),
               .rank = std::stoll(words[3]),
               .x = dtype_named(words[4]),
               .map = dtype_named(words[5]),
               .residual = dtype_named(words[4])};
  AffineNormProblem problem(c);
  cpu::affine_norm(problem.op(), kOne);
  const std::string error = problem.error();
  std::cout << cpu::isa_name() << ": " << c.text() << (error.empty() ? "" : ": ") << error << '\n';
  return error.empty() ? 0 : 1;
}

int main(const std::vector<std::string>& words) {
  if (!words.empty() && words[0] == "check" && words.size() <= 2) {
    Report report(words.size() == 2 ? std::stoll(words[1]) : 1);
    check_affine_norms(report);
    check_cholesky(report);
    return report.finish();
  }
  if (words.size() == 7 && words[0] == "run") return run_once({words.begin() + 1, words.end()});
  std::cerr << "kernels check [EVERY] | kernels run NORM ROWS HIDDEN RANK DTYPE MAP_DTYPE\n";
  return 2;
}

}  // namespace
}  // namespace incline_fast::test

int main(int count, char** words) {
  try {
    return incline_fast::test::main({words + 1, words + count});
  } catch (const std::exception& error) {
    std::cerr << "kernels: " << error.what() << '\n';
    return 2;
  }
}
