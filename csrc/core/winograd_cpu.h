// Lanes are units. A tile's 6x6 or 4x4 numbers of a vector of units are transformed down the columns, then along the
// rows. No lane knows of another, so a result depends on neither threads nor on how many units there are.
//
// Results go past the caches, whole lines at a time, where units are whole lines. Else each line would first be read,
// and 36 lines that lie as far apart as a power of two, as they often do, would drive one another out.
#pragma once
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <type_traits>
#include <utility>

#include "dtype.h"
#include "lane_cpu.h"
#include "level.h"
#include "winograd.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

constexpr int64_t kTileSide = 4;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kLinesAhead = 2;  // of each of the 36 matrices that are read at once: more than are foreseen unasked
// The points 0, a, -a, b, -b, infinity; all that is made of them here is exact in float32.
constexpr double kA = 0.625, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;

// Sums are written so that a compiler which fuses has one way to do it: all that is made of this has the same bits.
// B^T d
template <typename W, typename Vector = typename Lane<W>::Vector>
SDKERNELS_INLINE void transform_in(const Vector (&d)[6], Vector (&v)[6]) {
  const Vector even_a = d[4] - W(kB2) * d[2], odd_a = d[3] - W(kB2) * d[1];
  const Vector even_b = d[4] - W(kA2) * d[2], odd_b = d[3] - W(kA2) * d[1];
  v[0] = (d[4] - W(kA2 + kB2) * d[2]) + W(kA2 * kB2) * d[0];
  v[1] = even_a + W(kA) * odd_a;
  v[2] = even_a - W(kA) * odd_a;
  v[3] = even_b + W(kB) * odd_b;
  v[4] = even_b - W(kB) * odd_b;
  v[5] = (d[5] - W(kA2 + kB2) * d[3]) + W(kA2 * kB2) * d[1];
}

// A^T m
template <typename W, typename Vector = typename Lane<W>::Vector>
SDKERNELS_INLINE void transform_out(const Vector (&m)[6], Vector (&y)[4]) {
  const Vector even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const Vector even_b = m[3] + m[4], odd_b = m[3] - m[4];
  Vector first = W(kA) * odd_a, second = W(kA2) * even_a;
  hold(first);
  hold(second);
  y[0] = (m[0] + even_a) + even_b;
  y[1] = first + W(kB) * odd_b;
  y[2] = second + W(kB2) * even_b;
  y[3] = (m[5] + W(kA2 * kA) * odd_a) + W(kB2 * kB) * odd_b;
}

// To a vector's boundary, past the caches: quick where all of a line is written at once.
template <typename W>
SDKERNELS_INLINE void stream(const typename Lane<W>::Vector& x, W* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)x);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)x);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)x);
#else
  store(x, to);
#endif
}

// Other threads see what was streamed.
SDKERNELS_INLINE void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <typename W>
SDKERNELS_INLINE bool is_whole_lines(const void* first, int64_t units) {
  return units * sizeof(W) % kLineBytes == 0 && reinterpret_cast<uintptr_t>(first) % kLineBytes == 0;
}

// f(c) for whole vectors of units, the last of them moved back so that it ends with the last unit; with fewer units
// than a vector has, f(0, how many).
template <typename W, typename F>
SDKERNELS_INLINE void over_units(int64_t units, F f) {
  constexpr int64_t kWidth = Lane<W>::kWidth;
  if (units < kWidth) return f(int64_t(0), units);
  for (int64_t c = 0; c < units; c += kWidth) f(std::min(c, units - kWidth));
}

// f(t, n, h, w) for every tile and where it begins.
template <typename F>
SDKERNELS_INLINE void over_tiles(int64_t examples, int64_t height, int64_t width, int64_t units,
                                 [[maybe_unused]] int threads, F f) {
  if (units == 0) return;
  const int64_t down = (height + kTileSide - 1) / kTileSide, across = (width + kTileSide - 1) / kTileSide;
  const int64_t tiles = examples * down * across;
  [[maybe_unused]] const bool parallel = tiles > 1 && tiles * 36 * units > kElementsWorthAThread;
#pragma omp parallel num_threads(threads) if (parallel)
  {
#pragma omp for schedule(static) nowait
    for (int64_t t = 0; t < tiles; ++t)
      f(t, t / (down * across), t / across % down * kTileSide, t % across * kTileSide);
    end_stream();
  }
}

template <bool Relu, typename T>
void run_input(const WinogradInput& p, int threads) {
  using Vector = typename Lane<T>::Vector;
  constexpr int64_t kWidth = Lane<T>::kWidth, kLine = kLineBytes / sizeof(T);
  const int64_t down = (p.height + kTileSide - 1) / kTileSide, across = (p.width + kTileSide - 1) / kTileSide;
  const int64_t step = p.examples * down * across * p.units;
  const bool streamed = is_whole_lines<T>(p.out, p.units);
  AlignedZeros<T> zeros(p.units);
  const T* outside = zeros.data();
  over_tiles(p.examples, p.height, p.width, p.units, threads, [&](int64_t t, int64_t n, int64_t h, int64_t w) {
    const T* from[6][6];
    for (int64_t i = 0; i < 6; ++i)
      for (int64_t j = 0; j < 6; ++j) {
        const int64_t row = h + i - 1, column = w + j - 1;
        const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
        from[i][j] = inside ? static_cast<const T*>(p.x) + n * p.x_n + row * p.x_h + column * p.x_w : outside;
      }
    T* out = static_cast<T*>(p.out) + t * p.units;
    const auto transform = [&](int64_t c, auto put, auto... count) __attribute__((always_inline)) {
      Vector patch[6][6], line[6], result[6];
      for (int64_t j = 0; j < 6; ++j) {
        for (int64_t i = 0; i < 6; ++i) line[i] = rectified<Relu>(loaded(from[i][j] + c, count...));
        transform_in<T>(line, result);
        for (int64_t i = 0; i < 6; ++i) patch[i][j] = result[i];
      }
      for (int64_t i = 0; i < 6; ++i) {
        transform_in<T>(patch[i], result);
        for (int64_t j = 0; j < 6; ++j) put(6 * i + j, result[j]);
      }
    };
    if (!streamed)
      return over_units<T>(p.units, [&](int64_t c, auto... count) __attribute__((always_inline)) {
        const auto put = [&](int64_t i, const Vector& v)
                             __attribute__((always_inline)) { store(v, out + i * step + c, count...); };
        transform(c, put, count...);
      });
    for (int64_t c = 0; c < p.units; c += kLine) {
      [[maybe_unused]] T lines[36][kLine];
      for (int64_t part = 0; part < kLine; part += kWidth)
        transform(c + part, [&](int64_t i, const Vector& v) __attribute__((always_inline)) {
          kWidth == kLine ? stream(v, out + i * step + c) : store(v, lines[i] + part);
        });
      for (int64_t i = 0; i < 36 && kWidth < kLine; ++i)
        for (int64_t part = 0; part < kLine; part += kWidth) stream(loaded(lines[i] + part), out + i * step + c + part);
    }
  });
}

template <bool Relu, bool Add, typename T>
void run_output(const WinogradOutput& p, int threads) {
  using Vector = typename Lane<T>::Vector;
  constexpr int64_t kWidth = Lane<T>::kWidth, kLine = kLineBytes / sizeof(T);
  const bool streamed = kWidth == kLine && is_whole_lines<T>(p.y, p.units);
  const T* bias = static_cast<const T*>(p.bias);
  over_tiles(p.examples, p.height, p.width, p.units, threads, [&](int64_t t, int64_t n, int64_t h, int64_t w) {
    const T* m = static_cast<const T*>(p.m) + t * p.m_t;
    const int64_t rows = std::min(kTileSide, p.height - h), columns = std::min(kTileSide, p.width - w);
    T* y = static_cast<T*>(p.y) + ((n * p.height + h) * p.width + w) * p.units;
    const T* add = Add ? static_cast<const T*>(p.add) + n * p.add_n + h * p.add_h + w * p.add_w : nullptr;
    over_units<T>(p.units, [&](int64_t d, auto... count) __attribute__((always_inline)) {
      Vector half[4][6], line[6], result[4];
      for (int64_t j = 0; j < 6; ++j) {
        for (int64_t i = 0; i < 6; ++i) {
          const T* from = m + (6 * i + j) * p.m_i + d;
          line[i] = loaded(from, count...);
          __builtin_prefetch(from + kLinesAhead * kLine);
        }
        transform_out<T>(line, result);
        for (int64_t i = 0; i < 4; ++i) half[i][j] = result[i];
      }
      const Vector shift = bias ? loaded(bias + d, count...) : Vector{};
      for (int64_t i = 0; i < rows; ++i) {
        transform_out<T>(half[i], result);
        for (int64_t j = 0; j < columns; ++j) {
          Vector sum = result[j] + shift;
          if constexpr (Add) sum += loaded(add + i * p.add_h + j * p.add_w + d, count...);
          T* to = y + (i * p.width + j) * p.units + d;
          streamed ? stream(rectified<Relu>(sum), to) : store(rectified<Relu>(sum), to, count...);
        }
      }
    });
  });
}

// f with a value of the type that a code names, of float64 and float32.
template <typename F>
int with_float(int code, F f) {
  return with_dtype(code, [&](auto zero) {
    if constexpr (std::is_floating_point_v<decltype(zero)>) return f(zero), int(kOk);
    return int(kUnsupportedDType);
  });
}

}  // namespace

int winograd_input(const WinogradInput& p, int threads) {
  return with_float(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    p.relu ? run_input<true, T>(p, threads) : run_input<false, T>(p, threads);
  });
}

int winograd_output(const WinogradOutput& p, int threads) {
  return with_float(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (p.add) return p.relu ? run_output<true, true, T>(p, threads) : run_output<false, true, T>(p, threads);
    p.relu ? run_output<true, false, T>(p, threads) : run_output<false, false, T>(p, threads);
  });
}

}  // namespace sdkernels::SDKERNELS_LEVEL
