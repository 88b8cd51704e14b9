// A batch norm's affine map and ReLU, as perturb and rank_one apply them.
#pragma once
#include "dtype.h"
#include "level.h"

namespace sdkernels::SDKERNELS_LEVEL {
namespace {

template <bool Affine, bool Relu, typename W>
SDKERNELS_INLINE W mapped(W x, W scale, W shift) {
  if (Affine) x = x * scale + shift;
  if (Relu) x = x < 0 ? 0 : x;  // keeps nan
  return x;
}

}  // namespace
}  // namespace sdkernels::SDKERNELS_LEVEL
