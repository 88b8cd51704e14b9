// A curve of nested ablations through Linear, ReLU, Linear. Torch-free and Python-free.
#pragma once
#include <cstdint>

#include "error.h"

namespace sdkernels {

struct NestedLinearShape {
  int64_t examples;   // N
  int64_t inputs;     // C
  int64_t outputs;    // D
  int64_t classes;    // L
  int64_t points;     // T
  int64_t bias_rows;  // 1 or T
  int64_t head_rows;  // 1 or T, of head_bias
};

// logits[t,l,n] = head_bias[t,l] + sum_{d < living_out[t]} head[l,d] relu(bias[t,d] + sum_{c < living_in[t]}
// weight[d,c] a[n,units[c]])
int nested_linear(const void* a,              // [N, C]
                  const int64_t* units,       // [C], the last to be clamped first
                  const void* weight,         // [D, C], living units first on both sides
                  const void* bias,           // [1 or T, D]
                  const void* head,           // [L, D]
                  const void* head_bias,      // [1 or T, L]
                  const int64_t* living_in,   // [T], never more than at the point before
                  const int64_t* living_out,  // [T], likewise
                  void* logits,               // [T, L, N]
                  const NestedLinearShape& shape, int64_t item_size, int threads);

}  // namespace sdkernels
