// A thread draws the four elements of one Philox counter and stores them together. A block covers neighbouring quads of
// a row and, where rows are short, several rows. The size of a block is not yet measured.
#include "device.cuh"
#include "random_stream.h"

namespace sdkernels {
namespace cuda {
namespace {

enum Kind : int { kBits = 0, kUniform = 1, kNormal = 2 };

template <int kKind>
using Drawn = std::conditional_t<kKind == kBits, int64_t, float>;

struct Draws {
  const int64_t* seed;            // []
  const int64_t* configurations;  // [K]
  const int64_t* examples;        // [N]
  void* out;                      // [K, N, elements]
  int64_t n, rows, elements;      // rows are K N
  int64_t quads, quad_blocks;     // of a row
  uint32_t site;
};

template <int kKind, bool kVector>
__global__ void __launch_bounds__(kThreads) draw(const Draws d) {
  const int64_t block = blockIdx.x;
  const int64_t quad = block % d.quad_blocks * blockDim.x + threadIdx.x;
  const int64_t row = block / d.quad_blocks * blockDim.y + threadIdx.y;
  if (quad >= d.quads || row >= d.rows) return;
  const int64_t k = row / d.n;
  const StreamIds ids{static_cast<uint64_t>(*d.seed), static_cast<uint32_t>(d.configurations[k]),
                      static_cast<uint32_t>(d.examples[row - k * d.n]), d.site};
  uint32_t words[4];
  philox(static_cast<uint32_t>(quad), ids, words);
  Drawn<kKind> drawn[4];
  if constexpr (kKind == kNormal) {
    normals_of(words[0], words[1], drawn[0], drawn[1]);
    normals_of(words[2], words[3], drawn[2], drawn[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kKind == kUniform) {
        drawn[i] = uniform_of(words[i]);
      } else {
        drawn[i] = words[i];
      }
    }
  }
  Drawn<kKind>* out = static_cast<Drawn<kKind>*>(d.out) + row * d.elements + 4 * quad;
  if constexpr (kVector) {
    store_pack(out, drawn);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * quad + i < d.elements) out[i] = drawn[i];
    }
  }
}

template <int kKind>
int launch(const Draws& d, cudaStream_t stream) {
  const int64_t across = power_of_two(d.quads, kThreads), down = kThreads / across;
  const dim3 threads(across, down);
  const auto blocks = static_cast<unsigned>(d.quad_blocks * divide_up(d.rows, down));
  if (d.elements % 4 == 0 && aligned(d.out, 16)) {
    draw<kKind, true><<<blocks, threads, 0, stream>>>(d);
  } else {
    draw<kKind, false><<<blocks, threads, 0, stream>>>(d);
  }
  return error_code(cudaGetLastError());
}

}  // namespace
}  // namespace cuda

int random_stream_cuda(const int64_t* seed, const int64_t* configurations, const int64_t* examples, void* out,
                       int64_t k, int64_t n, int64_t elements, int64_t site, int kind, void* stream) {
  using namespace cuda;
  const int64_t quads = divide_up(elements, 4);
  const Draws d{seed,
                configurations,
                examples,
                out,
                n,
                k * n,
                elements,
                quads,
                divide_up(quads, power_of_two(quads, kThreads)),
                static_cast<uint32_t>(site)};
  const auto on = static_cast<cudaStream_t>(stream);
  switch (kind) {
    case kBits:
      return launch<kBits>(d, on);
    case kUniform:
      return launch<kUniform>(d, on);
    case kNormal:
      return launch<kNormal>(d, on);
    default:
      return kUnsupportedDType;
  }
}

}  // namespace sdkernels
