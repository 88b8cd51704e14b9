// Blocks of draws for the CPU: loops that the compiler turns into vectors, a quad a lane.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "level.h"
#include "random_stream.h"

namespace sdkernels::SDKERNELS_LEVEL {

constexpr int64_t kQuads = 256;  // a block: 1024 draws, 4 KB

// words[i][q] is element 4 quad(q) + i.
template <typename Quad>
SDKERNELS_INLINE void words_of_quads(const StreamIds& ids, Quad quad, uint32_t words[4][kQuads]) {
  for (int64_t q = 0; q < kQuads; ++q) {
    uint32_t own[4];
    philox(quad(q), ids, own);
    for (int i = 0; i < 4; ++i) words[i][q] = own[i];
  }
}

// normals[i][q] likewise.
template <typename Quad>
SDKERNELS_INLINE void normals_by_word(const StreamIds& ids, Quad quad, float normals[4][kQuads]) {
  uint32_t words[4][kQuads];
  words_of_quads(ids, quad, words);
  for (int64_t q = 0; q < kQuads; ++q) {
    normals_of(words[0][q], words[1][q], normals[0][q], normals[1][q]);
    normals_of(words[2][q], words[3][q], normals[2][q], normals[3][q]);
  }
}

// Normals of a block, quad by quad.
template <typename Quad>
SDKERNELS_INLINE void normals_of_quads(const StreamIds& ids, Quad quad, float out[4 * kQuads]) {
  float normals[4][kQuads];
  normals_by_word(ids, quad, normals);
  for (int64_t q = 0; q < kQuads; ++q)
    for (int i = 0; i < 4; ++i) out[4 * q + i] = normals[i][q];
}

// Quads one after another, for the two above.
struct QuadsFrom {
  uint32_t first;
  SDKERNELS_INLINE uint32_t operator()(int64_t q) const { return first + uint32_t(q); }
};

}  // namespace sdkernels::SDKERNELS_LEVEL
