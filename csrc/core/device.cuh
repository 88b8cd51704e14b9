// What the CUDA versions share: element types, 16-byte accesses, sizes of launches and error codes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtype.h"
#include "error.h"

// Inside, names for the host such as widen give way to the device's.
namespace sdkernels::cuda {

constexpr int kThreads = 256;  // a block

__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }

// Rounded once, to nearest even.
template <typename T>
__device__ __forceinline__ T narrow(Wide<T> v) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(v);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else {
    return v;
  }
}

// A pack is moved in words of 16 bytes, or of 8 where it is no longer; its address is a multiple of that.
template <typename T, int kPack>
struct Pack {
  using Word = std::conditional_t<sizeof(T) * kPack % 16 == 0, uint4, uint2>;
  static constexpr int kWords = sizeof(T) * kPack / sizeof(Word);
  static_assert(kWords * sizeof(Word) == sizeof(T) * kPack);
};

template <typename T, int kPack>
__device__ __forceinline__ void load_pack(const T* from, T (&to)[kPack]) {
  using Word = typename Pack<T, kPack>::Word;
  Word words[Pack<T, kPack>::kWords];
#pragma unroll
  for (int i = 0; i < Pack<T, kPack>::kWords; ++i) words[i] = reinterpret_cast<const Word*>(from)[i];
  std::memcpy(to, words, sizeof to);
}

template <typename T, int kPack>
__device__ __forceinline__ void store_pack(T* to, const T (&from)[kPack]) {
  using Word = typename Pack<T, kPack>::Word;
  Word words[Pack<T, kPack>::kWords];
  std::memcpy(words, from, sizeof from);
#pragma unroll
  for (int i = 0; i < Pack<T, kPack>::kWords; ++i) reinterpret_cast<Word*>(to)[i] = words[i];
}

// Calls run with a value of the type that a dtype names.
template <typename Run>
int with_type(int dtype, Run run) {
  switch (dtype) {
    case kFloat64:
      return run(double{});
    case kFloat32:
      return run(float{});
    case kBFloat16:
      return run(__nv_bfloat16{});
    case kFloat16:
      return run(__half{});
    default:
      return kUnsupportedDType;
  }
}

inline int error_code(cudaError_t error) { return error == cudaSuccess ? kOk : kCudaError + static_cast<int>(error); }

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The least power of two that is not below v, at most limit, itself one.
inline int64_t power_of_two(int64_t v, int64_t limit) {
  int64_t power = 1;
  while (power < v && power < limit) power *= 2;
  return power;
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace sdkernels::cuda
