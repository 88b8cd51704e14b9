// Many quads at a time, so that the compiler gives each lane of a vector a counter of its own.
#pragma once
#include "level.h"
#include "noise_cpu.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

void draw_words(const StreamIds& ids, int64_t elements, int64_t* out) {
  uint32_t words[4][kQuads];
  for (int64_t done = 0; done < elements; done += 4 * kQuads) {
    const int64_t width = std::min(4 * kQuads, elements - done);
    words_of_quads(ids, QuadsFrom{uint32_t(done / 4)}, (width + 3) / 4, words);
    for (int64_t i = 0; i < width; ++i) out[done + i] = words[i % 4][i / 4];
  }
}

void draw_uniforms(const StreamIds& ids, int64_t elements, float* out) {
  uint32_t words[4][kQuads];
  for (int64_t done = 0; done < elements; done += 4 * kQuads) {
    const int64_t width = std::min(4 * kQuads, elements - done);
    words_of_quads(ids, QuadsFrom{uint32_t(done / 4)}, (width + 3) / 4, words);
    for (int64_t i = 0; i < width; ++i) out[done + i] = uniform_of(words[i % 4][i / 4]);
  }
}

void draw_normals(const StreamIds& ids, int64_t elements, float* out) {
  float normals[4 * kQuads];
  for (int64_t done = 0; done < elements; done += 4 * kQuads) {
    const int64_t width = std::min(4 * kQuads, elements - done);
    normals_of_quads(ids, QuadsFrom{uint32_t(done / 4)}, (width + 3) / 4, normals);
    std::memcpy(out + done, normals, width * sizeof(float));
  }
}

}  // namespace

int random_stream(const int64_t* seed, const int64_t* configurations, const int64_t* examples, void* out, int64_t k,
                  int64_t n, int64_t elements, int64_t site, int kind, int threads) {
  [[maybe_unused]] const bool parallel = k * n * elements > kElementsWorthAThread;
#pragma omp parallel for num_threads(threads) if (parallel) schedule(static)
  for (int64_t row = 0; row < k * n; ++row) {
    const StreamIds ids{uint64_t(*seed), uint32_t(configurations[row / n]), uint32_t(examples[row % n]),
                        uint32_t(site)};
    if (kind == 0) draw_words(ids, elements, static_cast<int64_t*>(out) + row * elements);
    if (kind == 1) draw_uniforms(ids, elements, static_cast<float*>(out) + row * elements);
    if (kind == 2) draw_normals(ids, elements, static_cast<float*>(out) + row * elements);
  }
  return kOk;
}

}  // namespace sdkernels::SDKERNELS_LEVEL
