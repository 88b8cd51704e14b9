// The outputs of a linear layer with one unit clamped, for many units. sdkernels/ops/rank_one.py has the maths.
#pragma once
#include <cstdint>

#include "error.h"

namespace sdkernels {

struct RankOne {
  const void* z;         // [N, D, S]
  const void* a;         // [N, C, S]
  const void* weight;    // [C, D]
  const int64_t* units;  // [K]
  const void* value;     // [C] or null
  const void* scale;     // [D] or null, as shift is; in the type that is computed in
  const void* shift;     // [D]
  void* y;               // [K, N, D, S]
  int64_t k, examples, outputs, positions, inputs;
  int64_t z_n, z_d, z_s, a_n, a_c, a_s;  // strides, in elements
  bool relu;
  int dtype;
};

// y[k,n,d,s] = act(scale[d] (z[n,d,s] + weight[c,d] (value[c] - a[n,c,s])) + shift[d]), c = units[k]
int rank_one(const RankOne& p, int threads);

}  // namespace sdkernels
