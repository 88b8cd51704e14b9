// CPU kernels are compiled once for each of these levels of x86-64, in a namespace of its own; cpu.cpp picks one.
#pragma once
#include <cstdint>

namespace sdkernels::SDKERNELS_LEVEL {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

// Fewer elements are done before other threads have begun.
constexpr int64_t kElementsWorthAThread = 16384;

}  // namespace sdkernels::SDKERNELS_LEVEL
