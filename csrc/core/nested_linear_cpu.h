// The curve is walked from its last point, where most is clamped, to its first, and living units only ever return. So
// the first product is a running sum: at each point
//   rows that lived before gain the columns that return,      z[d] += weight[d, returning] a[returning]
//   rows that return start from all living columns,           z[d]  = weight[d, living] a[living]
// and together that is one product for the whole curve. Each thread holds a block of examples' sums in its own cache;
// nothing leaves but outputs, logits or, where scores are asked for, counts.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "dtype.h"
#include "lane_cpu.h"
#include "level.h"
#include "nested_linear.h"
#include "score_strip_cpu.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

constexpr int kRows = kVectorBytes == 64 ? 8 : 4;  // rows of the first product a strip accumulates in registers
constexpr int64_t kFewColumns = 8;  // that return at a point: the head then reads each sum as soon as it is there
constexpr int64_t kBlockBytes = 512 * 1024;  // a block's activations and sums, to stay in a core's second-level cache

template <typename T>
struct Problem {
  using W = Wide<T>;
  const NestedLinear* given;
  const W* weight;
  const W* bias;
  const W* head;  // [D, L rounded up to a multiple of kFew], zeros behind
  const W* head_bias;
  int64_t padded_classes;
  int64_t block;   // examples, whole strips
  double* losses;  // [T, strips]
  int64_t strips;
};

// Of one strip, z[row] (+)= sum over columns [from, to) of weight[row, column] a[column], for Rows rows.
template <int Rows, typename W>
SDKERNELS_INLINE void accumulate(const W* weight, int64_t stride, const W* a, W* z, int64_t from, int64_t to,
                                 bool fresh) {
  using Vector = typename Lane<W>::Vector;
  constexpr int64_t kWidth = Lane<W>::kWidth, kStrip = Lane<W>::kStrip;
  Vector sum[Rows][kVectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = fresh ? Vector{} : *reinterpret_cast<const Vector*>(z + r * kStrip + v * kWidth);
  for (int64_t c = from; c < to; ++c) {
    Vector x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = *reinterpret_cast<const Vector*>(a + c * kStrip + v * kWidth);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] += weight[r * stride + c] * x[v];
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Vector*>(z + r * kStrip + v * kWidth) = sum[r][v];
}

// Rows [first, last) of all strips of a block: a [strips, C, strip], z [strips, D, strip].
template <typename W>
SDKERNELS_INLINE void accumulate_rows(const NestedLinear& s, const W* weight, const W* a, W* z, int64_t strips,
                                      int64_t first, int64_t last, int64_t from, int64_t to, bool fresh) {
  if (from == to && !fresh) return;
  constexpr int64_t kStrip = Lane<W>::kStrip;
  const auto rows = [&](int64_t row, auto count) __attribute__((always_inline)) {
    for (int64_t n = 0; n < strips; ++n)
      accumulate<count>(weight + row * s.inputs, s.inputs, a + n * s.inputs * kStrip,
                        z + (n * s.outputs + row) * kStrip, from, to, fresh);
  };
  int64_t row = first;
  for (; row + kRows <= last; row += kRows) rows(row, std::integral_constant<int, kRows>());
  for (; row + 4 <= last; row += 4) rows(row, std::integral_constant<int, 4>());
  for (; row < last; ++row) rows(row, std::integral_constant<int, 1>());
}

// Bias and activation of one output of a strip.
template <bool Relu, typename Vector, typename W>
SDKERNELS_INLINE Vector activated(Vector x, W bias) {
  return rectified<Relu>(Vector(x + bias));
}

// What the head does of one strip at one point. Rows before `old` first gain columns [from, to).
template <typename W>
struct HeadTask {
  const W* weight;  // [D, C]
  const W* head;    // [D, padded classes], from the first class of the group on
  const W* bias;    // [D]
  const W* a;       // [C, strip]
  W* z;             // [D, strip]
  int64_t stride, padded_classes, old, living, from, to;
};

// A group of classes, into out[class, strip].
template <bool Relu, int Group, typename W>
SDKERNELS_INLINE void head(const HeadTask<W>& p, W* out) {
  using Vector = typename Lane<W>::Vector;
  constexpr int64_t kWidth = Lane<W>::kWidth, kStrip = Lane<W>::kStrip;
  Vector sum[Group][kVectors] = {};
  const auto add = [&](const Vector& z0, const Vector& z1, int64_t d) __attribute__((always_inline)) {
    const W* weight = p.head + d * p.padded_classes;
    const Vector x0 = activated<Relu>(z0, p.bias[d]), x1 = activated<Relu>(z1, p.bias[d]);
    for (int l = 0; l < Group; ++l) {
      sum[l][0] += weight[l] * x0;
      sum[l][1] += weight[l] * x1;
    }
  };
  for (int64_t d = 0; d < p.old; ++d) {
    Vector* own = reinterpret_cast<Vector*>(p.z + d * kStrip);
    Vector z0 = own[0], z1 = own[1];
    for (int64_t c = p.from; c < p.to; ++c) {
      const Vector* a = reinterpret_cast<const Vector*>(p.a + c * kStrip);
      const W w = p.weight[d * p.stride + c];
      z0 += w * a[0];
      z1 += w * a[1];
    }
    own[0] = z0, own[1] = z1;
    add(z0, z1, d);
  }
  for (int64_t d = p.old; d < p.living; ++d) {
    const Vector* own = reinterpret_cast<const Vector*>(p.z + d * kStrip);
    add(own[0], own[1], d);
  }
  for (int l = 0; l < Group; ++l)
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Vector*>(out + l * kStrip + v * kWidth) = sum[l][v];
}

// Writes `width` examples of a strip, narrowed.
template <typename T, typename W>
SDKERNELS_INLINE void write(const NestedLinear& s, int64_t t, int64_t rows, int64_t row, int64_t n, int64_t width,
                            const W* from, W plus) {
  T* to = static_cast<T*>(s.out) + (t * rows + row) * s.examples + n;
  for (int64_t i = 0; i < width; ++i) to[i] = narrow<T>(from[i] + plus);
}

// The outputs of one strip at one point; clamped ones are zero.
template <typename T, typename W>
SDKERNELS_INLINE void emit_outputs(const NestedLinear& s, int64_t t, int64_t n, int64_t width, int64_t living,
                                   const W* bias, const W* z) {
  using Vector = typename Lane<W>::Vector;
  constexpr int64_t kStrip = Lane<W>::kStrip;
  alignas(kVectorBytes) W row[kStrip];
  for (int64_t d = 0; d < living; ++d) {
    Vector x[kVectors];
    std::memcpy(x, z + d * kStrip, sizeof x);
    for (int v = 0; v < kVectors; ++v) x[v] = s.relu ? activated<true>(x[v], bias[d]) : activated<false>(x[v], bias[d]);
    std::memcpy(row, x, sizeof row);
    write<T>(s, t, s.outputs, d, n, width, row, W(0));
  }
  std::fill(row, row + kStrip, W(0));
  for (int64_t d = living; d < s.outputs; ++d) write<T>(s, t, s.outputs, d, n, width, row, W(0));
}

// The logits of one strip at one point, and their scores.
template <typename T, typename W>
SDKERNELS_INLINE void emit_logits(const Problem<T>& p, int64_t t, int64_t n, int64_t width, HeadTask<W> task,
                                  W* logits) {
  constexpr int64_t kStrip = Lane<W>::kStrip;
  const NestedLinear& s = *p.given;
  const W* head_bias = p.head_bias + (s.head_rows == 1 ? 0 : t) * s.classes;
  int64_t group = 0;
  for (int64_t first = 0; first < s.classes; first += group) {
    group = group_of(s.classes - first);
    task.head = p.head + first;
    W* out = logits + first * kStrip;
    if (group == kMany)
      s.relu ? head<true, kMany>(task, out) : head<false, kMany>(task, out);
    else
      s.relu ? head<true, kFew>(task, out) : head<false, kFew>(task, out);
    task.from = task.to;  // the first group has added the columns
    for (int64_t l = first; l < std::min(first + group, s.classes); ++l) {
      if (s.out) write<T>(s, t, s.classes, l, n, width, logits + l * kStrip, head_bias[l]);
      if (s.score.sums.correct)
        for (int64_t i = 0; i < kStrip; ++i) logits[l * kStrip + i] += head_bias[l];
    }
  }
  if (s.score.sums.correct) p.losses[t * p.strips + n / kStrip] = score_strip(s.score, t, n, width, logits, kStrip);
}

// One block of examples: a [strips, C, strip] and z [strips, D, strip] are the thread's own memory.
template <typename T, typename W>
SDKERNELS_INLINE void walk(const Problem<T>& p, int64_t start, W* a, W* z, W* logits) {
  constexpr int64_t kStrip = Lane<W>::kStrip;
  const NestedLinear& s = *p.given;
  const int64_t examples = std::min(p.block, s.examples - start), strips = (examples + kStrip - 1) / kStrip;
  for (int64_t n = 0; n < strips * kStrip; ++n) {  // units first, in order; zeros behind the last example
    const T* from = static_cast<const T*>(s.a) + (start + n) * s.a_example;
    W* to = a + n / kStrip * s.inputs * kStrip + n % kStrip;
    for (int64_t c = 0; c < s.inputs; ++c) to[c * kStrip] = n < examples ? widen(from[s.units[c] * s.a_input]) : W(0);
  }
  int64_t columns = 0, rows = 0;
  for (int64_t t = s.points - 1; t >= 0; --t) {
    const int64_t living_in = s.living_in[t], living = s.living_out[t];
    const bool with_head = s.head && living_in - columns <= kFewColumns;
    if (!with_head) accumulate_rows(s, p.weight, a, z, strips, 0, rows, columns, living_in, false);
    accumulate_rows(s, p.weight, a, z, strips, rows, living, 0, living_in, true);
    const W* bias = p.bias + (s.bias_rows == 1 ? 0 : t) * s.outputs;
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t n = start + strip * kStrip, width = std::min(kStrip, start + examples - n);
      W* own = z + strip * s.outputs * kStrip;
      if (s.head)
        emit_logits<T>(p, t, n, width,
                       HeadTask<W>{p.weight, p.head, bias, a + strip * s.inputs * kStrip, own, s.inputs,
                                   p.padded_classes, rows, living, with_head ? columns : living_in, living_in},
                       logits);
      else
        emit_outputs<T>(s, t, n, width, living, bias, own);
    }
    columns = living_in;
    rows = living;
  }
}

template <typename T>
void run(const NestedLinear& s, int threads) {
  using W = Wide<T>;
  constexpr int64_t kStrip = Lane<W>::kStrip;
  Problem<T> p{};
  p.given = &s;
  p.weight = static_cast<const W*>(s.weight);
  p.bias = static_cast<const W*>(s.bias);
  p.head_bias = static_cast<const W*>(s.head_bias);
  p.padded_classes = padded_to_groups(s.classes);
  std::vector<W> transposed(s.outputs * p.padded_classes, W(0));
  for (int64_t l = 0; l < s.classes; ++l)
    for (int64_t d = 0; d < s.outputs; ++d)
      transposed[d * p.padded_classes + l] = static_cast<const W*>(s.head)[l * s.outputs + d];
  p.head = transposed.data();
  p.strips = (s.examples + kStrip - 1) / kStrip;
  std::vector<double> losses(s.score.sums.correct ? s.points * p.strips : 0);
  p.losses = losses.data();

  const int64_t fitting = kBlockBytes / int64_t(sizeof(W)) / (s.inputs + s.outputs) / kStrip * kStrip;
  const int64_t share = (s.examples + threads - 1) / threads;  // no thread without work
  p.block = std::clamp((share + kStrip - 1) / kStrip * kStrip, kStrip, std::max(kStrip, fitting));
  const int64_t blocks = (s.examples + p.block - 1) / p.block;
  // Allocated before the threads start: nothing may throw among them.
  const int64_t own = (s.inputs + s.outputs) * p.block + p.padded_classes * kStrip;
  AlignedZeros<W> memory(own * threads);
#pragma omp parallel num_threads(threads) if (blocks > 1)
  {
    W* a = memory.data() + omp_get_thread_num() * own;
    W* z = a + s.inputs * p.block;
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block) walk(p, block * p.block, a, z, z + s.outputs * p.block);
  }
  if (s.score.sums.loss)
    for (int64_t i = 0; i < int64_t(losses.size()); ++i) s.score.sums.loss[i / p.strips] += losses[i];
}

}  // namespace

int nested_linear(const NestedLinear& p, int threads) {
  return with_dtype(p.dtype, [&](auto type) {
    run<decltype(type)>(p, threads);
    return int(kOk);
  });
}

}  // namespace sdkernels::SDKERNELS_LEVEL
