#include "perturb.h"

#include <cstring>

#include "dispatch.h"

namespace sdkernels {
namespace {

constexpr int64_t kElementsWorthAThread = 16384;

// A select moves bits and computes nothing, so a type is its width.
template <typename Bits>
SDKERNELS_INLINE void select_row(const Bits* x, const bool* ablated, const Bits* value, Bits* y, int64_t units) {
  for (int64_t c = 0; c < units; ++c) y[c] = ablated[c] ? value[c] : x[c];
}

SDKERNELS_DISPATCH void select_units(const uint16_t* x, const bool* ablated, const uint16_t* value, uint16_t* y,
                                     int64_t units) {
  select_row(x, ablated, value, y, units);
}
SDKERNELS_DISPATCH void select_units(const uint32_t* x, const bool* ablated, const uint32_t* value, uint32_t* y,
                                     int64_t units) {
  select_row(x, ablated, value, y, units);
}
SDKERNELS_DISPATCH void select_units(const uint64_t* x, const bool* ablated, const uint64_t* value, uint64_t* y,
                                     int64_t units) {
  select_row(x, ablated, value, y, units);
}

template <typename Bits>
void perturb_bits(const Bits* x, const bool* ablated, const Bits* value, Bits* y, const PerturbShape& s,
                  bool x_is_shared, int threads) {
  const int64_t row = s.units * s.after;
  const int64_t example = s.before * row;
  const int64_t blocks = s.configurations * s.examples;
  [[maybe_unused]] const bool parallel = blocks > 1 && blocks * example > kElementsWorthAThread;
#pragma omp parallel for num_threads(threads) if (parallel) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k = block / s.examples;
    const bool* dead = ablated + k * s.units;
    const Bits* from = x + (x_is_shared ? block - k * s.examples : block) * example;
    Bits* to = y + block * example;
    for (int64_t a = 0; a < s.before; ++a) {
      const int64_t at = a * row;
      if (s.after == 1) {
        select_units(from + at, dead, value + at, to + at, s.units);
        continue;
      }
      // A clamped map is not read at all: its row comes from the value, which stays in cache.
      for (int64_t c = 0; c < s.units; ++c) {
        const int64_t map = at + c * s.after;
        std::memcpy(to + map, (dead[c] ? value : from) + map, s.after * sizeof(Bits));
      }
    }
  }
}

}  // namespace

int perturb(const void* x, const bool* ablated, const void* value, void* y, const PerturbShape& shape, bool x_is_shared,
            int64_t item_size, int threads) {
  const auto run = [&](auto bits) {
    using Bits = decltype(bits);
    perturb_bits(static_cast<const Bits*>(x), ablated, static_cast<const Bits*>(value), static_cast<Bits*>(y), shape,
                 x_is_shared, threads);
    return kOk;
  };
  switch (item_size) {
    case 2:
      return run(uint16_t{});
    case 4:
      return run(uint32_t{});
    case 8:
      return run(uint64_t{});
    default:
      return kUnsupportedItemSize;
  }
}

}  // namespace sdkernels
