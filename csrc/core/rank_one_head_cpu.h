// Lanes are outputs of the layer. (In nested_linear they are examples.) So any rows can stand side by side: those where
// the unit is at its value already, half of them in a ReLU network and in no pattern, are copied, and what remains
// needs no gathering. A few rows at a time share what is read of the head, and their sums stay in registers.
//
// A row's sums are added in an order of its own, whatever rows stand beside it and whoever computes them.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "affine_cpu.h"
#include "dtype.h"
#include "lane_cpu.h"
#include "level.h"
#include "rank_one_head.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

constexpr int kTogether = 2;                  // rows
constexpr int64_t kTileRows = 1024;           // rows a task, those that are only copied too
constexpr int64_t kTileBytes = 256 * 1024;    // a task's part of z, to stay in a core's second-level cache
constexpr int64_t kHiddenBytes = 128 * 1024;  // outputs that are kept for further groups of classes, likewise
constexpr int64_t kTasksAThread = 4;          // where there are rows enough

// Whether outputs are computed for the only group of classes, or for the first and kept, or read again.
enum class Hidden { kOnce, kFirst, kAgain };

template <typename W>
struct Row {
  const W* z;       // [D]
  const W* weight;  // [D]
  W change;
  int64_t out;  // of its first logit
};

template <typename W>
struct HeadProblem {
  const RankOneHead* given;
  const W* scale;
  const W* shift;
  const W* head;  // by groups of classes: [D in vectors, group, a vector]; zeros behind
  const W* head_bias;
  int64_t padded_outputs;  // whole vectors
};

// x[p] + x[p + Block] in lanes without this bit, y[p - Block] + y[p] in those with it.
template <int Block, typename W, size_t... P>
SDKERNELS_INLINE auto folded(const typename Lane<W>::Vector& x, const typename Lane<W>::Vector& y,
                             std::index_sequence<P...>) {
  using Vector = typename Lane<W>::Vector;
  using Index = typename Lane<W>::Index;
  constexpr size_t kWidth = Lane<W>::kWidth;
  const Index own{(P & Block ? kWidth + P : P)...};
  const Index other{(P & Block ? kWidth + P - Block : P + Block)...};
  return Vector(__builtin_shuffle(x, y, own) + __builtin_shuffle(x, y, other));
}

// The sum of each vector's lanes, into as many numbers and up to whole vectors.
template <typename W, int Block = 1, size_t Count>
SDKERNELS_INLINE void sum_lanes(const typename Lane<W>::Vector (&x)[Count], W* out) {
  using Vector = typename Lane<W>::Vector;
  if constexpr (Block == Lane<W>::kWidth) {
    std::memcpy(out, x, sizeof x);
  } else {
    Vector half[(Count + 1) / 2];
    for (size_t i = 0; i < (Count + 1) / 2; ++i)
      half[i] =
          folded<Block, W>(x[2 * i], x[std::min(2 * i + 1, Count - 1)], std::make_index_sequence<Lane<W>::kWidth>());
    sum_lanes<W, 2 * Block>(half, out);
  }
}

// A group of classes of kTogether rows: out[row][class], without bias.
template <Hidden Kind, bool Affine, bool Relu, int Group, typename W>
SDKERNELS_INLINE void sum_group(const HeadProblem<W>& p, const Row<W>* rows, const W* head, W* hidden, W* out) {
  using Vector = typename Lane<W>::Vector;
  constexpr int64_t kWidth = Lane<W>::kWidth;
  const int64_t outputs = p.given->outputs, whole = outputs / kWidth * kWidth;
  Vector sum[kTogether * Group] = {};
  const auto add = [&](const Vector(&x)[kTogether], int64_t d) __attribute__((always_inline)) {
    for (int l = 0; l < Group; ++l) {
      Vector weight = *reinterpret_cast<const Vector*>(head + d * Group + l * kWidth);
      hold(weight);
      for (int r = 0; r < kTogether; ++r) sum[r * Group + l] += weight * x[r];
    }
  };
  const auto output = [&](const Row<W>& row, int64_t d, auto... count) __attribute__((always_inline)) {
    Vector x = loaded(row.z + d, count...) + loaded(row.weight + d, count...) * row.change;
    if (Affine) x = x * loaded(p.scale + d, count...) + loaded(p.shift + d, count...);
    return rectified<Relu>(x);
  };
  const auto keep = [&](const Vector(&x)[kTogether], int64_t d) __attribute__((always_inline)) {
    if constexpr (Kind == Hidden::kFirst)
      for (int r = 0; r < kTogether; ++r) *reinterpret_cast<Vector*>(hidden + r * p.padded_outputs + d) = x[r];
  };
  Vector x[kTogether];
  if constexpr (Kind == Hidden::kAgain) {
    for (int64_t d = 0; d < p.padded_outputs; d += kWidth) {
      for (int r = 0; r < kTogether; ++r) x[r] = *reinterpret_cast<const Vector*>(hidden + r * p.padded_outputs + d);
      add(x, d);
    }
  } else {
    for (int64_t d = 0; d < whole; d += kWidth) {
      for (int r = 0; r < kTogether; ++r) x[r] = output(rows[r], d);
      keep(x, d);
      add(x, d);
    }
    if (whole < outputs) {
      W lanes[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) lanes[i] = W(i);
      const auto inside = loaded(lanes) < W(outputs - whole);
      // Behind the last output 0 * inf would be nan.
      for (int r = 0; r < kTogether; ++r) {
        x[r] = output(rows[r], whole, outputs - whole);
        x[r] = inside ? x[r] : Vector{};
      }
      keep(x, whole);
      add(x, whole);
    }
  }
  sum_lanes<W>(sum, out);
}

// Not inlined: float16 and bfloat16 run what float32 does.
template <Hidden Kind, typename W>
__attribute__((noinline)) void sum_any_group(const HeadProblem<W>& p, const Row<W>* rows, const W* head, int64_t group,
                                             W* hidden, W* out) {
  const auto run = [&](auto affine, auto relu) __attribute__((always_inline)) {
    if (group == kMany) return sum_group<Kind, affine, relu, kMany>(p, rows, head, hidden, out);
    sum_group<Kind, affine, relu, kFew>(p, rows, head, hidden, out);
  };
  const std::true_type yes;
  const std::false_type no;
  if (Kind == Hidden::kAgain) return run(no, no);
  if (p.scale) return p.given->relu ? run(yes, yes) : run(yes, no);
  p.given->relu ? run(no, yes) : run(no, no);
}

// The logits of rows, of an even number of them.
template <typename T, typename W>
SDKERNELS_INLINE void write_rows(const HeadProblem<W>& p, const Row<W>* rows, int64_t count, W* hidden) {
  constexpr int64_t kWidth = Lane<W>::kWidth;
  const int64_t classes = p.given->classes;
  T* out = static_cast<T*>(p.given->out);
  W sums[(kTogether * kMany + kWidth - 1) / kWidth * kWidth];
  int64_t group = 0;
  for (int64_t first = 0; first < classes; first += group) {
    group = group_of(classes - first);
    const W* head = p.head + first * p.padded_outputs;
    for (int64_t i = 0; i < count; i += kTogether) {
      W* own = hidden + (group < classes ? i * p.padded_outputs : 0);
      if (first > 0)
        sum_any_group<Hidden::kAgain>(p, rows + i, head, group, own, sums);
      else if (group < classes)
        sum_any_group<Hidden::kFirst>(p, rows + i, head, group, own, sums);
      else
        sum_any_group<Hidden::kOnce>(p, rows + i, head, group, own, sums);
      for (int64_t r = 0; r < kTogether; ++r)
        for (int64_t l = first; l < std::min(first + group, classes); ++l)
          out[rows[i + r].out + l] = narrow<T>(sums[r * group + l - first] + (p.head_bias ? p.head_bias[l] : W(0)));
    }
  }
}

// Units [k, k_end) of examples [n, n_end).
template <typename T, typename W>
SDKERNELS_INLINE void write_tile(const HeadProblem<W>& p, int64_t k, int64_t k_end, int64_t n, int64_t n_end,
                                 int64_t batch, Row<W>* rows, W* hidden) {
  const RankOneHead& s = *p.given;
  int64_t count = 0;
  for (; k < k_end; ++k) {
    const int64_t c = s.units[k];
    const T* a = static_cast<const T*>(s.a) + c * s.a_c;
    const W value = s.value ? widen(static_cast<const T*>(s.value)[c]) : W(0);
    const W* weight = static_cast<const W*>(s.weight) + c * s.outputs;
    int64_t out = (k * s.examples + n) * s.classes;
    if (s.intact)  // of all, for what is computed is written later; a copy row by row takes longer
      std::memcpy(static_cast<T*>(s.out) + out, static_cast<const T*>(s.intact) + n * s.classes,
                  (n_end - n) * s.classes * sizeof(T));
    for (int64_t i = n; i < n_end; ++i, out += s.classes) {
      const W x = widen(a[i * s.a_n]);
      rows[count] = {static_cast<const W*>(s.z) + i * s.outputs, weight, value - x, out};
      count += !(s.intact && x == value);  // no branch: nothing foretells it
    }
  }
  if (count % kTogether) rows[count] = rows[count - 1], ++count;  // written twice, the same both times
  for (int64_t i = 0; i < count; i += batch) write_rows<T>(p, rows + i, std::min(batch, count - i), hidden);
}

template <typename T>
void run_head(const RankOneHead& s, int threads) {
  using W = Wide<T>;
  constexpr int64_t kWidth = Lane<W>::kWidth;
  HeadProblem<W> p{};
  p.given = &s;
  p.scale = static_cast<const W*>(s.scale);
  p.shift = static_cast<const W*>(s.shift);
  p.head_bias = static_cast<const W*>(s.head_bias);
  p.padded_outputs = (s.outputs + kWidth - 1) / kWidth * kWidth;
  AlignedZeros<W> head(padded_to_groups(s.classes) * p.padded_outputs);
  int64_t group = 0;
  for (int64_t first = 0; first < s.classes; first += group) {
    group = group_of(s.classes - first);
    W* to = head.data() + first * p.padded_outputs;
    for (int64_t l = 0; l < std::min(group, s.classes - first); ++l)
      for (int64_t d = 0; d < s.outputs; ++d)
        to[(d / kWidth * group + l) * kWidth + d % kWidth] = static_cast<const W*>(s.head)[(first + l) * s.outputs + d];
  }
  p.head = head.data();

  const int64_t row_bytes = p.padded_outputs * int64_t(sizeof(W));
  const int64_t examples = std::min(s.examples, std::clamp<int64_t>(kTileBytes / row_bytes, 1, kTileRows));
  const int64_t example_tiles = (s.examples + examples - 1) / examples;
  const int64_t share = s.k * example_tiles / (threads * kTasksAThread);
  const int64_t units = std::clamp<int64_t>(share, 1, kTileRows / examples);
  const int64_t unit_tiles = (s.k + units - 1) / units;
  const int64_t batch = std::clamp<int64_t>(kHiddenBytes / row_bytes / kTogether, 1, kTileRows) * kTogether;
  // Allocated before the threads start: nothing may throw among them.
  const int64_t kept = s.classes > group_of(s.classes) ? std::min(batch, examples * units + 1) * p.padded_outputs : 0;
  AlignedZeros<W> hidden(kept * threads);
  std::vector<Row<W>> rows((kTileRows + 1) * threads);
#pragma omp parallel for num_threads(threads) if (example_tiles * unit_tiles > 1) schedule(dynamic)
  for (int64_t tile = 0; tile < example_tiles * unit_tiles; ++tile) {
    const int64_t n = tile / unit_tiles * examples, k = tile % unit_tiles * units;
    const int thread = omp_get_thread_num();
    write_tile<T>(p, k, std::min(k + units, s.k), n, std::min(n + examples, s.examples), batch,
                  rows.data() + (kTileRows + 1) * thread, hidden.data() + kept * thread);
  }
}

}  // namespace

int rank_one_head(const RankOneHead& p, int threads) {
  return with_dtype(p.dtype, [&](auto type) {
    run_head<decltype(type)>(p, threads);
    return int(kOk);
  });
}

}  // namespace sdkernels::SDKERNELS_LEVEL
