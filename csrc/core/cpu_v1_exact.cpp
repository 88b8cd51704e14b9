// Kernels with the same bits at every level, for any processor.
#define SDKERNELS_LEVEL v1
#include "cpu.h"
#include "perturb_cpu.h"
#include "random_stream_cpu.h"
#include "rank_one_cpu.h"

namespace sdkernels::v1 {
const ExactKernels kExact{&perturb, &random_stream, &rank_one};
}  // namespace sdkernels::v1
