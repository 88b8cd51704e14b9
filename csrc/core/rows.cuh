// How threads reduce the positions of each unit of each example, a row, for ops that need rows' sums.
//
// `lanes` neighbouring threads walk a row together; a block's rows are `across` neighbouring units of `down` examples
// (or ranges of examples). Lanes are neighbours in memory: of one row where positions lie side by side, of neighbouring
// units (lanes = 1) where units do. How many is not yet measured.
#pragma once
#include "device.cuh"
#include "layout.h"

namespace sdkernels::cuda {

constexpr int kLoads = 4;                    // in flight, of a thread in a row
constexpr int kExampleLoads = 8;             // likewise, where rows are single elements
constexpr int64_t kThreadsWanted = 1 << 17;  // examples are divided among blocks until there are so many

enum class Access { kSingle, kStrided, kVector };  // rows of one element; by elements; by 16 bytes

struct Rows {
  int64_t examples, units;
  unsigned positions, inner;           // inner_stride counts `inner` of them: all, but for odd layouts
  int64_t outer_stride, inner_stride;  // elements, as are the next two
  int64_t example_stride, unit_stride;
  double inverse;  // 1 / positions
  int lanes, across, down;
  unsigned unit_blocks;
  int64_t ranges, range_length;  // of examples
  Access access;
};

inline bool rows_are_countable(const Activation& x) { return x.before * x.after <= INT32_MAX; }

// max_across limits the units of a block.
inline Rows plan_rows(const Activation& x, size_t item_bytes, int64_t max_across) {
  Rows r{};
  const Strides& s = x.strides;
  r.examples = x.examples, r.units = x.units, r.positions = static_cast<unsigned>(x.before * x.after);
  r.inverse = 1.0 / r.positions;
  r.example_stride = s.n, r.unit_stride = s.c;
  const bool folds = x.before == 1 || x.after == 1 || s.a == x.after * s.b;
  r.inner = folds ? r.positions : static_cast<unsigned>(x.after);
  r.inner_stride = x.after == 1 ? s.a : s.b;
  r.outer_stride = s.a;
  const int64_t pack = 16 / item_bytes;
  const bool vector = r.positions > 1 && folds && r.inner_stride == 1 && r.positions % pack == 0 && s.n % pack == 0 &&
                      s.c % pack == 0 && aligned(x.x, 16);
  r.access = r.positions == 1 ? Access::kSingle : vector ? Access::kVector : Access::kStrided;
  // With few units, lanes along them would leave a warp idle.
  const bool lanes_are_units = r.positions == 1 || (r.units >= 16 && r.unit_stride < r.inner_stride);
  r.lanes = lanes_are_units ? 1 : power_of_two(divide_up(r.positions, 2 * (vector ? pack : 1)), 32);
  r.across = power_of_two(r.units, std::min<int64_t>(kThreads / r.lanes, max_across));
  r.down = kThreads / (r.lanes * r.across);
  r.unit_blocks = static_cast<unsigned>(divide_up(r.units, r.across));
  return r;
}

// Cuts the examples into ranges, `side_by_side` of them in a block.
inline void plan_ranges(Rows& r, int64_t side_by_side, int64_t least_length) {
  const int64_t threads = int64_t(r.unit_blocks) * kThreads / side_by_side;  // that a range occupies
  const int64_t wanted = std::max<int64_t>(1, kThreadsWanted / threads);
  r.range_length = std::max(divide_up(r.examples, wanted), std::min(least_length, r.examples));
  r.ranges = divide_up(r.examples, r.range_length);
}

// A thread's place in a block.
struct RowThread {
  int lane, across, down;
  unsigned mates;  // the lanes of its row, as a warp's mask
};

__device__ __forceinline__ RowThread row_thread(const Rows& r) {
  const int t = threadIdx.x, group = t / r.lanes;
  const unsigned own = r.lanes == 32 ? ~0u : (1u << r.lanes) - 1;
  return {t % r.lanes, group % r.across, group / r.across, own << (t % 32 / r.lanes * r.lanes)};
}

// Calls take with each element of a row that is this lane's.
template <typename T, Access kAccess, typename Take>
__device__ __forceinline__ void for_own_positions(const T* row, const Rows& r, int lane, Take take) {
  constexpr int kPack = kAccess == Access::kVector ? 16 / sizeof(T) : 1;
  const unsigned step = r.lanes * kPack;
  for (unsigned first = lane * kPack; first < r.positions; first += kLoads * step) {
    T held[kLoads][kPack];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const unsigned at = first + j * step;
      if (at >= r.positions) break;
      if constexpr (kAccess == Access::kVector) {
        load_pack(row + at, held[j]);
      } else if (r.inner == r.positions) {
        held[j][0] = row[at * r.inner_stride];
      } else {
        held[j][0] = row[at / r.inner * r.outer_stride + at % r.inner * r.inner_stride];
      }
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      if (first + j * step >= r.positions) break;
#pragma unroll
      for (int i = 0; i < kPack; ++i) take(widen(held[j][i]));
    }
  }
}

// The same in all lanes of a row: pairs are added in either order alike.
template <typename V>
__device__ __forceinline__ V sum_of_mates(V v, const Rows& r, unsigned mates) {
  for (int d = r.lanes / 2; d > 0; d /= 2) v += __shfl_xor_sync(mates, v, d);
  return v;
}

}  // namespace sdkernels::cuda
