// The only file that knows Python. Pointers arrive as integers; all checking is done in Python before the call.
#include <pybind11/pybind11.h>

#include "nested_linear.h"
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
                            pointer<void>(y), {configurations, examples, before, units, after}, x_is_shared, item_size,
                            threads);
}

int nested_linear(std::uintptr_t a,           // [N, C]
                  std::uintptr_t units,       // [C] int64
                  std::uintptr_t weight,      // [D, C]
                  std::uintptr_t bias,        // [1 or T, D]
                  std::uintptr_t head,        // [L, D]
                  std::uintptr_t head_bias,   // [1 or T, L]
                  std::uintptr_t living_in,   // [T] int64
                  std::uintptr_t living_out,  // [T] int64
                  std::uintptr_t logits,      // [T, L, N]
                  int64_t examples, int64_t inputs, int64_t outputs, int64_t classes, int64_t points, int64_t bias_rows,
                  int64_t head_rows, int64_t item_size, int threads) {
  return sdkernels::nested_linear(
      pointer<const void>(a), pointer<const int64_t>(units), pointer<const void>(weight), pointer<const void>(bias),
      pointer<const void>(head), pointer<const void>(head_bias), pointer<const int64_t>(living_in),
      pointer<const int64_t>(living_out), pointer<void>(logits),
      {examples, inputs, outputs, classes, points, bias_rows, head_rows}, item_size, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of sdkernels. Call sdkernels.ops, not this.";
  m.def("nested_linear", &nested_linear, py::call_guard<py::gil_scoped_release>());
  m.def("perturb", &perturb, py::call_guard<py::gil_scoped_release>());
}
