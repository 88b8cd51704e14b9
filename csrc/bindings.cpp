// The only file that knows Python. Pointers arrive as integers; all checking is done in Python before the call.
#include <pybind11/pybind11.h>

#include "perturb.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

int perturb(std::uintptr_t x,        // [N, A, C, B] shared, or [K, N, A, C, B]
            std::uintptr_t ablated,  // [K, C] bool
            std::uintptr_t value,    // [A, C, B]
            std::uintptr_t y,        // [K, N, A, C, B]
            int64_t configurations, int64_t examples, int64_t before, int64_t units, int64_t after, bool x_is_shared,
            int64_t item_size, int threads) {
  return sdkernels::perturb(pointer<const void>(x), pointer<const bool>(ablated), pointer<const void>(value),
                            pointer<void>(y), {configurations, examples, before, units, after}, x_is_shared,
                            item_size, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of sdkernels. Call sdkernels.ops, not this.";
  m.def("perturb", &perturb, py::call_guard<py::gil_scoped_release>());
}
