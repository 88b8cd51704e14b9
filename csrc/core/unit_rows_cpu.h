// What one example says of its units: mean and spread over positions, extremes, how many are positive.
//
// Squares are taken about one of the row's own elements. So the spread loses at most a factor of the row's length in
// digits, however far the mean is from zero; long rows are cut, and the pieces merged.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "dtype.h"
#include "layout.h"
#include "level.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector crosses a call: all that use them are inlined

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

constexpr int64_t kTile = 64;  // units at a time, at most

// Units at a time so that every thread has some, and no more than fit: whole vectors of them.
inline int64_t tile_units(int64_t units, int threads, int64_t fit = kTile) {
  return std::clamp<int64_t>((std::min(units / threads, fit) + 15) / 16 * 16, 16, kTile);
}

// Of up to kTile units of one example.
struct UnitRows {
  double mean[kTile];
  double m2[kTile];  // sum of squares about the mean
  double least[kTile];
  double greatest[kTile];
  int64_t positive[kTile];
};

constexpr int64_t kPiece = 1024;  // positions

// Adds `count` positions to `seen` ones (Chan, Golub, LeVeque 1979).
SDKERNELS_INLINE void merge(double seen, double count, double mean_b, double m2_b, double& mean, double& m2) {
  const double delta = mean_b - mean, share = count / (seen + count);
  mean += delta * share;
  m2 += m2_b + delta * delta * seen * share;
}

// Which lane meets which; it must be known before loops are unrolled.
template <typename Index, size_t Half, size_t... Lane>
SDKERNELS_INLINE Index halves(std::index_sequence<Lane...>) {
  using Int = std::remove_reference_t<decltype(std::declval<Index>()[0])>;
  return Index{Int((Lane + Half) % sizeof...(Lane))...};
}

// All lanes joined, by halves.
template <typename Index, size_t Width, size_t Half = Width / 2, typename Lanes, typename F>
SDKERNELS_INLINE auto joined(const Lanes& x, F join) {
  if constexpr (Half == 0) {
    return x[0];
  } else {
    const Index other = halves<Index, Half>(std::make_index_sequence<Width>());
    return joined<Index, Width, Half / 2>(Lanes(join(x, __builtin_shuffle(x, other))), join);
  }
}

// Sums over positions that lie side by side, in lanes.
template <typename T>
struct LaneSums {
  using W = Wide<T>;
  static constexpr int kStep = kVectorBytes / sizeof(W);
  static constexpr int kDoubles = kVectorBytes / sizeof(double);
  typedef double Doubles __attribute__((vector_size(kVectorBytes)));
  typedef W Wides __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Longs __attribute__((vector_size(kVectorBytes)));
  typedef std::conditional_t<sizeof(W) == 8, int64_t, int32_t> Counts __attribute__((vector_size(kVectorBytes)));
  static constexpr int kParts = kStep / kDoubles;

  double shift;  // the mean, from the first element on
  double m2, first, least, greatest;
  int64_t positive;

  SDKERNELS_INLINE LaneSums(const T* row, int64_t length) {
    const W pivot = widen(row[0]);
    const Doubles about = Doubles{} + double(pivot);
    Doubles s[kParts] = {}, q[kParts] = {};
    Wides low = Wides{} + pivot, high = low;
    Counts count{};
    // The first element, which adds nothing to the sums, stands in for those past the end.
    const int64_t whole = length / kStep * kStep;
    T rest[kStep];
    for (int64_t j = 0; j < kStep && whole < length; ++j) rest[j] = row[whole + j < length ? whole + j : 0];
    for (int64_t b = 0; b < length; b += kStep) {
      const T* x = b < whole ? row + b : rest;
      for (int part = 0; part < kParts; ++part) {
        double wide[kDoubles];
        for (int j = 0; j < kDoubles; ++j) wide[j] = widen(x[kDoubles * part + j]);
        Doubles d;
        std::memcpy(&d, wide, sizeof d);
        d -= about;
        s[part] += d;
        q[part] += d * d;
      }
      W wide[kStep];
      for (int j = 0; j < kStep; ++j) wide[j] = widen(x[j]);
      Wides v;
      std::memcpy(&v, wide, sizeof v);
      low = v < low ? v : low;
      high = v > high ? v : high;
      count -= v > 0;
    }
    if (whole < length && pivot > 0) count[0] -= int(kStep - (length - whole));
    for (int part = 1; part < kParts; ++part) s[0] += s[part], q[0] += q[part];
    const auto add = [](const auto& x, const auto& y) __attribute__((always_inline)) { return x + y; };
    const double sum = joined<Longs, kDoubles>(s[0], add);
    first = pivot;
    shift = sum / double(length);
    m2 = joined<Longs, kDoubles>(q[0], add) - sum * shift;
    least = joined<Counts, kStep>(
        low, [](const auto& x, const auto& y) __attribute__((always_inline)) -> Wides { return x < y ? x : y; });
    greatest = joined<Counts, kStep>(
        high, [](const auto& x, const auto& y) __attribute__((always_inline)) -> Wides { return x > y ? x : y; });
    positive = joined<Counts, kStep>(count, add);
  }
};

// A row with an element that is not finite, by the definition.
template <typename T>
inline void unusual_row(const Activation& x, const T* row, UnitRows& rows, int64_t i) {
  double sum = 0;
  Wide<T> least = widen(*row), greatest = least;
  for (int64_t a = 0; a < x.before; ++a)
    for (int64_t b = 0; b < x.after; ++b) {
      const Wide<T> v = widen(row[a * x.strides.a + b * x.strides.b]);
      sum += v;
      if (v < least || v != v) least = v;
      if (v > greatest || v != v) greatest = v;
    }
  rows.mean[i] = sum / double(x.before * x.after);
  rows.m2[i] = std::numeric_limits<double>::quiet_NaN();
  rows.least[i] = least;
  rows.greatest[i] = greatest;
}

// Positions lie side by side: lanes run along them.
template <typename T>
SDKERNELS_INLINE void rows_by_positions(const Activation& x, const T* first, int64_t units, UnitRows& rows) {
  double seen = 0;
  for (int64_t a = 0; a < x.before; ++a)
    for (int64_t start = 0; start < x.after; start += kPiece) {
      const int64_t length = std::min(kPiece, x.after - start);
      for (int64_t i = 0; i < units; ++i) {
        const LaneSums<T> sums(first + i * x.strides.c + a * x.strides.a + start, length);
        if (seen == 0) {
          rows.mean[i] = sums.first + sums.shift, rows.m2[i] = sums.m2;
          rows.least[i] = sums.least, rows.greatest[i] = sums.greatest, rows.positive[i] = sums.positive;
          continue;
        }
        merge(seen, double(length), sums.first + sums.shift, sums.m2, rows.mean[i], rows.m2[i]);
        rows.least[i] = std::min(rows.least[i], sums.least);
        rows.greatest[i] = std::max(rows.greatest[i], sums.greatest);
        rows.positive[i] += sums.positive;
      }
      seen += double(length);
    }
  for (int64_t i = 0; i < units; ++i)
    if (!std::isfinite(rows.mean[i])) unusual_row(x, first + i * x.strides.c, rows, i);
}

// One position a unit.
template <typename T>
SDKERNELS_INLINE void rows_of_one(const T* first, int64_t stride, int64_t units, UnitRows& rows) {
  for (int64_t i = 0; i < units; ++i) {
    const Wide<T> v = widen(first[i * stride]);
    rows.mean[i] = v;
    rows.m2[i] = 0;
    rows.least[i] = rows.greatest[i] = v;
    rows.positive[i] = v > 0;
  }
}

// Units lie side by side, or nothing does: vectors run along units.
template <typename T>
SDKERNELS_INLINE void rows_by_units(const Activation& x, const T* first, int64_t stride, int64_t units,
                                    UnitRows& rows) {
  using W = Wide<T>;
  const int64_t positions = x.before * x.after;
  int64_t a = 0, b = 0;
  for (int64_t seen = 0; seen < positions;) {
    const int64_t length = std::min(kPiece, positions - seen);
    double pivot[kTile], sum[kTile], square[kTile];
    W least[kTile], greatest[kTile];
    std::conditional_t<sizeof(W) == 8, int64_t, int32_t> positive[kTile];
    const T* start = first + a * x.strides.a + b * x.strides.b;
    for (int64_t i = 0; i < units; ++i) {
      pivot[i] = least[i] = greatest[i] = widen(start[i * stride]);
      sum[i] = square[i] = 0;
      positive[i] = 0;
    }
    for (int64_t s = 0; s < length; ++s) {
      const T* place = first + a * x.strides.a + b * x.strides.b;
#pragma omp simd
      for (int64_t i = 0; i < units; ++i) {
        const double d = double(widen(place[i * stride])) - pivot[i];
        sum[i] += d;
        square[i] += d * d;
      }
#pragma omp simd
      for (int64_t i = 0; i < units; ++i) {
        const W v = widen(place[i * stride]);
        least[i] = v < least[i] ? v : least[i];
        greatest[i] = v > greatest[i] ? v : greatest[i];
        positive[i] += v > 0;
      }
      if (++b == x.after) b = 0, ++a;
    }
    for (int64_t i = 0; i < units; ++i) {
      const double shift = sum[i] / double(length);
      if (seen == 0) {
        rows.mean[i] = rows.m2[i] = 0;
        rows.least[i] = least[i], rows.greatest[i] = greatest[i], rows.positive[i] = 0;
      }
      merge(double(seen), double(length), pivot[i] + shift, square[i] - sum[i] * shift, rows.mean[i], rows.m2[i]);
      rows.least[i] = std::min(rows.least[i], double(least[i]));
      rows.greatest[i] = std::max(rows.greatest[i], double(greatest[i]));
      rows.positive[i] += positive[i];
    }
    seen += length;
  }
  for (int64_t i = 0; i < units; ++i)
    if (!std::isfinite(rows.mean[i])) unusual_row(x, first + i * stride, rows, i);
}

// `first` is an example's first element of the tile.
template <typename T>
SDKERNELS_INLINE void unit_rows(const Activation& x, const T* first, int64_t units, UnitRows& rows) {
  const int64_t stride = x.strides.c;
  if (x.after > 1 && x.strides.b == 1) return rows_by_positions(x, first, units, rows);
  if (x.before * x.after == 1)
    return stride == 1 ? rows_of_one(first, 1, units, rows) : rows_of_one(first, stride, units, rows);
  stride == 1 ? rows_by_units(x, first, 1, units, rows) : rows_by_units(x, first, stride, units, rows);
}

}  // namespace
}  // namespace sdkernels::SDKERNELS_LEVEL
