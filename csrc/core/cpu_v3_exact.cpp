// Kernels with the same bits at every level, for x86-64-v3.
#if defined(__x86_64__)
#define SDKERNELS_LEVEL v3
#include "cpu.h"
#include "perturb_cpu.h"
#include "random_stream_cpu.h"
#include "rank_one_cpu.h"

namespace sdkernels::v3 {
const ExactKernels kExact{&perturb, &random_stream, &rank_one};
}  // namespace sdkernels::v3
#endif
