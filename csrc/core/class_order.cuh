// The examples of a batch in the order of their classes, each class in the order of its examples: a stable counting
// sort. Labels are cut into chunks, a block each: tally, add up over chunks and over classes, place.
#pragma once
#include "device.cuh"

namespace sdkernels::cuda {

constexpr int kMostChunks = 512;  // one block adds up a class's tallies

struct ClassOrder {
  const int64_t* labels;  // [N]
  int64_t* tally;         // [chunks, L], zero at first; then where the chunk's examples of a class begin
  int64_t* begin;         // [L + 1], where a class begins in the order
  int64_t* order;         // [N], examples
  int64_t examples, classes;
  int64_t chunk_length;  // a multiple of kThreads
  int64_t chunks;
};

inline void plan_chunks(ClassOrder& o) {
  o.chunk_length = divide_up(divide_up(o.examples, kMostChunks), kThreads) * kThreads;
  o.chunks = divide_up(o.examples, o.chunk_length);
}

namespace {

__global__ void __launch_bounds__(kThreads) tally_labels(const ClassOrder o) {
  const int64_t first = blockIdx.x * o.chunk_length, end = min(first + o.chunk_length, o.examples);
  for (int64_t n = first + threadIdx.x; n < end; n += kThreads) {
    atomicAdd(reinterpret_cast<unsigned long long*>(o.tally + blockIdx.x * o.classes + o.labels[n]), 1ull);
  }
}

// Replaces a thread's count by the sum of those before it, and gives the sum of all.
template <int kCounts>
__device__ __forceinline__ int64_t sum_before(int64_t& count, int64_t (&sums)[kCounts]) {
  const int t = threadIdx.x;
  int64_t sum = count;
  for (int d = 1; d < kCounts; d *= 2) {
    sums[t] = sum;
    __syncthreads();
    if (t >= d) sum += sums[t - d];
    __syncthreads();
  }
  sums[t] = sum;
  __syncthreads();
  const int64_t all = sums[kCounts - 1];
  __syncthreads();
  count = sum - count;
  return all;
}

// A block a class.
__global__ void __launch_bounds__(kMostChunks) add_up_chunks(const ClassOrder o) {
  __shared__ int64_t sums[kMostChunks];
  int64_t* own = o.tally + threadIdx.x * o.classes + blockIdx.x;
  int64_t count = threadIdx.x < o.chunks ? *own : 0;
  const int64_t all = sum_before(count, sums);
  if (threadIdx.x < o.chunks) *own = count;
  if (threadIdx.x == 0) o.begin[blockIdx.x + 1] = all;
}

// One block. Also keeps a number that a later kernel writes while others read it.
__global__ void __launch_bounds__(kMostChunks) add_up_classes(const ClassOrder o, const int64_t* from, int64_t* to) {
  __shared__ int64_t sums[kMostChunks];
  int64_t before = 0;
  for (int64_t first = 0; first < o.classes; first += kMostChunks) {
    const int64_t l = first + threadIdx.x;
    const int64_t own = l < o.classes ? o.begin[l + 1] : 0;
    int64_t count = own;
    const int64_t all = sum_before(count, sums);
    if (l < o.classes) o.begin[l + 1] = before + count + own;
    before += all;
  }
  if (threadIdx.x == 0) {
    o.begin[0] = 0;
    *to = *from;
  }
}

__global__ void __launch_bounds__(kThreads) place_examples(const ClassOrder o) {
  __shared__ int64_t labels[kThreads];
  const int t = threadIdx.x;
  int64_t* placed = o.tally + blockIdx.x * o.classes;
  for (int64_t first = blockIdx.x * o.chunk_length; first < o.examples; first += kThreads) {
    if (first >= (blockIdx.x + int64_t(1)) * o.chunk_length) break;
    const int64_t n = first + t, label = n < o.examples ? o.labels[n] : -1;
    labels[t] = label;
    __syncthreads();
    int before = 0, after = 0;
    for (int i = 0; i < kThreads; ++i) {
      before += i < t && labels[i] == label;
      after += i > t && labels[i] == label;
    }
    const int64_t at = label < 0 ? 0 : o.begin[label] + placed[label] + before;
    __syncthreads();
    if (label >= 0) {
      o.order[at] = n;
      if (after == 0) placed[label] += before + 1;
    }
    __syncthreads();
  }
}

}  // namespace

inline int sort_by_class(const ClassOrder& o, const int64_t* from, int64_t* to, cudaStream_t stream) {
  if (const auto e = cudaMemsetAsync(o.tally, 0, o.chunks * o.classes * sizeof(int64_t), stream); e != cudaSuccess) {
    return error_code(e);
  }
  tally_labels<<<static_cast<unsigned>(o.chunks), kThreads, 0, stream>>>(o);
  add_up_chunks<<<static_cast<unsigned>(o.classes), kMostChunks, 0, stream>>>(o);
  add_up_classes<<<1, kMostChunks, 0, stream>>>(o, from, to);
  place_examples<<<static_cast<unsigned>(o.chunks), kThreads, 0, stream>>>(o);
  return error_code(cudaGetLastError());
}

}  // namespace sdkernels::cuda
