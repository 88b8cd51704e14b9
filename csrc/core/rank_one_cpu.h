// A row of y is a run of outputs of a Linear, or of positions of one output of a 1x1 convolution.
#pragma once
#include <type_traits>

#include "affine_cpu.h"
#include "dtype.h"
#include "level.h"
#include "rank_one.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

template <bool Affine, bool Relu, typename T>
SDKERNELS_INLINE void write_example(const RankOne& p, int64_t k, int64_t n) {
  using W = Wide<T>;
  const int64_t c = p.units[k];
  const T* z = static_cast<const T*>(p.z) + n * p.z_n;
  const T* a = static_cast<const T*>(p.a) + n * p.a_n + c * p.a_c;
  const T* weight = static_cast<const T*>(p.weight) + c * p.outputs;
  const W value = p.value ? widen(static_cast<const T*>(p.value)[c]) : W(0);
  const W* scale = static_cast<const W*>(p.scale);
  const W* shift = static_cast<const W*>(p.shift);
  T* y = static_cast<T*>(p.y) + (k * p.examples + n) * p.outputs * p.positions;
  const auto map = [&](W x, int64_t d) __attribute__((always_inline)) {
    return narrow<T>(mapped<Affine, Relu>(x, Affine ? scale[d] : W(1), Affine ? shift[d] : W(0)));
  };
  if (p.positions == 1) {
    const W change = value - widen(*a);
    const auto run = [&](int64_t stride) __attribute__((always_inline)) {
      for (int64_t d = 0; d < p.outputs; ++d) y[d] = map(widen(z[d * stride]) + widen(weight[d]) * change, d);
    };
    return p.z_d == 1 ? run(1) : run(p.z_d);
  }
  for (int64_t d = 0; d < p.outputs; ++d) {
    const W w = widen(weight[d]);
    const auto run = [&](int64_t z_s, int64_t a_s) __attribute__((always_inline)) {
      for (int64_t s = 0; s < p.positions; ++s)
        y[d * p.positions + s] = map(widen(z[d * p.z_d + s * z_s]) + w * (value - widen(a[s * a_s])), d);
    };
    p.z_s == 1 && p.a_s == 1 ? run(1, 1) : run(p.z_s, p.a_s);
  }
}

template <typename T>
SDKERNELS_INLINE void write_any(const RankOne& p, int64_t k, int64_t n) {
  if (p.scale) return p.relu ? write_example<true, true, T>(p, k, n) : write_example<true, false, T>(p, k, n);
  p.relu ? write_example<false, true, T>(p, k, n) : write_example<false, false, T>(p, k, n);
}

}  // namespace

int rank_one(const RankOne& p, int threads) {
  return with_dtype(p.dtype, [&](auto type) {
    const int64_t rows = p.k * p.examples;
    [[maybe_unused]] const bool parallel = rows > 1 && rows * p.outputs * p.positions > kElementsWorthAThread;
#pragma omp parallel for num_threads(threads) if (parallel) schedule(static)
    for (int64_t row = 0; row < rows; ++row) write_any<decltype(type)>(p, row / p.examples, row % p.examples);
    return int(kOk);
  });
}

}  // namespace sdkernels::SDKERNELS_LEVEL
