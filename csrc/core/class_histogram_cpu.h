// A thread has some units for itself, so counts need no locks.
#pragma once
#include <algorithm>

#include "class_histogram.h"
#include "level.h"
#include "unit_rows_cpu.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

constexpr int64_t kCacheBytes = 256 * 1024;  // of counts, to stay in a core's second-level cache
constexpr int64_t kFewEdges = 8;             // so many are compared faster than searched

// 0 for zero, else 1 + how many edges are not above the value; nan is above all.
SDKERNELS_INLINE int64_t bin_of(double value, const double* edges, int64_t count) {
  if (value == 0) return 0;
  int64_t below = 0;
  while (count > kFewEdges) {
    const int64_t half = count / 2;
    below += half & -int64_t(!(value < edges[below + half - 1]));  // no branch: nobody could predict it
    count -= half;
  }
  const double* rest = edges + below;
  for (int64_t i = 0; i < count; ++i) below += !(value < rest[i]);
  return 1 + below;
}

template <typename T>
SDKERNELS_INLINE void count_tile(const Activation& x, const int64_t* labels, const double* edges, int64_t* counts,
                                 int64_t edge_count, int64_t first, int64_t units) {
  UnitRows rows{};
  const T* tile = static_cast<const T*>(x.x) + first * x.strides.c;
  for (int64_t n = 0; n < x.examples; ++n) {
    unit_rows(x, tile + n * x.strides.n, units, rows);
    int64_t* own = counts + (labels[n] * x.units + first) * (edge_count + 2);
    for (int64_t i = 0; i < units; ++i)
      ++own[i * (edge_count + 2) + bin_of(rows.mean[i], edges + (first + i) * edge_count, edge_count)];
  }
}

}  // namespace

int class_histogram(const Activation& x, const int64_t* labels, const double* edges, int64_t* counts, int64_t classes,
                    int64_t edge_count, int threads) {
  return with_dtype(x.dtype, [&](auto type) {
    const int64_t fit = kCacheBytes / (classes * (edge_count + 2) * int64_t(sizeof(int64_t)));
    const int64_t units = tile_units(x.units, threads, fit), tiles = (x.units + units - 1) / units;
    [[maybe_unused]] const bool parallel = x.examples * x.before * x.units * x.after > kElementsWorthAThread;
#pragma omp parallel for num_threads(threads) if (parallel) schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile)
      count_tile<decltype(type)>(x, labels, edges, counts, edge_count, tile * units,
                                 std::min(units, x.units - tile * units));
    return int(kOk);
  });
}

}  // namespace sdkernels::SDKERNELS_LEVEL
