// Clamp feature maps by select. Torch-free and Python-free: pointers and sizes in, an error code out.
#pragma once
#include <cstdint>

#include "error.h"

namespace sdkernels {

// One example is a dense [A, C, B] block: C units, A positions before the unit dimension, B after it.
struct PerturbShape {
  int64_t configurations;  // K
  int64_t examples;        // N
  int64_t before;          // A
  int64_t units;           // C
  int64_t after;           // B
};

// y[k,n,a,c,b] = ablated[k,c] ? value[a,c,b] : x[k,n,a,c,b]   (x[n,a,c,b] when x_is_shared)
int perturb(const void* x,        // [N, A, C, B] shared, or [K, N, A, C, B]
            const bool* ablated,  // [K, C]
            const void* value,    // [A, C, B]
            void* y,              // [K, N, A, C, B]
            const PerturbShape& shape, bool x_is_shared, int64_t item_size, int threads);

}  // namespace sdkernels
