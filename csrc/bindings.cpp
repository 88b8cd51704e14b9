// The only file that knows Python. Pointers arrive as integers; all checking is done in Python before the call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "cpu.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;
using Sizes = std::vector<int64_t>;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

sdkernels::Strides strides(const Sizes& s, size_t first) {
  return {s[first], s[first + 1], s[first + 2], s[first + 3]};
}

sdkernels::Activation activation(Address x, const Sizes& shape, const Sizes& stride, int dtype) {
  return {pointer<const void>(x), shape[0], shape[1], shape[2], shape[3], strides(stride, 0), dtype};
}

// Each takes where it runs last: a number of threads, or a CUDA stream.
template <typename Where>
using PerturbFunction = int (*)(const sdkernels::Perturb&, Where);

template <typename Where, typename Given>
auto perturb(PerturbFunction<Where> run) {
  return [run](Address x,               // [K, N, A, C, B]
               Address value,           // [A, C, B]
               Address y,               // [K, N, A, C, B]
               const Addresses& small,  // ablated, scale, shift, sigma, seed, configurations, examples; 0 is none
               const Sizes& shape, const Sizes& x_stride, const Sizes& value_stride, const Sizes& y_stride, bool packed,
               bool relu, int64_t site, bool per_map, int dtype, Given where) {
    sdkernels::Perturb p{};
    p.x = pointer<const void>(x);
    p.value = pointer<const void>(value);
    p.y = pointer<void>(y);
    p.ablated = pointer<const uint8_t>(small[0]);
    p.scale = pointer<const void>(small[1]);
    p.shift = pointer<const void>(small[2]);
    p.sigma = pointer<const void>(small[3]);
    p.seed = pointer<const int64_t>(small[4]);
    p.configurations = pointer<const int64_t>(small[5]);
    p.examples = pointer<const int64_t>(small[6]);
    p.k = shape[0], p.n = shape[1], p.a = shape[2], p.c = shape[3], p.b = shape[4];
    p.x_k = x_stride[0], p.y_k = y_stride[0];
    p.x_strides = strides(x_stride, 1);
    p.y_strides = strides(y_stride, 1);
    p.value_strides = {0, value_stride[0], value_stride[1], value_stride[2]};
    p.site = static_cast<uint32_t>(site);
    p.packed = packed, p.relu = relu, p.per_map = per_map;
    p.dtype = dtype;
    return run(p, Where(where));
  };
}

template <typename Where, typename Given>
auto random_stream(int (*run)(const int64_t*, const int64_t*, const int64_t*, void*, int64_t, int64_t, int64_t, int64_t,
                              int, Where)) {
  return [run](Address seed, Address configurations, Address examples, Address out, int64_t k, int64_t n,
               int64_t elements, int64_t site, int kind, Given where) {
    return run(pointer<const int64_t>(seed), pointer<const int64_t>(configurations), pointer<const int64_t>(examples),
               pointer<void>(out), k, n, elements, site, kind, Where(where));
  };
}

template <typename Where, typename Given>
auto class_moments(int (*run)(const sdkernels::Activation&, const int64_t*, const sdkernels::Moments&, Where)) {
  return [run](Address x,               // [N, A, C, B]
               Address labels,          // [N]
               const Addresses& state,  // the fields of Moments; the last is 0 if not asked for
               const Sizes& shape, const Sizes& stride, int64_t classes, int dtype, Given where) {
    const sdkernels::Moments moments{pointer<int64_t>(state[0]), pointer<double>(state[1]),  pointer<double>(state[2]),
                                     pointer<int64_t>(state[3]), pointer<double>(state[4]),  pointer<double>(state[5]),
                                     pointer<double>(state[6]),  pointer<double>(state[7]),  pointer<int64_t>(state[8]),
                                     pointer<int64_t>(state[9]), pointer<double>(state[10]), classes};
    return run(activation(x, shape, stride, dtype), pointer<const int64_t>(labels), moments, Where(where));
  };
}

template <typename Where, typename Given>
auto class_histogram(int (*run)(const sdkernels::Activation&, const int64_t*, const double*, int64_t*, int64_t, int64_t,
                                Where)) {
  return [run](Address x,       // [N, A, C, B]
               Address labels,  // [N]
               Address edges,   // [C, E]
               Address counts,  // [L, C, E + 2]
               const Sizes& shape, const Sizes& stride, int64_t classes, int64_t edge_count, int dtype, Given where) {
    return run(activation(x, shape, stride, dtype), pointer<const int64_t>(labels), pointer<const double>(edges),
               pointer<int64_t>(counts), classes, edge_count, Where(where));
  };
}

sdkernels::ScoreSums sums(const Addresses& a, size_t first) {
  return {pointer<int64_t>(a[first]),     pointer<int64_t>(a[first + 1]), pointer<double>(a[first + 2]),
          pointer<int64_t>(a[first + 3]), pointer<int64_t>(a[first + 4]), pointer<int64_t>(a[first + 5])};
}

int score(Address logits,               // [K, N, L]
          Address labels,               // [N]
          Address prediction,           // [N] or 0
          const Addresses& sums_given,  // the fields of ScoreSums; 0 is not asked for
          const Sizes& shape, const Sizes& stride, int64_t top, double margin, int dtype, int threads) {
  const sdkernels::ScoreTask task{
      pointer<const int64_t>(labels), pointer<const int64_t>(prediction), sums(sums_given, 0), shape[2], top, margin};
  return sdkernels::score({pointer<const void>(logits), shape[0], shape[1], stride[0], stride[1], stride[2], dtype},
                          task, threads);
}

int nested_linear(Address a,                     // [N, C]
                  const Addresses& tensors,      // weight, bias, head, head_bias, units, living_in, living_out
                  Address out,                   // [T, D or L, N], or 0 where only scores are asked for
                  const Addresses& score_given,  // labels, prediction, the fields of ScoreSums
                  const Sizes& sizes,            // N, C, D, L (0 without a head), T
                  const Sizes& stride, const Sizes& bias_rows, bool relu, int64_t top, double margin, int dtype,
                  int threads) {
  sdkernels::NestedLinear p{};
  p.a = pointer<const void>(a);
  p.weight = pointer<const void>(tensors[0]);
  p.bias = pointer<const void>(tensors[1]);
  p.head = pointer<const void>(tensors[2]);
  p.head_bias = pointer<const void>(tensors[3]);
  p.units = pointer<const int64_t>(tensors[4]);
  p.living_in = pointer<const int64_t>(tensors[5]);
  p.living_out = pointer<const int64_t>(tensors[6]);
  p.out = pointer<void>(out);
  p.examples = sizes[0], p.inputs = sizes[1], p.outputs = sizes[2], p.classes = sizes[3], p.points = sizes[4];
  p.a_example = stride[0], p.a_input = stride[1];
  p.bias_rows = bias_rows[0], p.head_rows = bias_rows[1];
  p.relu = relu;
  p.dtype = dtype;
  p.score = {pointer<const int64_t>(score_given[0]),
             pointer<const int64_t>(score_given[1]),
             sums(score_given, 2),
             sizes[3],
             top,
             margin};
  return sdkernels::nested_linear(p, threads);
}

int rank_one(Address z,                 // [N, D, S]
             Address a,                 // [N, C, S]
             const Addresses& tensors,  // weight [C, D], units, value, scale, shift; 0 is none
             Address y,                 // [K, N, D, S]
             const Sizes& sizes,        // K, N, D, S, C
             const Sizes& z_stride, const Sizes& a_stride, bool relu, int dtype, int threads) {
  sdkernels::RankOne p{};
  p.z = pointer<const void>(z);
  p.a = pointer<const void>(a);
  p.weight = pointer<const void>(tensors[0]);
  p.units = pointer<const int64_t>(tensors[1]);
  p.value = pointer<const void>(tensors[2]);
  p.scale = pointer<const void>(tensors[3]);
  p.shift = pointer<const void>(tensors[4]);
  p.y = pointer<void>(y);
  p.k = sizes[0], p.examples = sizes[1], p.outputs = sizes[2], p.positions = sizes[3], p.inputs = sizes[4];
  p.z_n = z_stride[0], p.z_d = z_stride[1], p.z_s = z_stride[2];
  p.a_n = a_stride[0], p.a_c = a_stride[1], p.a_s = a_stride[2];
  p.relu = relu;
  p.dtype = dtype;
  return sdkernels::rank_one(p, threads);
}

int rank_one_head(Address a,                 // [N, C]
                  const Addresses& tensors,  // value, intact, units, z, weight [C, D], scale, shift, head, head_bias
                  Address out,               // [K, N, L]
                  const Sizes& sizes,        // K, N, D, C, L
                  const Sizes& a_stride, bool relu, int dtype, int threads) {
  sdkernels::RankOneHead p{};
  p.a = pointer<const void>(a);
  p.value = pointer<const void>(tensors[0]);
  p.intact = pointer<const void>(tensors[1]);
  p.units = pointer<const int64_t>(tensors[2]);
  p.z = pointer<const void>(tensors[3]);
  p.weight = pointer<const void>(tensors[4]);
  p.scale = pointer<const void>(tensors[5]);
  p.shift = pointer<const void>(tensors[6]);
  p.head = pointer<const void>(tensors[7]);
  p.head_bias = pointer<const void>(tensors[8]);
  p.out = pointer<void>(out);
  p.k = sizes[0], p.examples = sizes[1], p.outputs = sizes[2], p.inputs = sizes[3], p.classes = sizes[4];
  p.a_n = a_stride[0], p.a_c = a_stride[1];
  p.relu = relu;
  p.dtype = dtype;
  return sdkernels::rank_one_head(p, threads);
}

int winograd_input(Address x,           // [N, H, W, C]
                   Address out,         // [36, T, C]
                   const Sizes& sizes,  // N, H, W, C
                   const Sizes& x_stride, bool relu, int dtype, int threads) {
  sdkernels::WinogradInput p{};
  p.x = pointer<const void>(x);
  p.out = pointer<void>(out);
  p.examples = sizes[0], p.height = sizes[1], p.width = sizes[2], p.units = sizes[3];
  p.x_n = x_stride[0], p.x_h = x_stride[1], p.x_w = x_stride[2];
  p.relu = relu;
  p.dtype = dtype;
  return sdkernels::winograd_input(p, threads);
}

int winograd_output(Address m,           // [36, T, D]
                    Address bias,        // [D] or 0
                    Address add,         // [N, H, W, D] or 0
                    Address y,           // [N, H, W, D]
                    const Sizes& sizes,  // N, H, W, D
                    const Sizes& m_stride, const Sizes& add_stride, bool relu, int dtype, int threads) {
  sdkernels::WinogradOutput p{};
  p.m = pointer<const void>(m);
  p.bias = pointer<const void>(bias);
  p.add = pointer<const void>(add);
  p.y = pointer<void>(y);
  p.examples = sizes[0], p.height = sizes[1], p.width = sizes[2], p.units = sizes[3];
  p.m_i = m_stride[0], p.m_t = m_stride[1];
  p.add_n = add_stride[0], p.add_h = add_stride[1], p.add_w = add_stride[2];
  p.relu = relu;
  p.dtype = dtype;
  return sdkernels::winograd_output(p, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of sdkernels. Call sdkernels.ops, not this.";
  const auto released = py::call_guard<py::gil_scoped_release>();
  m.def("class_histogram", class_histogram<int, int>(&sdkernels::class_histogram), released);
  m.def("class_moments", class_moments<int, int>(&sdkernels::class_moments), released);
  m.def("nested_linear", &nested_linear, released);
  m.def("perturb", perturb<int, int>(&sdkernels::perturb), released);
  m.def("random_stream", random_stream<int, int>(&sdkernels::random_stream), released);
  m.def("rank_one", &rank_one, released);
  m.def("rank_one_head", &rank_one_head, released);
  m.def("score", &score, released);
  m.def("winograd_input", &winograd_input, released);
  m.def("winograd_output", &winograd_output, released);
  m.def("cpu_level", &sdkernels::cpu_level, "The level of x86-64 that kernels run at: 1, 3 or 4.");
  m.def("use_cpu_level", &sdkernels::use_cpu_level, "Asks for a level, 0 for the highest; False if there is no such.");
#ifdef SDKERNELS_CUDA
  m.attr("has_cuda") = true;
  m.def("class_histogram_cuda", class_histogram<void*, Address>(&sdkernels::class_histogram_cuda), released);
  m.def("class_moments_cuda", class_moments<void*, Address>(&sdkernels::class_moments_cuda), released);
  m.def("perturb_cuda", perturb<void*, Address>(&sdkernels::perturb_cuda), released);
  m.def("random_stream_cuda", random_stream<void*, Address>(&sdkernels::random_stream_cuda), released);
#else
  m.attr("has_cuda") = false;
#endif
}
