// An example is written segment by segment: a run of positions of one unit, or of units at one position, whichever lies
// side by side in y. A segment fits the first-level cache, with its noise; what does not lie side by side is gathered
// there first, and scattered from there.
#pragma once
#include <omp.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "affine_cpu.h"
#include "dtype.h"
#include "level.h"
#include "noise_cpu.h"
#include "perturb.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

constexpr int64_t kSegment = 4 * kQuads;
constexpr int64_t kTileUnits =
    51;  // of channels-last noise: each with the 5 quads that cover 16 positions from anywhere

template <typename T>
struct Example {
  const Perturb* p;
  const T* x;              // [A, C, B]
  T* y;                    // [A, C, B]
  const uint8_t* ablated;  // [C], a byte each
  const Wide<T>* sigma;    // [C]; null without noise
  StreamIds ids;
};

SDKERNELS_INLINE double select(bool first, double a, double b) { return first ? a : b; }
SDKERNELS_INLINE float select(bool first, float a, float b) { return first ? a : b; }
SDKERNELS_INLINE BFloat16 select(bool first, BFloat16 a, BFloat16 b) { return {first ? a.bits : b.bits}; }
SDKERNELS_INLINE Float16 select(bool first, Float16 a, Float16 b) { return {first ? a.bits : b.bits}; }

// Flags known when compiling, so that each loop has what it needs and no more.
template <typename F>
SDKERNELS_INLINE void with_flags(bool affine, bool relu, F f) {
  if (affine && relu) return f(std::true_type{}, std::true_type{});
  if (affine) return f(std::true_type{}, std::false_type{});
  if (relu) return f(std::false_type{}, std::true_type{});
  f(std::false_type{}, std::false_type{});
}

template <typename T>
SDKERNELS_INLINE const T* side_by_side(const T* from, int64_t stride, int64_t length, T* buffer) {
  if (stride == 1) return from;
  if (stride == 0) {
    std::fill(buffer, buffer + length, *from);
    return buffer;
  }
  for (int64_t i = 0; i < length; ++i) buffer[i] = from[i * stride];
  return buffer;
}

// Positions b to b + length of unit c. Noise is null, one draw for all, or a draw each.
template <bool OneDraw, typename T>
SDKERNELS_INLINE void run_of_positions(const Example<T>& e, int64_t a, int64_t c, int64_t b, int64_t length,
                                       const float* noise) {
  using W = Wide<T>;
  const Perturb& p = *e.p;
  const bool dead = e.ablated[c];
  const Strides& stride = dead ? p.value_strides : p.x_strides;
  const T* source = dead ? static_cast<const T*>(p.value) : e.x;
  T gathered[kSegment], scattered[kSegment];
  const T* from = side_by_side(source + a * stride.a + c * stride.c + b * stride.b, stride.b, length, gathered);
  T* y = e.y + a * p.y_strides.a + c * p.y_strides.c + b * p.y_strides.b;
  T* to = p.y_strides.b == 1 ? y : scattered;
  const W sigma = noise ? e.sigma[c] : 0;
  const bool affine = p.scale && !dead, relu = p.relu && !dead;
  const W scale = affine ? static_cast<const W*>(p.scale)[c] : 1;
  const W shift = affine ? static_cast<const W*>(p.shift)[c] : 0;
  if (sigma != 0) {
    with_flags(affine, relu, [&](auto is_affine, auto is_relu) __attribute__((always_inline)) {
      const W one = sigma * W(*noise);
      for (int64_t i = 0; i < length; ++i) {
        const W added = OneDraw ? one : sigma * W(noise[i]);
        to[i] = narrow<T>(mapped<is_affine, is_relu>(widen(from[i]), scale, shift) + added);
      }
    });
  } else if (affine || relu) {
    with_flags(affine, relu, [&](auto is_affine, auto is_relu) __attribute__((always_inline)) {
      for (int64_t i = 0; i < length; ++i) to[i] = narrow<T>(mapped<is_affine, is_relu>(widen(from[i]), scale, shift));
    });
  } else {
    std::memcpy(to, from, length * sizeof(T));
  }
  if (to != y)
    for (int64_t i = 0; i < length; ++i) y[i * p.y_strides.b] = to[i];
}

// Units c to c + length at one position. Noise is null or a draw each.
template <typename T>
SDKERNELS_INLINE void run_of_units(const Example<T>& e, int64_t a, int64_t c, int64_t b, int64_t length,
                                   const float* noise) {
  using W = Wide<T>;
  const Perturb& p = *e.p;
  T gathered_x[kSegment], gathered_value[kSegment], scattered[kSegment];
  const auto place = [&](const Strides& s) { return a * s.a + c * s.c + b * s.b; };
  const T* x = side_by_side(e.x + place(p.x_strides), p.x_strides.c, length, gathered_x);
  const T* value =
      side_by_side(static_cast<const T*>(p.value) + place(p.value_strides), p.value_strides.c, length, gathered_value);
  T* y = e.y + place(p.y_strides);
  T* to = p.y_strides.c == 1 ? y : scattered;
  const uint8_t* dead = e.ablated + c;
  const W* scale = p.scale ? static_cast<const W*>(p.scale) + c : nullptr;
  const W* shift = p.scale ? static_cast<const W*>(p.shift) + c : nullptr;
  with_flags(p.scale, p.relu, [&](auto is_affine, auto is_relu) __attribute__((always_inline)) {
    const auto map = [&](int64_t i) __attribute__((always_inline)) {
      return mapped<is_affine, is_relu>(widen(x[i]), is_affine ? scale[i] : W(1), is_affine ? shift[i] : W(0));
    };
    const auto plain = [&](int64_t i) __attribute__((always_inline)) {
      return select(dead[i], value[i], is_affine || is_relu ? narrow<T>(map(i)) : x[i]);
    };
    if (noise) {
      const W* sigma = e.sigma + c;
      for (int64_t i = 0; i < length; ++i) {
        const W kept = dead[i] ? W(widen(value[i])) : W(map(i));
        to[i] = select(sigma[i] == 0, plain(i), narrow<T>(kept + sigma[i] * W(noise[i])));
      }
    } else {
      for (int64_t i = 0; i < length; ++i) to[i] = plain(i);
    }
  });
  if (to != y)
    for (int64_t i = 0; i < length; ++i) y[i * p.y_strides.c] = to[i];
}

// One draw a unit, whatever its positions.
template <typename T>
SDKERNELS_INLINE void draw_by_map(const Example<T>& e, bool by_positions) {
  const Perturb& p = *e.p;
  float noise[kSegment];
  for (int64_t c = 0; c < p.c; c += kSegment) {
    const int64_t units = std::min(kSegment, p.c - c);
    normals_of_quads(e.ids, QuadsFrom{uint32_t(c / 4)}, (units + 3) / 4, noise);
    for (int64_t a = 0; a < p.a; ++a) {
      if (!by_positions)
        for (int64_t b = 0; b < p.b; ++b) run_of_units(e, a, c, b, units, noise);
      else
        for (int64_t i = 0; i < units; ++i)
          for (int64_t b = 0; b < p.b; b += kSegment)
            run_of_positions<true>(e, a, c + i, b, std::min(kSegment, p.b - b), noise + i);
    }
  }
}

// Units side by side while draws are side by side over positions. Where maps are whole quads, lanes are units.
template <typename T>
SDKERNELS_INLINE void draw_quads_across(const Example<T>& e) {
  const Perturb& p = *e.p;
  float noise[4][kQuads];
  for (int64_t a = 0; a < p.a; ++a)
    for (int64_t c = 0; c < p.c; c += kQuads)
      for (int64_t b = 0; b < p.b; b += 4) {
        const uint32_t first = uint32_t(((a * p.c + c) * p.b + b) / 4), step = uint32_t(p.b / 4);
        const auto quad = [&](int64_t q) __attribute__((always_inline)) { return first + uint32_t(q) * step; };
        const int64_t units = std::min(kQuads, p.c - c);
        normals_by_word(e.ids, quad, units, noise);
        for (int64_t s = 0; s < 4; ++s) run_of_units(e, a, c, b + s, units, noise[s]);
      }
}

// Where they are not, a tile of units and positions is turned over in cache.
template <typename T>
SDKERNELS_INLINE void draw_across(const Example<T>& e) {
  const Perturb& p = *e.p;
  const int64_t tile = std::min(kTileUnits, p.c), quads = kQuads / tile, positions = 4 * (quads - 1);
  for (int64_t a = 0; a < p.a; ++a)
    for (int64_t c = 0; c < p.c; c += tile)
      for (int64_t b = 0; b < p.b; b += positions) {
        const int64_t units = std::min(tile, p.c - c);
        uint32_t quad[kQuads] = {};
        int32_t start[kTileUnits] = {};  // of a unit's draws in the block
        for (int64_t i = 0; i < units; ++i) {
          const int64_t element = (a * p.c + c + i) * p.b + b;
          start[i] = int32_t(4 * i * quads + element % 4);
          for (int64_t q = 0; q < quads; ++q) quad[i * quads + q] = uint32_t(element / 4 + q);
        }
        float block[kSegment], noise[kTileUnits];
        normals_of_quads(
            e.ids, [&](int64_t q) __attribute__((always_inline)) { return quad[q]; }, units * quads, block);
        for (int64_t s = 0; s < std::min(positions, p.b - b); ++s) {
          for (int64_t i = 0; i < units; ++i) noise[i] = block[start[i] + s];
          run_of_units(e, a, c, b + s, units, noise);
        }
      }
}

// Elements in their order, a block of draws at a time; without noise, a segment at a time.
template <typename T>
SDKERNELS_INLINE void draw_along(const Example<T>& e, bool by_positions) {
  const Perturb& p = *e.p;
  float noise[kSegment];
  const int64_t row = by_positions ? p.b : p.c;
  int64_t a = 0, c = 0, b = 0;
  for (int64_t first = 0; first < p.a * p.c * p.b; first += kSegment) {
    const int64_t end = std::min(first + kSegment, p.a * p.c * p.b);
    if (e.sigma) normals_of_quads(e.ids, QuadsFrom{uint32_t(first / 4)}, (end - first + 3) / 4, noise);
    for (int64_t element = first; element < end;) {
      int64_t& at = by_positions ? b : c;
      const int64_t length = std::min(row - at, end - element);
      const float* own = e.sigma ? noise + (element - first) : nullptr;
      by_positions ? run_of_positions<false>(e, a, c, b, length, own) : run_of_units(e, a, c, b, length, own);
      element += length;
      at += length;
      if (by_positions && b == p.b) b = 0, ++c;
      if (c == p.c) c = 0, ++a;
    }
  }
}

template <typename T>
SDKERNELS_INLINE void write_example(const Example<T>& e) {
  const Perturb& p = *e.p;
  const bool by_positions = p.b > 1 && p.y_strides.c != 1;
  if (e.sigma && p.per_map) return draw_by_map(e, by_positions);
  if (by_positions || p.b == 1) return draw_along(e, by_positions);
  if (e.sigma) return p.b % 4 == 0 ? draw_quads_across(e) : draw_across(e);
  for (int64_t a = 0; a < p.a; ++a)
    for (int64_t b = 0; b < p.b; ++b)
      for (int64_t c = 0; c < p.c; c += kSegment) run_of_units(e, a, c, b, std::min(kSegment, p.c - c), nullptr);
}

template <typename T>
void examples(const Perturb& p, int threads) {
  using W = Wide<T>;
  const int64_t blocks = p.k * p.n;
  [[maybe_unused]] const bool parallel = blocks > 1 && blocks * p.a * p.c * p.b > kElementsWorthAThread;
  std::vector<uint8_t> unpacked(p.packed ? threads * p.c : 0);  // here, since nothing may throw among threads
  const auto is_noisy = [&](int64_t k) {
    const W* sigma = static_cast<const W*>(p.sigma) + k * p.c;
    return std::any_of(sigma, sigma + p.c, [](W s) { return s != 0; });
  };
  std::vector<uint8_t> noisy(p.k);
  for (int64_t k = 0; p.sigma && k < p.k; ++k) noisy[k] = is_noisy(k);
#pragma omp parallel num_threads(threads) if (parallel)
  {
    uint8_t* own = unpacked.data() + (p.packed ? omp_get_thread_num() * p.c : 0);
    int64_t unpacked_k = -1;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k = block / p.n, n = block % p.n;
      if (p.packed && k != unpacked_k) {
        const uint8_t* bytes = p.ablated + k * ((p.c + 7) / 8);
        for (int64_t c = 0; c < p.c; ++c) own[c] = bytes[c / 8] >> (c % 8) & 1;
        unpacked_k = k;
      }
      Example<T> e{};
      e.p = &p;
      e.x = static_cast<const T*>(p.x) + k * p.x_k + n * p.x_strides.n;
      e.y = static_cast<T*>(p.y) + k * p.y_k + n * p.y_strides.n;
      e.ablated = p.packed ? own : p.ablated + k * p.c;
      if (noisy[k]) {
        e.sigma = static_cast<const W*>(p.sigma) + k * p.c;
        e.ids = {uint64_t(*p.seed), uint32_t(p.configurations[k]), uint32_t(p.examples[n]), p.site};
      }
      write_example(e);
    }
  }
}

}  // namespace

int perturb(const Perturb& p, int threads) {
  return with_dtype(p.dtype, [&](auto zero) {
    examples<decltype(zero)>(p, threads);
    return int(kOk);
  });
}

}  // namespace sdkernels::SDKERNELS_LEVEL
