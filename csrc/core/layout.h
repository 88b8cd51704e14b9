// How kernels see an activation: [N, A, C, B], C units with A positions before them and B after, of any strides.
#pragma once
#include <cstdint>

namespace sdkernels {

struct Strides {
  int64_t n, a, c, b;  // elements
};

struct Activation {
  const void* x;     // [N, A, C, B]
  int64_t examples;  // N
  int64_t before;    // A
  int64_t units;     // C
  int64_t after;     // B
  Strides strides;
  int dtype;
};

}  // namespace sdkernels
