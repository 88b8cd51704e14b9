// Per-class histograms of units' means over positions. sdkernels/ops/class_histogram.py has the maths.
#pragma once
#include <cstdint>

#include "error.h"
#include "layout.h"

namespace sdkernels {

int class_histogram(const Activation& x,
                    const int64_t* labels,  // [N]
                    const double* edges,    // [C, E], ascending
                    int64_t* counts,        // [L, C, E + 2]
                    int64_t classes, int64_t edge_count, int threads);
int class_histogram_cuda(const Activation& x, const int64_t* labels, const double* edges, int64_t* counts,
                         int64_t classes, int64_t edge_count, void* stream);

}  // namespace sdkernels
