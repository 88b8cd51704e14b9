// Examples are lanes: a strip of them is turned over into [L, strip] in cache, unless it lies so already.
#pragma once
#include <omp.h>

#include <algorithm>
#include <vector>

#include "dtype.h"
#include "level.h"
#include "score.h"
#include "score_strip_cpu.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

constexpr int64_t kChunk = 1024;  // examples a task; fixed, so that the sums of losses are the same for any threads

template <typename T>
SDKERNELS_INLINE double score_chunk(const Logits& z, const ScoreTask& task, int64_t k, int64_t first, int64_t last,
                                    Wide<T>* buffer) {
  using W = Wide<T>;
  constexpr int64_t kStrip = Lane<W>::kStrip;
  double loss = 0;
  for (int64_t n = first; n < last; n += kStrip) {
    const int64_t count = std::min(kStrip, last - n);
    const T* from = static_cast<const T*>(z.z) + k * z.stride_k + n * z.stride_n;
    if constexpr (std::is_same_v<T, W>) {
      if (z.stride_n == 1 && count == kStrip) {
        loss += score_strip(task, k, n, count, from, z.stride_l);
        continue;
      }
    }
    if (z.stride_n == 1) {
      for (int64_t l = 0; l < task.classes; ++l)
        for (int64_t i = 0; i < count; ++i) buffer[l * kStrip + i] = widen(from[l * z.stride_l + i]);
    } else {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t l = 0; l < task.classes; ++l)
          buffer[l * kStrip + i] = widen(from[i * z.stride_n + l * z.stride_l]);
    }
    loss += score_strip<W>(task, k, n, count, buffer, kStrip);
  }
  return loss;
}

}  // namespace

int score(const Logits& logits, const ScoreTask& task, int threads) {
  return with_dtype(logits.dtype, [&](auto type) {
    using W = Wide<decltype(type)>;
    const int64_t chunks = (logits.examples + kChunk - 1) / kChunk, own = task.classes * Lane<W>::kStrip;
    std::vector<double> losses(logits.configurations * chunks);
    std::vector<W> buffers(own * threads);  // here, since nothing may throw among threads; zeros past the last example
#pragma omp parallel for num_threads(threads) if (losses.size() > 1) schedule(static)
    for (int64_t i = 0; i < int64_t(losses.size()); ++i) {
      const int64_t first = i % chunks * kChunk, last = std::min(first + kChunk, logits.examples);
      losses[i] = score_chunk<decltype(type)>(logits, task, i / chunks, first, last,
                                              buffers.data() + own * omp_get_thread_num());
    }
    if (task.sums.loss)
      for (int64_t i = 0; i < int64_t(losses.size()); ++i) task.sums.loss[i / chunks] += losses[i];
    return int(kOk);
  });
}

}  // namespace sdkernels::SDKERNELS_LEVEL
