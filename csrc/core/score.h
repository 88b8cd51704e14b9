// Logits of many configurations -> counts and sums of losses. sdkernels/ops/score.py has the maths.
#pragma once
#include <cstdint>

#include "error.h"

namespace sdkernels {

struct Logits {
  const void* z;  // [K, N, L]
  int64_t configurations, examples;
  int64_t stride_k, stride_n, stride_l;  // elements
  int dtype;
};

// Null where it is not asked for. Sums start at zero.
struct ScoreSums {
  int64_t* correct;        // [K]; null where no scores are asked for at all
  int64_t* top;            // [K]
  double* loss;            // [K]
  int64_t* class_correct;  // [K, L]
  int64_t* agreement;      // [K]
  int64_t* ambiguous;      // [K]
};

struct ScoreTask {
  const int64_t* labels;      // [N]
  const int64_t* prediction;  // [N] or null
  ScoreSums sums;
  int64_t classes;  // L
  int64_t top;      // right if fewer logits than this come before the label's
  double margin;
};

int score(const Logits& logits, const ScoreTask& task, int threads);

}  // namespace sdkernels
