// The CPU versions of all ops at one level of x86-64.
#pragma once
#include "class_histogram.h"
#include "class_moments.h"
#include "nested_linear.h"
#include "perturb.h"
#include "random_stream.h"
#include "rank_one.h"
#include "rank_one_head.h"
#include "score.h"
#include "winograd.h"

namespace sdkernels {

// Kernels whose results are the same bits at every level.
struct ExactKernels {
  decltype(&sdkernels::perturb) perturb;
  decltype(&sdkernels::random_stream) random_stream;
  decltype(&sdkernels::rank_one) rank_one;
};

// Kernels that sum in the order that is fastest at their level.
struct SumKernels {
  decltype(&sdkernels::class_histogram) class_histogram;
  decltype(&sdkernels::class_moments) class_moments;
  decltype(&sdkernels::nested_linear) nested_linear;
  decltype(&sdkernels::rank_one_head) rank_one_head;
  decltype(&sdkernels::score) score;
  decltype(&sdkernels::winograd_input) winograd_input;
  decltype(&sdkernels::winograd_output) winograd_output;
};

namespace v1 {
extern const ExactKernels kExact;
extern const SumKernels kSums;
}  // namespace v1
namespace v3 {
extern const ExactKernels kExact;
extern const SumKernels kSums;
}  // namespace v3
namespace v4 {
extern const ExactKernels kExact;
extern const SumKernels kSums;
}  // namespace v4

// The level of x86-64 that this processor runs (1, 3 or 4), or a lower one that was asked for.
int cpu_level();
// Asks for a level, 0 for the highest; false if this processor does not run it.
bool use_cpu_level(int level);

}  // namespace sdkernels
