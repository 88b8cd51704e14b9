// A block has some units and a range of examples, and counts into shared memory; at its end it adds what it counted to
// the result. Counts are integers, so that the order of atomic additions does not show. Where classes and bins are too
// many for shared memory, threads add to the result one by one.
#include <cmath>

#include "class_histogram.h"
#include "rows.cuh"

namespace sdkernels {
namespace cuda {
namespace {

constexpr int64_t kUnits = 32;              // of a block: neighbours fill 128 bytes; not yet measured
constexpr size_t kSharedWanted = 96 << 10;  // bytes, of which two blocks fit

struct Histogram {
  Rows rows;
  const void* x;          // [N, A, C, B]
  const int64_t* labels;  // [N]
  const double* edges;    // [C, E]
  int64_t* counts;        // [L, C, E + 2]
  int64_t classes, edge_count;
  bool shared;
};

// Of a block: edges first, then counts; neighbouring units are neighbours, which keeps them in different banks.
__device__ __forceinline__ double* shared_edges() {
  extern __shared__ double shared_memory[];
  return shared_memory;  // [E, across]
}

__device__ __forceinline__ unsigned* shared_counts(const Histogram& h) {
  return reinterpret_cast<unsigned*>(shared_edges() + h.edge_count * h.rows.across);  // [L, E + 2, across]
}

__device__ __forceinline__ void add(int64_t* count, unsigned long long n) {
  atomicAdd(reinterpret_cast<unsigned long long*>(count), n);
}

// 0 for a mean of zero, else 1 + how many edges are not greater: all of them for a nan.
__device__ __forceinline__ int64_t bin_of(const Histogram& h, const RowThread& t, int64_t c, double mean) {
  if (mean == 0) return 0;
  const double* edges = h.shared ? shared_edges() + t.across : h.edges + c * h.edge_count;
  const int64_t stride = h.shared ? h.rows.across : 1;
  unsigned low = 0, high = static_cast<unsigned>(h.edge_count);
  while (low < high) {
    const unsigned middle = (low + high) / 2;
    if (edges[middle * stride] > mean) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return 1 + low;
}

__device__ __forceinline__ void count(const Histogram& h, const RowThread& t, int64_t c, int64_t n, double mean) {
  const int64_t bins = h.edge_count + 2, bin = bin_of(h, t, c, mean), label = h.labels[n];
  if (h.shared) {
    atomicAdd(shared_counts(h) + (label * bins + bin) * h.rows.across + t.across, 1u);
  } else {
    add(h.counts + (label * h.rows.units + c) * bins + bin, 1);
  }
}

// sum / positions, correctly rounded (Markstein 1990): a division proper is a call, and spills registers.
__device__ __forceinline__ double mean_of_row(double sum, const Rows& r) {
  const double mean = sum * r.inverse;
  return isinf(mean) ? mean : fma(fma(-mean, double(r.positions), sum), r.inverse, mean);
}

template <typename T, Access kAccess>
__device__ __forceinline__ void count_range(const Histogram& h, const RowThread& t, int64_t c, int64_t begin,
                                            int64_t end) {
  const Rows& r = h.rows;
  const T* unit = static_cast<const T*>(h.x) + c * r.unit_stride;
  if constexpr (kAccess == Access::kSingle) {
    for (int64_t first = begin + t.down; first < end; first += kExampleLoads * r.down) {
      T held[kExampleLoads];
#pragma unroll
      for (int j = 0; j < kExampleLoads; ++j) {
        const int64_t n = first + j * r.down;
        if (n < end) held[j] = unit[n * r.example_stride];
      }
#pragma unroll
      for (int j = 0; j < kExampleLoads; ++j) {
        const int64_t n = first + j * r.down;
        if (n < end) count(h, t, c, n, widen(held[j]));
      }
    }
  } else {
    for (int64_t n = begin + t.down; n < end; n += r.down) {
      double sum = 0;
      for_own_positions<T, kAccess>(unit + n * r.example_stride, r, t.lane, [&](Wide<T> v) { sum += v; });
      sum = sum_of_mates(sum, r, t.mates);
      if (t.lane == 0) count(h, t, c, n, mean_of_row(sum, r));
    }
  }
}

template <typename T, Access kAccess>
__global__ void __launch_bounds__(kThreads, 4) histogram_kernel(const Histogram h) {
  const Rows& r = h.rows;
  const int64_t first_unit = int64_t(blockIdx.x % r.unit_blocks) * r.across;
  const int64_t begin = blockIdx.x / r.unit_blocks * r.range_length, end = min(begin + r.range_length, r.examples);
  // What fits into shared memory is counted by an int.
  const int edge_count = static_cast<int>(h.edge_count), bins = edge_count + 2;
  const int cells = static_cast<int>(h.classes) * bins * r.across;
  if (h.shared) {
    for (int i = threadIdx.x; i < cells; i += kThreads) shared_counts(h)[i] = 0;
    for (int i = threadIdx.x; i < edge_count * r.across; i += kThreads) {
      const int64_t c = first_unit + i % r.across;
      if (c < r.units) shared_edges()[i] = h.edges[c * edge_count + i / r.across];
    }
    __syncthreads();
  }
  const RowThread t = row_thread(r);
  if (first_unit + t.across < r.units) count_range<T, kAccess>(h, t, first_unit + t.across, begin, end);
  if (h.shared) {
    __syncthreads();
    for (int i = threadIdx.x; i < cells; i += kThreads) {
      const unsigned counted = shared_counts(h)[i];
      if (counted == 0) continue;
      const int64_t c = first_unit + i % r.across, bin = i / r.across % bins, label = i / r.across / bins;
      add(h.counts + (label * r.units + c) * bins + bin, counted);
    }
  }
}

template <typename T, Access kAccess>
int launch(const Histogram& h, size_t shared, cudaStream_t stream) {
  const auto kernel = histogram_kernel<T, kAccess>;
  // More than 48 KB must be asked for.
  if (const auto e =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
      e != cudaSuccess) {
    return error_code(e);
  }
  kernel<<<static_cast<unsigned>(h.rows.unit_blocks * h.rows.ranges), kThreads, shared, stream>>>(h);
  return error_code(cudaGetLastError());
}

template <typename T>
int launch_access(Histogram& h, const Activation& x, cudaStream_t stream) {
  int device = 0, most = 0;
  cudaError_t e = cudaGetDevice(&device);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (e != cudaSuccess) return error_code(e);
  const int64_t unit_bytes = h.edge_count * sizeof(double) + h.classes * (h.edge_count + 2) * sizeof(unsigned);
  const int64_t fit = std::min<int64_t>(kSharedWanted, most) / unit_bytes;  // units
  int64_t across = kUnits;
  while (across > 1 && across > fit) across /= 2;
  h.shared = fit >= 1;
  h.rows = plan_rows(x, sizeof(T), h.shared ? across : kUnits);
  plan_ranges(h.rows, 1, kExampleLoads * h.rows.down);
  const size_t shared = h.shared ? h.rows.across * unit_bytes : 0;
  switch (h.rows.access) {
    case Access::kSingle:
      return launch<T, Access::kSingle>(h, shared, stream);
    case Access::kStrided:
      return launch<T, Access::kStrided>(h, shared, stream);
    default:
      return launch<T, Access::kVector>(h, shared, stream);
  }
}

}  // namespace
}  // namespace cuda

int class_histogram_cuda(const Activation& x, const int64_t* labels, const double* edges, int64_t* counts,
                         int64_t classes, int64_t edge_count, void* stream) {
  using namespace cuda;
  if (!rows_are_countable(x)) return error_code(cudaErrorInvalidValue);
  Histogram h{{}, x.x, labels, edges, counts, classes, edge_count, false};
  return with_type(x.dtype,
                   [&](auto type) { return launch_access<decltype(type)>(h, x, static_cast<cudaStream_t>(stream)); });
}

}  // namespace sdkernels
