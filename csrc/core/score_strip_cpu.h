// Scores of a strip of examples, one a lane: what score and nested_linear share.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtype.h"
#include "lane_cpu.h"
#include "level.h"
#include "score.h"

namespace sdkernels::SDKERNELS_LEVEL {

constexpr double kMasked = -1e3;

constexpr int64_t kDoubles = kVectorBytes / sizeof(double);
typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef int64_t Longs __attribute__((vector_size(kVectorBytes)));

// exp(x) of x <= 0, to float64's last digits but one: 2^n e^r by Taylor's series. Below -708 it gives e^-708.
SDKERNELS_INLINE Doubles exp_of_negative(Doubles x) {
  x = x < -708.0 ? Doubles{} - 708.0 : x;
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const Doubles shifted = x * 0x1.71547652b82fep+0 + kRound;
  const Doubles n = shifted - kRound;
  const Doubles r = (x - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
  constexpr double kInverseFactorials[] = {1.0,         1.0,          1.0 / 2,       1.0 / 6,
                                           1.0 / 24,    1.0 / 120,    1.0 / 720,     1.0 / 5040,
                                           1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800};
  Doubles sum = Doubles{} + kInverseFactorials[11];
  for (int i = 10; i >= 0; --i) sum = sum * r + kInverseFactorials[i];
  const Longs scale = ((Longs)shifted << 52) + (int64_t(1023) << 52);  // the integer's low bits become the exponent
  return sum * (Doubles)scale;
}

template <typename W>
SDKERNELS_INLINE Doubles doubles_at(const W* z) {
  Doubles wide;
  for (int64_t i = 0; i < kDoubles; ++i) wide[i] = double(z[i]);
  return wide;
}

// log sum exp of one example, whatever its logits are.
template <typename W>
inline double unusual_log_sum_exp(const W* z, int64_t stride, int64_t classes) {
  double most = z[0], sum = 0;
  for (int64_t l = 1; l < classes; ++l)
    most = z[l * stride] > most || z[l * stride] != z[l * stride] ? z[l * stride] : most;
  if (std::isinf(most)) most = 0;
  for (int64_t l = 0; l < classes; ++l) sum += std::exp(double(z[l * stride]) - most);
  return most + std::log(sum);
}

// Adds the scores of examples [start, start + count) to configuration k; gives the sum of their losses.
template <typename W>
SDKERNELS_INLINE double score_strip(const ScoreTask& task, int64_t k, int64_t start, int64_t count,
                                    const W* z,  // [L, strip], rows `stride` apart, all lanes readable
                                    int64_t stride) {
  using Vector = typename Lane<W>::Vector;
  using Index = typename Lane<W>::Index;
  using Int = typename Lane<W>::Int;
  constexpr int64_t kWidth = Lane<W>::kWidth, kStrip = Lane<W>::kStrip;
  const auto at = [&](int64_t l, int64_t v) __attribute__((always_inline)) {
    Vector x;
    std::memcpy(&x, z + l * stride + v * kWidth, sizeof x);
    return x;
  };
  alignas(kVectorBytes) W label_logit[kStrip];
  alignas(kVectorBytes) Int label_of[kStrip] = {}, given_of[kStrip] = {}, is_real[kStrip] = {};
  for (int64_t i = 0; i < count; ++i) {
    label_of[i] = Int(task.labels[start + i]);
    given_of[i] = task.prediction ? Int(task.prediction[start + i]) : 0;
    is_real[i] = -1;
  }
  for (int64_t i = 0; i < kStrip; ++i) label_logit[i] = z[label_of[i] * stride + i];
  Index label[kVectors], given[kVectors], valid[kVectors];
  std::memcpy(label, label_of, sizeof label);
  std::memcpy(given, given_of, sizeof given);
  std::memcpy(valid, is_real, sizeof valid);
  Vector best[kVectors];
  Index arg[kVectors] = {};
  for (int64_t v = 0; v < kVectors; ++v) best[v] = at(0, v);
  for (int64_t l = 1; l < task.classes; ++l)
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vector x = at(l, v);
      const Index better = (x > best[v]) | ((x != x) & (best[v] == best[v]));
      best[v] = better ? x : best[v];
      arg[v] = better ? Index{} + Int(l) : arg[v];
    }
  const auto count_lanes = [&](const Index* yes) __attribute__((always_inline)) {
    Index sum{};
    for (int64_t v = 0; v < kVectors; ++v) sum -= yes[v] & valid[v];
    int64_t total = 0;
    for (int64_t i = 0; i < kWidth; ++i) total += sum[i];
    return total;
  };
  const auto add = [&](int64_t* to, int64_t value) __attribute__((always_inline)) {
#pragma omp atomic
    *to += value;
  };
  Index right[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) right[v] = arg[v] == label[v];
  add(task.sums.correct + k, count_lanes(right));
  if (task.sums.class_correct)
    for (int64_t i = 0; i < count; ++i)
      if (right[i / kWidth][i % kWidth]) add(task.sums.class_correct + k * task.classes + task.labels[start + i], 1);
  if (task.sums.agreement) {
    Index same[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) same[v] = arg[v] == given[v];
    add(task.sums.agreement + k, count_lanes(same));
  }
  if (task.sums.top) {
    Index inside[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      Vector own;
      std::memcpy(&own, label_logit + v * kWidth, sizeof own);
      Index before{};
      for (int64_t l = 0; l < task.classes; ++l) {
        const Vector x = at(l, v);
        const Index above = (x > own) | ((x != x) & (own == own));
        const Index tied = (x == own) | ((x != x) & (own != own));
        before -= above | (tied & (Index{} + Int(l) < label[v]));
      }
      inside[v] = before < Int(task.top);
    }
    add(task.sums.top + k, count_lanes(inside));
  }
  if (task.sums.ambiguous) {
    Index close[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      Vector lowest = best[v];
      for (int64_t l = 0; l < task.classes; ++l) {
        const Vector x = at(l, v);
        lowest = (x > W(kMasked)) & (x < lowest) ? x : lowest;
      }
      const Vector high = best[v] < 0 ? -best[v] : best[v], low = lowest < 0 ? -lowest : lowest;
      const Vector least = best[v] - W(task.margin) * (high > low ? high : low);
      Index within{};
      for (int64_t l = 0; l < task.classes; ++l) within -= at(l, v) >= least;
      close[v] = within > 1;
    }
    add(task.sums.ambiguous + k, count_lanes(close));
  }
  if (!task.sums.loss) return 0;
  double loss = 0;
  for (int64_t first = 0; first < kStrip; first += kDoubles) {
    if (first >= count) break;
    alignas(kVectorBytes) W most[kDoubles];
    for (int64_t i = 0; i < kDoubles; ++i) most[i] = best[(first + i) / kWidth][(first + i) % kWidth];
    const Doubles top = doubles_at(most);
    Doubles sum{};
    for (int64_t l = 0; l < task.classes; ++l) sum += exp_of_negative(doubles_at(z + l * stride + first) - top);
    double product = 1;  // one logarithm for all: sums lie between 1 and L
    for (int64_t i = 0; i < kDoubles && first + i < count; ++i) {
      if (std::isfinite(most[i])) {
        product *= sum[i];
        loss += double(most[i]) - double(label_logit[first + i]);
      } else {
        loss += unusual_log_sum_exp(z + first + i, stride, task.classes) - double(label_logit[first + i]);
      }
    }
    loss += std::log(product);
  }
  return loss;
}

}  // namespace sdkernels::SDKERNELS_LEVEL
