// A curve of nested ablations through a linear layer, and a head that reads it. sdkernels/ops/nested_linear.py has the
// maths.
#pragma once
#include <cstdint>

#include "error.h"
#include "score.h"

namespace sdkernels {

struct NestedLinear {
  const void* a;              // [N, C]
  const int64_t* units;       // [C], the last to be clamped first
  const void* weight;         // [D, C], living units first on both sides; it and the next three are what is computed in
  const void* bias;           // [1 or T, D]
  const void* head;           // [L, D] or null
  const void* head_bias;      // [1 or T, L] or null
  const int64_t* living_in;   // [T], never more than at the point before
  const int64_t* living_out;  // [T], likewise
  void* out;                  // [T, D, N], or [T, L, N] with a head; null where only scores are asked for
  ScoreTask score;            // of T configurations; no sums without scores
  int64_t examples, inputs, outputs, classes, points;  // N, C, D, L (0 without a head), T
  int64_t a_example, a_input;                          // strides, in elements
  int64_t bias_rows, head_rows;                        // 1 or T
  bool relu;
  int dtype;
};

int nested_linear(const NestedLinear& p, int threads);

}  // namespace sdkernels
