// The element types that ops take: how each is widened to what is computed in, and rounded back.
#pragma once
#include <cstdint>
#include <cstring>

#include "error.h"

#define SDKERNELS_INLINE inline __attribute__((always_inline))

namespace sdkernels {

enum DType : int { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// What is computed in: double for double, float for all others.
template <typename T>
struct WideOf {
  using Type = float;
};
template <>
struct WideOf<double> {
  using Type = double;
};
template <typename T>
using Wide = typename WideOf<T>::Type;

template <typename To, typename From>
SDKERNELS_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

SDKERNELS_INLINE double widen(double x) { return x; }
SDKERNELS_INLINE float widen(float x) { return x; }
SDKERNELS_INLINE float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
SDKERNELS_INLINE float widen(Float16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7FFFu) << 13;
  // Another exponent bias, subnormals included; inf and nan get theirs by hand.
  const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= 0x0F800000u ? 0x7F800000u : 0u;
  return bit_cast<float>(scaled | special | uint32_t(x.bits & 0x8000u) << 16);
}

// To nearest, ties to even.
template <typename T>
T narrow(Wide<T> x);
template <>
SDKERNELS_INLINE double narrow<double>(double x) {
  return x;
}
template <>
SDKERNELS_INLINE float narrow<float>(float x) {
  return x;
}
template <>
SDKERNELS_INLINE BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return {uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded)};
}
template <>
SDKERNELS_INLINE Float16 narrow<Float16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude + 0xC8000FFFu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return {uint16_t((magnitude >= 0x47800000u ? special : finite) | (bits >> 16 & 0x8000u))};
}

// Calls f with a value of the type that a code names, and gives what it gives.
template <typename F>
int with_dtype(int code, F f) {
  switch (code) {
    case kFloat64:
      return f(double{});
    case kFloat32:
      return f(float{});
    case kBFloat16:
      return f(BFloat16{});
    case kFloat16:
      return f(Float16{});
    default:
      return kUnsupportedDType;
  }
}

}  // namespace sdkernels
