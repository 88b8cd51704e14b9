// A thread has some units for itself and walks all examples: so each unit's sums run in the order of examples, whatever
// the number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "class_moments.h"
#include "level.h"
#include "unit_rows_cpu.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

// What each example's update needs, the same for all units.
struct Weights {
  std::vector<double> of_class;    // 1 / examples of its class so far, it included
  std::vector<double> of_all;      // its share of all elements so far
  std::vector<double> seen_share;  // elements before it, times that
};

template <typename T>
SDKERNELS_INLINE void add_tile(const Activation& x, const int64_t* labels, const Weights& weights, const Moments& m,
                               int64_t first, int64_t units) {
  double mean[kTile], m2[kTile], least[kTile], greatest[kTile];
  int64_t fired[kTile] = {}, elements[kTile] = {};
  std::copy_n(m.element_mean + first, units, mean);
  std::copy_n(m.element_m2 + first, units, m2);
  std::copy_n(m.minimum + first, units, least);
  std::copy_n(m.maximum + first, units, greatest);
  UnitRows rows{};
  const T* tile = static_cast<const T*>(x.x) + first * x.strides.c;
  for (int64_t n = 0; n < x.examples; ++n) {
    unit_rows(x, tile + n * x.strides.n, units, rows);
    if (m.means) std::copy_n(rows.mean, units, m.means + n * x.units + first);
#pragma omp simd
    for (int64_t i = 0; i < units; ++i) {
      const double delta = rows.mean[i] - mean[i];
      mean[i] += delta * weights.of_all[n];
      m2[i] += rows.m2[i] + delta * delta * weights.seen_share[n];
      const double low = rows.least[i], high = rows.greatest[i];
      least[i] = low < least[i] || low != low ? low : least[i];
      greatest[i] = high > greatest[i] || high != high ? high : greatest[i];
      fired[i] += rows.positive[i] > 0;
      elements[i] += rows.positive[i];
    }
    double* class_mean = m.mean + labels[n] * x.units + first;
    double* class_m2 = m.m2 + labels[n] * x.units + first;
#pragma omp simd
    for (int64_t i = 0; i < units; ++i) {
      const double delta = rows.mean[i] - class_mean[i], moved = class_mean[i] + delta * weights.of_class[n];
      class_m2[i] += delta * (rows.mean[i] - moved);
      class_mean[i] = moved;
    }
  }
  for (int64_t i = 0; i < units; ++i) {
    m.element_mean[first + i] = mean[i], m.element_m2[first + i] = m2[i];
    m.minimum[first + i] = least[i], m.maximum[first + i] = greatest[i];
    m.fired[first + i] += fired[i], m.fired_elements[first + i] += elements[i];
  }
}

}  // namespace

int class_moments(const Activation& x, const int64_t* labels, const Moments& moments, int threads) {
  return with_dtype(x.dtype, [&](auto type) {
    const double positions = double(x.before * x.after);
    Weights weights{std::vector<double>(x.examples), std::vector<double>(x.examples), std::vector<double>(x.examples)};
    double seen = double(*moments.elements);
    for (int64_t n = 0; n < x.examples; ++n) {
      weights.of_class[n] = 1.0 / double(++moments.count[labels[n]]);
      weights.of_all[n] = positions / (seen + positions);
      weights.seen_share[n] = seen * weights.of_all[n];
      seen += positions;
    }
    *moments.elements += x.examples * x.before * x.after;
    const int64_t units = tile_units(x.units, threads), tiles = (x.units + units - 1) / units;
    [[maybe_unused]] const bool parallel = x.examples * x.before * x.units * x.after > kElementsWorthAThread;
#pragma omp parallel for num_threads(threads) if (parallel) schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile)
      add_tile<decltype(type)>(x, labels, weights, moments, tile * units, std::min(units, x.units - tile * units));
    return int(kOk);
  });
}

}  // namespace sdkernels::SDKERNELS_LEVEL
