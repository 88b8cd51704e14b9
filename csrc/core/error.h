// What every function of the core returns.
#pragma once

namespace sdkernels {

enum Error : int { kOk = 0, kUnsupportedItemSize = 1 };

}  // namespace sdkernels
