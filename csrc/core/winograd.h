// The two ends of a 3x3 convolution by Winograd's F(4x4, 3x3): tiles into 36 matrices, 36 products back into maps.
// sdkernels/ops/winograd.py has the maths.
#pragma once
#include <cstdint>

#include "error.h"

namespace sdkernels {

struct WinogradInput {
  const void* x;  // [N, H, W, C], units side by side
  void* out;      // [36, T, C], T = N ceil(H / 4) ceil(W / 4)
  int64_t examples, height, width, units;
  int64_t x_n, x_h, x_w;  // strides, in elements
  bool relu;
  int dtype;  // float64 or float32
};

struct WinogradOutput {
  const void* m;     // [36, T, D], units side by side
  const void* bias;  // [D] or null
  const void* add;   // [N, H, W, D] or null, units side by side
  void* y;           // [N, H, W, D]
  int64_t examples, height, width, units;
  int64_t m_i, m_t, add_n, add_h, add_w;  // strides, in elements
  bool relu;
  int dtype;  // float64 or float32
};

// out[:,t] = B^T act(d_t) B, d_t tile t's 6x6 inputs: 1 more on each side than its outputs, zeros beyond the map
int winograd_input(const WinogradInput& p, int threads);

// y of tile t = act(A^T m[:,t] A + bias + add), 4x4, as far as it lies in the map
int winograd_output(const WinogradOutput& p, int threads);

}  // namespace sdkernels
