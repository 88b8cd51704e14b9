// The logits of a head that reads a linear layer's rectified outputs, with one unit clamped, for many units.
// sdkernels/ops/rank_one_head.py has the maths.
#pragma once
#include <cstdint>

#include "error.h"

namespace sdkernels {

struct RankOneHead {
  const void* a;          // [N, C]
  const void* value;      // [C] or null
  const void* intact;     // [N, L] or null: logits where the unit is at its value already
  const int64_t* units;   // [K]
  const void* z;          // [N, D]; it and the next five are what is computed in
  const void* weight;     // [C, D]
  const void* scale;      // [D] or null, as shift is
  const void* shift;      // [D]
  const void* head;       // [L, D]
  const void* head_bias;  // [L] or null
  void* out;              // [K, N, L]
  int64_t k, examples, outputs, inputs, classes;
  int64_t a_n, a_c;  // strides, in elements
  bool relu;
  int dtype;
};

// out[k,n,l] = sum over d of head[l,d] act(scale[d] (z[n,d] + weight[c,d] (value[c] - a[n,c])) + shift[d])
//              + head_bias[l], c = units[k]
int rank_one_head(const RankOneHead& p, int threads);

}  // namespace sdkernels
