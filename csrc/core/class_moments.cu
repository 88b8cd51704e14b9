// Examples are put in the order of their classes and cut into ranges. A thread, or the lanes of a row, has one unit and
// one range, and keeps the sums of one class at a time in registers: any number of classes costs the same. Range r and
// class l meet in partial r + l, which no other pair has, since both only rise along the order. Two more kernels add up
// partials in a fixed order, so that results are the same at every run; no float is added atomically.
//
// Squares are taken about one of the data's own elements. So a sum of n squares loses at most a factor n in digits,
// however far the mean is from zero. How many ranges and slices are best is not yet measured.
#include <cmath>

#include "class_moments.h"
#include "class_order.cuh"
#include "rows.cuh"

namespace sdkernels {
namespace cuda {
namespace {

constexpr int kMergedUnits = 32, kSlices = 8;  // of a block that adds up partials
static_assert(kMergedUnits * kSlices == kThreads);

// All in temporary memory.
struct Partials {
  double* pivot;            // [R + L, C], and about it the sums of rows' means and of their squares
  double* sum;              // [R + L, C]
  double* square;           // [R + L, C]
  double* row_m2;           // [R, C], within rows
  double* minimum;          // [R, C]
  double* maximum;          // [R, C]
  int64_t* fired;           // [R, C]
  int64_t* fired_elements;  // [R, C]
  double* batch_mean;       // [L, C]
  double* batch_m2;         // [L, C]
  int64_t* elements;        // [], before this batch
};

struct Task {
  Rows rows;
  const void* x;  // [N, A, C, B]
  ClassOrder by_class;
  Moments moments;
  Partials partials;
};

__device__ __forceinline__ double lesser(double a, double b) { return b < a || b != b ? b : a; }   // nan if either is
__device__ __forceinline__ double greater(double a, double b) { return b > a || b != b ? b : a; }  // likewise

// Sums about a pivot.
struct Spread {
  double pivot, sum = 0, square = 0;

  // Infinity is no pivot: all but the definition's own infinities would become nan.
  __device__ __forceinline__ explicit Spread(double first) : pivot(isinf(first) ? 0 : first) {}
  __device__ __forceinline__ void add(double v) {
    const double d = v - pivot;
    sum += d;
    square += d * d;
  }
};

// Extremes and positive elements that a thread has seen.
template <typename T>
struct Extremes {
  Wide<T> least = INFINITY, greatest = -INFINITY;
  bool nan = false;
  int64_t positive = 0;

  __device__ __forceinline__ void add(Wide<T> v) {
    least = v < least ? v : least;
    greatest = v > greatest ? v : greatest;
    nan |= v != v;
    positive += v > 0;
  }
};

// The class of the example in this place of the order.
__device__ __forceinline__ int64_t class_at(const ClassOrder& o, int64_t place) {
  int64_t low = 0, high = o.classes;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (o.begin[middle] <= place ? low : high) = middle;
  }
  return low;
}

// Calls sum_up(first, end) for the examples of each class in a range, and stores what it gives.
template <typename SumUp>
__device__ __forceinline__ void for_classes(const Task& task, int64_t range, int64_t c, bool stores, SumUp sum_up) {
  const ClassOrder& o = task.by_class;
  const int64_t begin = range * task.rows.range_length, end = min(begin + task.rows.range_length, o.examples);
  int64_t label = class_at(o, begin);
  for (int64_t place = begin; place < end; ++label) {
    const int64_t stop = min(end, o.begin[label + 1]);
    if (stop == place) continue;
    const Spread means = sum_up(place, stop);
    if (stores) {
      const int64_t at = (range + label) * task.rows.units + c;
      task.partials.pivot[at] = means.pivot;
      task.partials.sum[at] = means.sum;
      task.partials.square[at] = means.square;
    }
    place = stop;
  }
}

template <typename T>
__device__ __forceinline__ void store_range(const Task& task, int64_t range, int64_t c, double row_m2,
                                            const Extremes<T>& seen, int64_t fired) {
  const Partials& p = task.partials;
  const int64_t at = range * task.rows.units + c;
  p.row_m2[at] = row_m2;
  p.minimum[at] = seen.nan ? NAN : seen.least;
  p.maximum[at] = seen.nan ? NAN : seen.greatest;
  p.fired[at] = fired;
  p.fired_elements[at] = seen.positive;
}

// Rows of one element: several examples' loads in flight.
template <typename T, bool kMeans>
__device__ __forceinline__ void sum_elements(const Task& task, int64_t range, int64_t c) {
  const Rows& r = task.rows;
  const T* unit = static_cast<const T*>(task.x) + c * r.unit_stride;
  const int64_t* order = task.by_class.order;
  Extremes<T> seen;
  for_classes(task, range, c, true, [&](int64_t first, int64_t end) {
    Spread spread(widen(unit[order[first] * r.example_stride]));
    for (int64_t place = first; place < end; place += kExampleLoads) {
      T held[kExampleLoads];
#pragma unroll
      for (int j = 0; j < kExampleLoads; ++j) {
        if (place + j < end) held[j] = unit[order[place + j] * r.example_stride];
      }
#pragma unroll
      for (int j = 0; j < kExampleLoads; ++j) {
        if (place + j >= end) break;
        const Wide<T> v = widen(held[j]);
        spread.add(v);
        seen.add(v);
        // The order is read again: to keep eight places would take registers.
        if constexpr (kMeans) task.moments.means[order[place + j] * r.units + c] = v;
      }
    }
    return spread;
  });
  store_range(task, range, c, 0, seen, seen.positive);
}

template <typename T, Access kAccess, bool kMeans>
__device__ __forceinline__ void sum_rows(const Task& task, int64_t range, int64_t c, const RowThread& t) {
  const Rows& r = task.rows;
  const T* unit = static_cast<const T*>(task.x) + c * r.unit_stride;
  const int64_t* order = task.by_class.order;
  Extremes<T> seen;
  double row_m2 = 0;  // this lane's share
  int64_t fired = 0;
  for_classes(task, range, c, t.lane == 0, [&](int64_t first, int64_t end) {
    Spread means(0);
    int64_t next = order[first];
    for (int64_t place = first; place < end; ++place) {
      [[maybe_unused]] const int64_t n = next;
      const T* row = unit + next * r.example_stride;
      next = place + 1 < end ? order[place + 1] : next;  // early, since the next row's address waits for it
      Spread spread(widen(*row));
      const int64_t positive = seen.positive;
      for_own_positions<T, kAccess>(row, r, t.lane, [&](Wide<T> v) {
        spread.add(v);
        seen.add(v);
      });
      fired += __any_sync(t.mates, seen.positive != positive) != 0;
      spread.sum = sum_of_mates(spread.sum, r, t.mates);
      const double shift = spread.sum * r.inverse, mean = spread.pivot + shift;
      row_m2 += t.lane == 0 ? spread.square - spread.sum * shift : spread.square;
      if (place == first) means = Spread(mean);
      means.add(mean);
      if constexpr (kMeans) {
        if (t.lane == 0) task.moments.means[n * r.units + c] = mean;
      }
    }
    return means;
  });
  row_m2 = sum_of_mates(row_m2, r, t.mates);
  seen.positive = sum_of_mates(seen.positive, r, t.mates);
  seen.nan = __any_sync(t.mates, seen.nan) != 0;
  for (int d = r.lanes / 2; d > 0; d /= 2) {
    const Wide<T> least = __shfl_xor_sync(t.mates, seen.least, d), most = __shfl_xor_sync(t.mates, seen.greatest, d);
    seen.least = least < seen.least ? least : seen.least;
    seen.greatest = most > seen.greatest ? most : seen.greatest;
  }
  if (t.lane == 0) store_range(task, range, c, row_m2, seen, fired);
}

template <typename T, Access kAccess, bool kMeans>
__global__ void __launch_bounds__(kThreads, 3) sum_ranges(const Task task) {
  const Rows& r = task.rows;
  const RowThread t = row_thread(r);
  const int64_t c = int64_t(blockIdx.x % r.unit_blocks) * r.across + t.across;
  const int64_t range = int64_t(blockIdx.x / r.unit_blocks) * r.down + t.down;
  if (c >= r.units || range >= r.ranges) return;
  if constexpr (kAccess == Access::kSingle) {
    sum_elements<T, kMeans>(task, range, c);
  } else {
    sum_rows<T, kAccess, kMeans>(task, range, c, t);
  }
}

// The slices of a unit, joined in their order; all of them get the result.
template <typename V, typename Join>
__device__ __forceinline__ V join_slices(V v, Join join) {
  __shared__ V of_slices[kSlices][kMergedUnits];
  of_slices[threadIdx.y][threadIdx.x] = v;
  __syncthreads();
  v = of_slices[0][threadIdx.x];
  for (int s = 1; s < kSlices; ++s) v = join(v, of_slices[s][threadIdx.x]);
  __syncthreads();
  return v;
}

template <typename V>
__device__ __forceinline__ V sum_slices(V v) {
  return join_slices(v, [](V a, V b) { return a + b; });
}

// Chan's merge, of what this batch has into what was there.
__device__ __forceinline__ void merge(double n, double& mean, double& m2, double n_b, double mean_b, double m2_b) {
  const double share = n_b / (n + n_b), delta = mean_b - mean;
  m2 += m2_b + delta * delta * share * n;
  mean += delta * share;
}

// A block has one class and some units, and merges what ranges have of them.
__global__ void __launch_bounds__(kThreads) merge_classes(const Task task) {
  const Rows& r = task.rows;
  const Partials& p = task.partials;
  const int64_t unit_blocks = divide_up(r.units, kMergedUnits), label = blockIdx.x / unit_blocks;
  const int64_t c = blockIdx.x % unit_blocks * kMergedUnits + threadIdx.x, own = min(c, r.units - 1);
  const int64_t begin = task.by_class.begin[label], end = task.by_class.begin[label + 1], count = end - begin;
  double sum = 0, m2 = 0;
  if (count > 0) {
    const int64_t first = begin / r.range_length + threadIdx.y, last = (end - 1) / r.range_length;
    const auto examples = [&](int64_t range) {
      return double(min(end, (range + 1) * r.range_length) - max(begin, range * r.range_length));
    };
    for (int64_t range = first; range <= last; range += kSlices) {
      const int64_t at = (range + label) * r.units + own;
      sum += examples(range) * p.pivot[at] + p.sum[at];
    }
    const double mean = sum_slices(sum) / count;
    for (int64_t range = first; range <= last; range += kSlices) {
      const int64_t at = (range + label) * r.units + own;
      const double delta = p.pivot[at] - mean;
      m2 += p.square[at] + delta * (2 * p.sum[at] + examples(range) * delta);
    }
    sum = mean;
    m2 = sum_slices(m2);
  }
  if (threadIdx.y != 0 || c >= r.units) return;
  const int64_t at = label * r.units + c;
  p.batch_mean[at] = sum;
  p.batch_m2[at] = m2;
  if (count > 0) {
    merge(task.moments.count[label], task.moments.mean[at], task.moments.m2[at], count, sum, m2);
  }
}

// A block has some units. Their elements' moments follow from those within rows and of rows' means.
__global__ void __launch_bounds__(kThreads) merge_units(const Task task) {
  const Rows& r = task.rows;
  const Partials& p = task.partials;
  const Moments& m = task.moments;
  const ClassOrder& o = task.by_class;
  const int64_t c = int64_t(blockIdx.x) * kMergedUnits + threadIdx.x, own = min(c, r.units - 1);
  const auto examples = [&](int64_t label) { return double(o.begin[label + 1] - o.begin[label]); };
  double sum = 0;
  for (int64_t l = threadIdx.y; l < o.classes; l += kSlices) sum += examples(l) * p.batch_mean[l * r.units + own];
  const double mean = sum_slices(sum) / r.examples;
  double m2 = 0;
  for (int64_t l = threadIdx.y; l < o.classes; l += kSlices) {
    if (examples(l) == 0) continue;
    const double delta = p.batch_mean[l * r.units + own] - mean;
    m2 += p.batch_m2[l * r.units + own] + examples(l) * (delta * delta);
  }
  m2 *= r.positions;
  double least = INFINITY, greatest = -INFINITY;
  int64_t fired = 0, fired_elements = 0;
  for (int64_t range = threadIdx.y; range < r.ranges; range += kSlices) {
    const int64_t at = range * r.units + own;
    m2 += p.row_m2[at];
    least = lesser(least, p.minimum[at]);
    greatest = greater(greatest, p.maximum[at]);
    fired += p.fired[at];
    fired_elements += p.fired_elements[at];
  }
  m2 = sum_slices(m2);
  least = join_slices(least, [](double a, double b) { return lesser(a, b); });
  greatest = join_slices(greatest, [](double a, double b) { return greater(a, b); });
  fired = sum_slices(fired);
  fired_elements = sum_slices(fired_elements);
  const int64_t elements = *p.elements, added = r.examples * r.positions;
  if (threadIdx.y == 0 && c < r.units) {
    merge(elements, m.element_mean[c], m.element_m2[c], added, mean, m2);
    m.minimum[c] = lesser(m.minimum[c], least);
    m.maximum[c] = greater(m.maximum[c], greatest);
    m.fired[c] += fired;
    m.fired_elements[c] += fired_elements;
  }
  if (blockIdx.x != 0) return;
  for (int64_t l = threadIdx.y * kMergedUnits + threadIdx.x; l < o.classes; l += kThreads) {
    m.count[l] += o.begin[l + 1] - o.begin[l];
  }
  if (threadIdx.y == 0 && threadIdx.x == 0) *m.elements = elements + added;
}

// Hands out temporary memory; without any, counts how much it takes.
struct Temporary {
  char* memory = nullptr;
  size_t used = 0;

  template <typename V>
  void take(V*& part, int64_t count) {
    part = reinterpret_cast<V*>(memory + used);
    used += count * sizeof(V);
  }
};

void place(Task& task, Temporary& memory) {
  const Rows& r = task.rows;
  ClassOrder& o = task.by_class;
  Partials& p = task.partials;
  const int64_t classes = o.classes, segments = r.ranges + classes;
  memory.take(o.tally, o.chunks * classes);
  memory.take(o.begin, classes + 1);
  memory.take(o.order, o.examples);
  memory.take(p.pivot, segments * r.units);
  memory.take(p.sum, segments * r.units);
  memory.take(p.square, segments * r.units);
  memory.take(p.row_m2, r.ranges * r.units);
  memory.take(p.minimum, r.ranges * r.units);
  memory.take(p.maximum, r.ranges * r.units);
  memory.take(p.fired, r.ranges * r.units);
  memory.take(p.fired_elements, r.ranges * r.units);
  memory.take(p.batch_mean, classes * r.units);
  memory.take(p.batch_m2, classes * r.units);
  memory.take(p.elements, 1);
}

// Whether means are written is known when kernels are compiled: without, they cost nothing.
template <typename T, bool kMeans>
void launch_sums(const Task& task, cudaStream_t stream) {
  const Rows& r = task.rows;
  const auto blocks = static_cast<unsigned>(r.unit_blocks * divide_up(r.ranges, r.down));
  switch (r.access) {
    case Access::kSingle:
      sum_ranges<T, Access::kSingle, kMeans><<<blocks, kThreads, 0, stream>>>(task);
      break;
    case Access::kStrided:
      sum_ranges<T, Access::kStrided, kMeans><<<blocks, kThreads, 0, stream>>>(task);
      break;
    default:
      sum_ranges<T, Access::kVector, kMeans><<<blocks, kThreads, 0, stream>>>(task);
  }
}

template <typename T>
int run(Task& task, const Activation& x, cudaStream_t stream) {
  task.rows = plan_rows(x, sizeof(T), kThreads);
  plan_ranges(task.rows, task.rows.down, task.rows.access == Access::kSingle ? kExampleLoads : 1);
  plan_chunks(task.by_class);
  Temporary memory;
  place(task, memory);
  if (const auto e = cudaMallocAsync(reinterpret_cast<void**>(&memory.memory), memory.used, stream); e != cudaSuccess) {
    return error_code(e);
  }
  memory.used = 0;
  place(task, memory);
  int code = sort_by_class(task.by_class, task.moments.elements, task.partials.elements, stream);
  if (code == kOk) {
    const dim3 merging(kMergedUnits, kSlices);
    const auto unit_blocks = static_cast<unsigned>(divide_up(x.units, kMergedUnits));
    task.moments.means ? launch_sums<T, true>(task, stream) : launch_sums<T, false>(task, stream);
    merge_classes<<<static_cast<unsigned>(task.by_class.classes * unit_blocks), merging, 0, stream>>>(task);
    merge_units<<<unit_blocks, merging, 0, stream>>>(task);
    code = error_code(cudaGetLastError());
  }
  const int freed = error_code(cudaFreeAsync(memory.memory, stream));
  return code != kOk ? code : freed;
}

}  // namespace
}  // namespace cuda

int class_moments_cuda(const Activation& x, const int64_t* labels, const Moments& moments, void* stream) {
  using namespace cuda;
  if (!rows_are_countable(x)) return error_code(cudaErrorInvalidValue);
  Task task{};
  task.x = x.x;
  task.moments = moments;
  task.by_class.labels = labels;
  task.by_class.examples = x.examples;
  task.by_class.classes = moments.classes;
  return with_type(x.dtype, [&](auto type) { return run<decltype(type)>(task, x, static_cast<cudaStream_t>(stream)); });
}

}  // namespace sdkernels
