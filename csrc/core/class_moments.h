// Class-conditional moments of units, in one streaming pass. sdkernels/ops/class_moments.py has the maths.
#pragma once
#include <cstdint>

#include "error.h"
#include "layout.h"

namespace sdkernels {

// Of L classes and C units; a batch is added in place.
struct Moments {
  int64_t* count;           // [L]
  double* mean;             // [L, C], of the units' means over positions
  double* m2;               // [L, C]
  int64_t* elements;        // []
  double* element_mean;     // [C], over all elements
  double* element_m2;       // [C]
  double* minimum;          // [C]
  double* maximum;          // [C]
  int64_t* fired;           // [C], examples with a positive element
  int64_t* fired_elements;  // [C]
  double* means;            // [N, C], each example's over positions: written, not added; null is not asked for
  int64_t classes;          // L
};

int class_moments(const Activation& x,
                  const int64_t* labels,  // [N]
                  const Moments& moments, int threads);
int class_moments_cuda(const Activation& x, const int64_t* labels, const Moments& moments, void* stream);

}  // namespace sdkernels
