// A thread owns a pack of neighbouring elements of an example, [A, C, B] counted in order: 16 bytes where only bits
// move, the four elements of a Philox counter where noise is drawn. It reads them once, for a few examples, and writes
// them for many configurations in turn. A block covers neighbouring packs and, where examples are small, several
// examples. Where units lie side by side in memory but positions are counted first (channels-last with noise), threads
// that are neighbours take units that are. Sizes of packs and blocks are not yet measured.
#include "device.cuh"
#include "perturb.h"
#include "random_stream.h"

namespace sdkernels {
namespace cuda {
namespace {

enum class Noise { kNone, kElement, kMap };

constexpr int kQuad = 4;
constexpr int64_t kBlocksWanted = 2048;  // configurations are divided among blocks until there are so many

struct Launch {
  Perturb p;
  int64_t elements;                                     // of an example
  int64_t packs, pack_blocks, example_blocks, k_chunk;  // k_chunk: configurations that a thread writes
  int64_t row_packs;                                    // that may begin in the positions of one unit
  int a, c, b;                                          // sizes
  bool units_fastest;
};

struct Place {
  int a, c, b;
};

// Keeps the compiler from working out every address before a loop and holding them all in registers.
__device__ __forceinline__ Place afresh(Place at) {
  asm volatile("" : "+r"(at.a), "+r"(at.c), "+r"(at.b));
  return at;
}

__device__ __forceinline__ void advance(const Launch& l, Place& at) {
  if (++at.b < l.b) return;
  at.b = 0;
  if (++at.c < l.c) return;
  at.c = 0;
  ++at.a;
}

__device__ __forceinline__ int64_t offset(const Strides& s, const Place& at) {
  return at.a * s.a + at.c * s.c + at.b * s.b;
}

// Where a thread's pack begins; returns which element of the example that is, -1 if there is no such pack.
template <int kPack>
__device__ __forceinline__ int64_t locate(const Launch& l, int64_t slot, Place& at) {
  if (slot >= l.packs) return -1;
  int64_t element = slot * kPack;
  if (l.units_fastest) {
    const int64_t rest = slot / l.p.c, a = rest / l.row_packs;
    const int64_t row = (a * l.p.c + slot % l.p.c) * l.p.b;
    element = (divide_up(row, kPack) + rest % l.row_packs) * kPack;
    if (element >= row + l.p.b) return -1;
  }
  const int64_t row = element / l.p.b;
  at = {static_cast<int>(row / l.p.c), static_cast<int>(row % l.p.c), static_cast<int>(element % l.p.b)};
  return element;
}

__device__ __forceinline__ bool is_ablated(const Perturb& p, int64_t k, int c) {
  return p.packed ? p.ablated[k * divide_up(p.c, 8) + c / 8] >> (c % 8) & 1 : p.ablated[k * p.c + c] != 0;
}

// A bit for each element of a pack.
template <int kPack>
__device__ __forceinline__ unsigned ablated_elements(const Launch& l, int64_t k, Place at, int live) {
  if (at.b + kPack <= l.b) return is_ablated(l.p, k, at.c) ? (1u << kPack) - 1 : 0u;
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    if (i < live && is_ablated(l.p, k, at.c)) bits |= 1u << i;
    advance(l, at);
  }
  return bits;
}

// Four normals of a quad for each example; those of the last one asked for are kept.
struct Draws {
  StreamIds ids;
  int64_t quad = -1;
  float normals[kQuad];

  __device__ __forceinline__ void take(int64_t wanted) {
    if (wanted == quad) return;
    quad = wanted;
    uint32_t words[kQuad];
    philox(static_cast<uint32_t>(wanted), ids, words);
    normals_of(words[0], words[1], normals[0], normals[1]);
    normals_of(words[2], words[3], normals[2], normals[3]);
  }
  __device__ __forceinline__ float of(int64_t element) {
    take(element / kQuad);
    const float low = element & 1 ? normals[1] : normals[0], high = element & 1 ? normals[3] : normals[2];
    return element & 2 ? high : low;
  }
};

// A pack of one example: bits as they were read, or as the affine map and ReLU left them, rounded; and unrounded.
template <typename T, int kPack, bool kSmall = !std::is_same_v<T, Wide<T>>>
struct Held {
  T kept[kPack];
  Wide<T> exact[kPack];

  __device__ __forceinline__ void set_exact(int i, Wide<T> v) { exact[i] = v; }
  __device__ __forceinline__ Wide<T> get_exact(int i) const { return exact[i]; }
};
template <typename T, int kPack>
struct Held<T, kPack, false> {
  T kept[kPack];

  __device__ __forceinline__ void set_exact(int, T) {}
  __device__ __forceinline__ T get_exact(int i) const { return kept[i]; }
};

template <typename T, int kPack, bool kVector>
__device__ __forceinline__ void read(const T* x, const int64_t (&at)[kPack], int live, T (&to)[kPack]) {
  if constexpr (kVector) {
    load_pack(x + at[0], to);
  } else {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (i < live) to[i] = x[at[i]];
    }
  }
}

template <typename T, int kPack, bool kVector>
__device__ __forceinline__ void write(T* y, const int64_t (&at)[kPack], int live, const T (&from)[kPack]) {
  if constexpr (kVector) {
    store_pack(y + at[0], from);
  } else {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (i < live) y[at[i]] = from[i];
    }
  }
}

template <typename T, int kPack, int kExamples>
__device__ __forceinline__ void activate(const Launch& l, Place at, int live, Held<T, kPack> (&x)[kExamples]) {
  const Perturb& p = l.p;
  const bool computes = p.scale != nullptr || p.relu;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    Wide<T> scale = 1, shift = 0;
    if (p.scale != nullptr && i < live) {
      scale = static_cast<const Wide<T>*>(p.scale)[at.c];
      shift = static_cast<const Wide<T>*>(p.shift)[at.c];
    }
#pragma unroll
    for (int u = 0; u < kExamples; ++u) {
      Wide<T> v = widen(x[u].kept[i]);
      if (p.scale != nullptr) v = v * scale + shift;
      if (p.relu) v = v < 0 ? Wide<T>(0) : v;
      x[u].set_exact(i, v);
      if (computes) x[u].kept[i] = narrow<T>(v);  // otherwise the bits stay as they are, those of a nan too
    }
    advance(l, at);
  }
}

// What is written of one example in configuration k.
template <typename T, int kPack, Noise kNoise>
__device__ __forceinline__ void perturb_pack(const Launch& l, int64_t k, int64_t n, int64_t element, Place at, int live,
                                             unsigned ablated, const T (&value)[kPack], const Held<T, kPack>& x,
                                             T (&y)[kPack]) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) y[i] = ablated >> i & 1 ? value[i] : x.kept[i];
  if constexpr (kNoise != Noise::kNone) {
    const Perturb& p = l.p;
    Draws draws{{static_cast<uint64_t>(*p.seed), static_cast<uint32_t>(p.configurations[k]),
                 static_cast<uint32_t>(p.examples[n]), p.site}};
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const Wide<T> sigma = i < live ? static_cast<const Wide<T>*>(p.sigma)[k * p.c + at.c] : Wide<T>(0);
      if (sigma != 0) {  // 0 keeps the bits
        const float normal = draws.of(kNoise == Noise::kMap ? at.c : element + i);
        const Wide<T> clean = ablated >> i & 1 ? widen(value[i]) : x.get_exact(i);
        y[i] = narrow<T>(clean + sigma * Wide<T>(normal));
      }
      advance(l, at);
    }
  }
}

template <typename T, int kPack, int kExamples, bool kVector, Noise kNoise>
__global__ void __launch_bounds__(kThreads, 2) perturb_kernel(const Launch l) {
  const Perturb& p = l.p;
  const int64_t block = blockIdx.x, rest = block / l.pack_blocks;
  Place begin;
  const int64_t element = locate<kPack>(l, block % l.pack_blocks * blockDim.x + threadIdx.x, begin);
  if (element < 0) return;
  const int64_t first = rest % l.example_blocks * (blockDim.y * kExamples) + threadIdx.y;
  const int64_t k_first = rest / l.example_blocks * l.k_chunk, k_end = min(k_first + l.k_chunk, p.k);
  const int live = static_cast<int>(min(l.elements - element, int64_t(kPack)));
  const unsigned all = (1u << live) - 1;

  int64_t x_at[kPack] = {element}, y_at[kPack] = {element};
  if constexpr (!kVector) {
    Place place = begin;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      x_at[i] = offset(p.x_strides, place);
      y_at[i] = offset(p.y_strides, place);
      advance(l, place);
    }
  }

  Held<T, kPack> x[kExamples] = {};
  T value[kPack] = {};
  bool has_x = false, has_value = false;
#pragma unroll 1
  for (int64_t k = k_first; k < k_end; ++k) {
    const Place at = afresh(begin);
    const unsigned ablated = ablated_elements<kPack>(l, k, at, live);
    if (ablated != 0 && !has_value) {
      Place place = at;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (i < live) value[i] = static_cast<const T*>(p.value)[offset(p.value_strides, place)];
        advance(l, place);
      }
      has_value = true;
    }
    if (ablated != all && !has_x) {  // what is clamped in every configuration is not read
#pragma unroll
      for (int u = 0; u < kExamples; ++u) {
        const int64_t n = first + int64_t(u) * blockDim.y;
        if (n < p.n) {
          read<T, kPack, kVector>(static_cast<const T*>(p.x) + k * p.x_k + n * p.x_strides.n, x_at, live, x[u].kept);
        }
      }
      activate(l, at, live, x);
      has_x = p.x_k == 0;
    }
#pragma unroll
    for (int u = 0; u < kExamples; ++u) {
      const int64_t n = first + int64_t(u) * blockDim.y;
      if (n >= p.n) break;
      T y[kPack];
      perturb_pack<T, kPack, kNoise>(l, k, n, element, at, live, ablated, value, x[u], y);
      write<T, kPack, kVector>(static_cast<T*>(p.y) + k * p.y_k + n * p.y_strides.n, y_at, live, y);
    }
  }
}

template <typename T, int kPack, int kExamples, bool kVector, Noise kNoise>
int launch(const Perturb& p, cudaStream_t stream) {
  Launch l{p};
  l.a = static_cast<int>(p.a), l.c = static_cast<int>(p.c), l.b = static_cast<int>(p.b);
  l.elements = p.a * p.c * p.b;
  l.packs = divide_up(l.elements, kPack);
  l.row_packs = divide_up(p.b, kPack);
  l.units_fastest = !kVector && p.b > 1 && p.c > 1 && p.y_strides.c < p.y_strides.b;
  if (l.units_fastest) l.packs = p.a * l.row_packs * p.c;
  const int64_t across = power_of_two(l.packs, kThreads), down = kThreads / across;
  l.pack_blocks = divide_up(l.packs, across);
  l.example_blocks = divide_up(p.n, down * kExamples);
  const int64_t blocks = l.pack_blocks * l.example_blocks;
  l.k_chunk = divide_up(p.k, std::min(p.k, divide_up(kBlocksWanted, blocks)));
  perturb_kernel<T, kPack, kExamples, kVector, kNoise>
      <<<static_cast<unsigned>(blocks * divide_up(p.k, l.k_chunk)), dim3(across, down), 0, stream>>>(l);
  return error_code(cudaGetLastError());
}

// Whether examples lie as [A, C, B] is counted, and every pack on its own boundary.
bool packs_fit(const void* x, int64_t x_k, const Strides& s, const Perturb& p, int pack, size_t bytes) {
  const bool in_order = (p.b == 1 || s.b == 1) && (p.c == 1 || s.c == p.b) && (p.a == 1 || s.a == p.c * p.b);
  const bool whole = p.a * p.c * p.b % pack == 0 && (p.n == 1 || s.n % pack == 0) && (p.k == 1 || x_k % pack == 0);
  return in_order && whole && aligned(x, std::min<size_t>(16, pack * bytes));
}

template <typename T, int kPack, int kExamples, Noise kNoise>
int launch_packs(const Perturb& p, cudaStream_t stream) {
  if (packs_fit(p.x, p.x_k, p.x_strides, p, kPack, sizeof(T)) &&
      packs_fit(p.y, p.y_k, p.y_strides, p, kPack, sizeof(T))) {
    return launch<T, kPack, kExamples, true, kNoise>(p, stream);
  }
  return launch<T, kQuad, std::min(2, kExamples), false, kNoise>(p, stream);
}

bool positions_fold(const Strides& s, const Perturb& p) { return p.a == 1 || s.a == p.b * s.b; }

Strides folded(const Strides& s) { return {s.n, s.b, s.c, 0}; }

}  // namespace
}  // namespace cuda

int perturb_cuda(const Perturb& given, void* stream) {
  using namespace cuda;
  Perturb p = given;
  const auto on = static_cast<cudaStream_t>(stream);
  const Noise noise = p.sigma == nullptr ? Noise::kNone : p.per_map ? Noise::kMap : Noise::kElement;
  // Where draws do not depend on the position, [A, C, B] in channels-last memory may as well be [A B, C, 1].
  if (noise != Noise::kElement && p.b > 1 && p.y_strides.c < p.y_strides.b && positions_fold(p.x_strides, p) &&
      positions_fold(p.y_strides, p) && positions_fold(p.value_strides, p)) {
    p.x_strides = folded(p.x_strides);
    p.y_strides = folded(p.y_strides);
    p.value_strides = folded(p.value_strides);
    p.a *= p.b;
    p.b = 1;
  }
  if (std::max({p.a, p.c, p.b}) > INT32_MAX) return error_code(cudaErrorInvalidValue);
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    switch (noise) {
      case Noise::kNone:
        return launch_packs<T, 16 / sizeof(T), 4, Noise::kNone>(p, on);
      case Noise::kElement:
        return launch_packs<T, kQuad, 1, Noise::kElement>(p, on);
      default:
        return launch_packs<T, kQuad, 1, Noise::kMap>(p, on);
    }
  });
}

}  // namespace sdkernels
