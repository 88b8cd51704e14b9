// What every function of the core returns.
#pragma once

namespace sdkernels {

// A failed CUDA call gives kCudaError plus CUDA's own number.
enum Error : int { kOk = 0, kUnsupportedDType = 1, kCudaError = 1000 };

}  // namespace sdkernels
