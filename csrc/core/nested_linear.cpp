// The curve is walked from its last point, where most is clamped, to its first, and living units only ever return. So
// the first product is a running sum: at each point
//   rows that lived before gain the columns that return,      z[d] += weight[d, returning] a[returning]
//   rows that return start from all living columns,           z[d]  = weight[d, living] a[living]
// and together that is one product for the whole curve. Each thread holds a block of examples' sums in its own cache;
// nothing but logits leaves.
#include "nested_linear.h"

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "dispatch.h"

// These sums are compared by tolerance, not by bits: fused multiply-adds are welcome here.
#pragma GCC optimize("fp-contract=fast")
#pragma GCC diagnostic ignored "-Wpsabi"  // no vector crosses a call: all that use them are inlined

namespace sdkernels {
namespace {

constexpr int64_t kVectorBytes = 64;
constexpr int64_t kVectors = 2;              // a strip: two vectors of examples
constexpr int64_t kRows = 4;                 // rows of the first product a strip accumulates in registers
constexpr int64_t kBlockBytes = 512 * 1024;  // a block's activations and sums, to stay in a core's second-level cache

template <typename T>
struct Lane {
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(kVectorBytes), may_alias));
  static constexpr int64_t kWidth = kVectorBytes / sizeof(T);
  static constexpr int64_t kStrip = kVectors * kWidth;  // examples
};

template <typename T>
struct Problem {
  const T* a;
  const int64_t* units;
  const T* weight;
  const T* bias;
  const T* head;  // [D, L rounded up to whole groups], zeros behind
  const T* head_bias;
  const int64_t* living_in;
  const int64_t* living_out;
  T* logits;
  NestedLinearShape shape;
  int64_t padded_classes;
  int64_t block;  // examples, whole strips
};

// z[row, strip] (+)= sum over columns [from, to) of weight[row, column] a[column, strip], for Rows rows.
template <int Rows, typename T>
SDKERNELS_INLINE void accumulate(const T* weight, int64_t stride, const T* a, T* z, int64_t block, int64_t from,
                                 int64_t to, bool fresh) {
  using Vector = typename Lane<T>::Vector;
  constexpr int64_t kWidth = Lane<T>::kWidth;
  Vector sum[Rows][kVectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = fresh ? Vector{} : *reinterpret_cast<const Vector*>(z + r * block + v * kWidth);
  for (int64_t c = from; c < to; ++c) {
    Vector x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = *reinterpret_cast<const Vector*>(a + c * block + v * kWidth);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] += weight[r * stride + c] * x[v];
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Vector*>(z + r * block + v * kWidth) = sum[r][v];
}

// Rows [first, last) of all strips of a block.
template <typename T>
SDKERNELS_INLINE void accumulate_rows(const Problem<T>& p, const T* a, T* z, int64_t first, int64_t last, int64_t from,
                                      int64_t to, bool fresh) {
  if (from == to && !fresh) return;
  const int64_t stride = p.shape.inputs;
  int64_t row = first;
  for (; row + kRows <= last; row += kRows)
    for (int64_t n = 0; n < p.block; n += Lane<T>::kStrip)
      accumulate<kRows>(p.weight + row * stride, stride, a + n, z + row * p.block + n, p.block, from, to, fresh);
  for (; row < last; ++row)
    for (int64_t n = 0; n < p.block; n += Lane<T>::kStrip)
      accumulate<1>(p.weight + row * stride, stride, a + n, z + row * p.block + n, p.block, from, to, fresh);
}

// Classes [first, first + Group) of one strip at one point, into out[class, strip].
template <int Group, typename T>
SDKERNELS_INLINE void head(const Problem<T>& p, const T* z, const T* bias, int64_t living, int64_t first, T* out) {
  using Vector = typename Lane<T>::Vector;
  constexpr int64_t kWidth = Lane<T>::kWidth;
  Vector sum[Group][kVectors] = {};
  for (int64_t d = 0; d < living; ++d) {
    const T* weight = p.head + d * p.padded_classes + first;
    for (int v = 0; v < kVectors; ++v) {
      const Vector x = *reinterpret_cast<const Vector*>(z + d * p.block + v * kWidth) + bias[d];
      const Vector rectified = x < 0 ? Vector{} : x;  // keeps nan
      for (int l = 0; l < Group; ++l) sum[l][v] += weight[l] * rectified;
    }
  }
  for (int l = 0; l < Group; ++l)
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Vector*>(out + l * Lane<T>::kStrip + v * kWidth) = sum[l][v];
}

constexpr int kGroup = 5;  // classes a strip accumulates in registers: two groups of them are ten classes

template <typename T>
SDKERNELS_INLINE void walk(const Problem<T>& p, int64_t start, T* a, T* z) {
  const NestedLinearShape& s = p.shape;
  const int64_t examples = std::min(p.block, s.examples - start);
  for (int64_t c = 0; c < s.inputs; ++c) {  // units first, in order; zeros behind the last example
    const T* from = p.a + start * s.inputs + p.units[c];
    for (int64_t n = 0; n < examples; ++n) a[c * p.block + n] = from[n * s.inputs];
    std::fill(a + c * p.block + examples, a + (c + 1) * p.block, T(0));
  }
  int64_t columns = 0, rows = 0;
  for (int64_t t = s.points - 1; t >= 0; --t) {
    accumulate_rows(p, a, z, 0, rows, columns, p.living_in[t], false);
    accumulate_rows(p, a, z, rows, p.living_out[t], 0, p.living_in[t], true);
    columns = p.living_in[t];
    rows = p.living_out[t];
    const T* bias = p.bias + (s.bias_rows == 1 ? 0 : t) * s.outputs;
    const T* head_bias = p.head_bias + (s.head_rows == 1 ? 0 : t) * s.classes;
    for (int64_t n = 0; n < examples; n += Lane<T>::kStrip) {
      const int64_t width = std::min(Lane<T>::kStrip, examples - n);
      for (int64_t first = 0; first < s.classes; first += kGroup) {
        alignas(kVectorBytes) T out[kGroup * Lane<T>::kStrip];
        head<kGroup>(p, z + n, bias, rows, first, out);
        for (int64_t l = first; l < std::min(first + kGroup, s.classes); ++l) {
          T* to = p.logits + (t * s.classes + l) * s.examples + start + n;
          const T* from = out + (l - first) * Lane<T>::kStrip;
          for (int64_t i = 0; i < width; ++i) to[i] = from[i] + head_bias[l];
        }
      }
    }
  }
}

SDKERNELS_DISPATCH void walk_block(const Problem<float>& p, int64_t start, float* a, float* z) { walk(p, start, a, z); }
SDKERNELS_DISPATCH void walk_block(const Problem<double>& p, int64_t start, double* a, double* z) {
  walk(p, start, a, z);
}

template <typename T>
void run(Problem<T> p, const T* head, int threads) {
  const NestedLinearShape& s = p.shape;
  p.padded_classes = (s.classes + kGroup - 1) / kGroup * kGroup;
  std::vector<T> transposed(s.outputs * p.padded_classes, T(0));
  for (int64_t l = 0; l < s.classes; ++l)
    for (int64_t d = 0; d < s.outputs; ++d) transposed[d * p.padded_classes + l] = head[l * s.outputs + d];
  p.head = transposed.data();

  constexpr int64_t kStrip = Lane<T>::kStrip;
  const int64_t fitting = kBlockBytes / int64_t(sizeof(T)) / (s.inputs + s.outputs) / kStrip * kStrip;
  const int64_t share = (s.examples + threads - 1) / threads;  // no thread without work
  p.block = std::clamp((share + kStrip - 1) / kStrip * kStrip, kStrip, std::max(kStrip, fitting));
  const int64_t blocks = (s.examples + p.block - 1) / p.block;
  // Allocated before the threads start: nothing may throw among them.
  const int64_t own = (s.inputs + s.outputs) * p.block;
  std::vector<T> memory(own * threads + kVectorBytes / sizeof(T));
  void* aligned = memory.data();
  std::size_t space = memory.size() * sizeof(T);
  T* buffers = static_cast<T*>(std::align(kVectorBytes, own * threads * sizeof(T), aligned, space));
#pragma omp parallel num_threads(threads) if (blocks > 1)
  {
    T* a = buffers + omp_get_thread_num() * own;
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block) walk_block(p, block * p.block, a, a + s.inputs * p.block);
  }
}

}  // namespace

int nested_linear(const void* a, const int64_t* units, const void* weight, const void* bias, const void* head,
                  const void* head_bias, const int64_t* living_in, const int64_t* living_out, void* logits,
                  const NestedLinearShape& shape, int64_t item_size, int threads) {
  const auto run_as = [&](auto zero) {
    using T = decltype(zero);
    Problem<T> p{};
    p.a = static_cast<const T*>(a);
    p.units = units;
    p.weight = static_cast<const T*>(weight);
    p.bias = static_cast<const T*>(bias);
    p.head_bias = static_cast<const T*>(head_bias);
    p.living_in = living_in;
    p.living_out = living_out;
    p.logits = static_cast<T*>(logits);
    p.shape = shape;
    run(p, static_cast<const T*>(head), threads);
    return kOk;
  };
  switch (item_size) {
    case 4:
      return run_as(float{});
    case 8:
      return run_as(double{});
    default:
      return kUnsupportedItemSize;
  }
}

}  // namespace sdkernels
