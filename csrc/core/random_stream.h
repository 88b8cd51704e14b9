// The random stream of every noisy op: Philox4x32-10 and Box-Muller, the same bits on CPUs and GPUs.
// sdkernels/ops/random_stream.py has the maths. Only integer operations, single roundings of + and *, and sqrt: compile
// with contraction off.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "error.h"
#include "normal_coefficients.h"

#if defined(__CUDACC__)
#define SDKERNELS_EVERYWHERE __host__ __device__ __forceinline__
#else
#define SDKERNELS_EVERYWHERE inline __attribute__((always_inline))
#endif

namespace sdkernels {

// What a draw is for. A quad is four elements of an example: one Philox counter.
struct StreamIds {
  uint64_t seed;
  uint32_t configuration;
  uint32_t example;
  uint32_t site;
};

SDKERNELS_EVERYWHERE uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }

SDKERNELS_EVERYWHERE void philox(uint32_t quad, const StreamIds& ids, uint32_t words[4]) {
  uint32_t c0 = quad, c1 = ids.example, c2 = ids.configuration, c3 = ids.site;
  uint32_t k0 = uint32_t(ids.seed), k1 = uint32_t(ids.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

SDKERNELS_EVERYWHERE float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

SDKERNELS_EVERYWHERE uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

SDKERNELS_EVERYWHERE float rounded_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}

// Horner's rule from the highest power down. Each coefficient is a constant: device code cannot read a host's array.
template <const auto& kCoefficients, int kPower = 0>
SDKERNELS_EVERYWHERE float polynomial(float x) {
  constexpr float kOwn = kCoefficients[kPower];
  if constexpr (kPower + 1 == sizeof kCoefficients / sizeof kOwn) {
    return kOwn;
  } else {
    return polynomial<kCoefficients, kPower + 1>(x) * x + kOwn;
  }
}

SDKERNELS_EVERYWHERE float uniform_of(uint32_t word) { return float(int32_t(word >> 8)) * 0x1p-24f; }

SDKERNELS_EVERYWHERE void normals_of(uint32_t r0, uint32_t r1, float& n0, float& n1) {
  // -2 ln(m 2^-24) with m = f 2^e, f in [sqrt(1/2), sqrt(2)), so that t = f - 1 keeps all digits where u is near 1.
  constexpr uint32_t kRootHalf = 0x3F3504F3u;
  const int32_t bits = int32_t(float_to_bits(float(int32_t((1u << 24) - (r0 >> 8)))) - kRootHalf);
  const float t = bits_to_float((uint32_t(bits) & 0x7FFFFFu) + kRootHalf) - 1.0f;
  const float square = float(24 - (bits >> 23)) * 0x1.62e43p+0f + t * polynomial<kLog>(t);
  const float radius = rounded_sqrt(square);
  // The nearest quarter turn, and the rest of the angle as a fraction of one.
  const uint32_t v = r1 >> 8;
  const uint32_t quarter = (v + (1u << 21)) >> 22;
  const float y = float(int32_t(v - (quarter << 22))) * 0x1p-22f;
  const float y2 = y * y;
  const float sine = y * polynomial<kSin>(y2), cosine = polynomial<kCos>(y2);
  const uint32_t s = float_to_bits(sine), c = float_to_bits(cosine);
  const uint32_t odd = 0u - (quarter & 1u);
  n0 = radius * bits_to_float(((s & odd) | (c & ~odd)) ^ (((quarter + 1u) & 2u) << 30));
  n1 = radius * bits_to_float(((c & odd) | (s & ~odd)) ^ ((quarter & 2u) << 30));
}

// Draws [K, N, elements]; kind 0 is words as int64, 1 uniforms and 2 normals as float32.
int random_stream(const int64_t* seed,            // []
                  const int64_t* configurations,  // [K]
                  const int64_t* examples,        // [N]
                  void* out,                      // [K, N, elements]
                  int64_t k, int64_t n, int64_t elements, int64_t site, int kind, int threads);
int random_stream_cuda(const int64_t* seed, const int64_t* configurations, const int64_t* examples, void* out,
                       int64_t k, int64_t n, int64_t elements, int64_t site, int kind, void* stream);

}  // namespace sdkernels
