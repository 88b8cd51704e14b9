// Kernels compared by tolerance, not by bits (fused multiply-adds are welcome), for any processor.
#define SDKERNELS_LEVEL v1
#include "class_histogram_cpu.h"
#include "class_moments_cpu.h"
#include "cpu.h"
#include "nested_linear_cpu.h"
#include "rank_one_head_cpu.h"
#include "score_cpu.h"
#include "winograd_cpu.h"

namespace sdkernels::v1 {
const SumKernels kSums{&class_histogram, &class_moments,  &nested_linear,  &rank_one_head,
                       &score,           &winograd_input, &winograd_output};
}  // namespace sdkernels::v1
