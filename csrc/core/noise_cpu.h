// Blocks of draws for the CPU: loops that the compiler turns into vectors, a quad a lane.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "level.h"
#include "random_stream.h"

namespace sdkernels::SDKERNELS_LEVEL {

constexpr int64_t kQuads = 256;        // a block: 1024 draws, 4 KB
constexpr int64_t kWholeVectors = 32;  // quads: two vectors of the widest kind

// As many quads as are wanted, and the rest of the last vectors.
SDKERNELS_INLINE int64_t whole_vectors(int64_t quads) {
  return std::min(kQuads, (quads + kWholeVectors - 1) / kWholeVectors * kWholeVectors);
}

// words[i][q] is element 4 quad(q) + i.
template <typename Quad>
SDKERNELS_INLINE void words_of_quads(const StreamIds& ids, Quad quad, int64_t quads, uint32_t words[4][kQuads]) {
  const int64_t end = whole_vectors(quads);
  for (int64_t q = 0; q < end; ++q) {
    uint32_t own[4];
    philox(quad(q), ids, own);
    for (int i = 0; i < 4; ++i) words[i][q] = own[i];
  }
}

// normals[i][q] likewise.
template <typename Quad>
SDKERNELS_INLINE void normals_by_word(const StreamIds& ids, Quad quad, int64_t quads, float normals[4][kQuads]) {
  uint32_t words[4][kQuads];
  words_of_quads(ids, quad, quads, words);
  const int64_t end = whole_vectors(quads);
  for (int64_t q = 0; q < end; ++q) {
    normals_of(words[0][q], words[1][q], normals[0][q], normals[1][q]);
    normals_of(words[2][q], words[3][q], normals[2][q], normals[3][q]);
  }
}

// Normals of a block, quad by quad.
template <typename Quad>
SDKERNELS_INLINE void normals_of_quads(const StreamIds& ids, Quad quad, int64_t quads, float out[4 * kQuads]) {
  float normals[4][kQuads];
  normals_by_word(ids, quad, quads, normals);
  const int64_t end = whole_vectors(quads);
  for (int64_t q = 0; q < end; ++q)
    for (int i = 0; i < 4; ++i) out[4 * q + i] = normals[i][q];
}

// Quads one after another, for the two above.
struct QuadsFrom {
  uint32_t first;
  SDKERNELS_INLINE uint32_t operator()(int64_t q) const { return first + uint32_t(q); }
};

}  // namespace sdkernels::SDKERNELS_LEVEL
