// Clamp units by select and add noise, many configurations at once. sdkernels/ops/perturb.py has the maths.
#pragma once
#include <cstdint>

#include "error.h"
#include "layout.h"

namespace sdkernels {

struct Perturb {
  const void* x;                                // [K, N, A, C, B], of stride 0 over K where shared
  const void* value;                            // [A, C, B]
  void* y;                                      // [K, N, A, C, B]
  const uint8_t* ablated;                       // [K, C], a byte each; or [K, ceil(C / 8)], a bit each
  const void* scale;                            // [C] or null, as shift is; in the type that is computed in
  const void* shift;                            // [C]
  const void* sigma;                            // [K, C] or null; then the next three are null too
  const int64_t* seed;                          // []
  const int64_t* configurations;                // [K], ids
  const int64_t* examples;                      // [N], ids
  int64_t k, n, a, c, b;                        // sizes
  int64_t x_k, y_k;                             // strides over configurations, in elements
  Strides x_strides, y_strides, value_strides;  // value's n is not used
  uint32_t site;
  bool packed;  // a bit a unit: unit c is bit c % 8 of byte c / 8
  bool relu;
  bool per_map;  // one draw for all positions of a unit
  int dtype;
};

// y[k,n,a,c,b] = select(ablated[k,c], value[a,c,b], act(scale[c] x[k,n,a,c,b] + shift[c])) + sigma[k,c] normal
int perturb(const Perturb& p, int threads);
int perturb_cuda(const Perturb& p, void* stream);

}  // namespace sdkernels
