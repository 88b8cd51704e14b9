// Vectors of what is computed in, memory for them, and how many classes' sums they hold.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "dtype.h"
#include "level.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector crosses a call: all that use them are inlined

namespace sdkernels::SDKERNELS_LEVEL {

constexpr int64_t kVectors = 2;  // a strip: two vectors of examples

template <typename W>
struct Lane {
  typedef W Vector __attribute__((vector_size(kVectorBytes), aligned(kVectorBytes), may_alias));
  using Index = decltype(Vector{} > 0);
  using Int = std::conditional_t<sizeof(W) == 8, int64_t, int32_t>;
  static constexpr int64_t kWidth = kVectorBytes / sizeof(W);
  static constexpr int64_t kStrip = kVectors * kWidth;  // examples
};

// Keeps in a register what several products read; the compiler would read memory again for each, and wait for it.
template <typename Vector>
SDKERNELS_INLINE void hold([[maybe_unused]] Vector& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#endif
}

template <typename W>
SDKERNELS_INLINE typename Lane<W>::Vector loaded(const W* from) {
  typename Lane<W>::Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// The first numbers of a vector, zeros behind.
template <typename W>
SDKERNELS_INLINE typename Lane<W>::Vector loaded(const W* from, int64_t count) {
  W x[Lane<W>::kWidth] = {};
  for (int64_t i = 0; i < count; ++i) x[i] = from[i];
  return loaded(x);
}

template <typename W>
SDKERNELS_INLINE void store(const typename Lane<W>::Vector& x, W* to) {
  std::memcpy(to, &x, sizeof x);
}

// The first numbers of a vector.
template <typename W>
SDKERNELS_INLINE void store(const typename Lane<W>::Vector& x, W* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = x[i];
}

// Zeros from a vector's boundary on; empty where nothing is asked for.
template <typename W>
class AlignedZeros {
 public:
  explicit AlignedZeros(int64_t count) : memory_(count + kVectorBytes / sizeof(W)) {
    void* first = memory_.data();
    std::size_t space = memory_.size() * sizeof(W);
    first_ = static_cast<W*>(std::align(kVectorBytes, count * sizeof(W), first, space));
  }
  AlignedZeros(const AlignedZeros&) = delete;
  AlignedZeros& operator=(const AlignedZeros&) = delete;
  W* data() { return first_; }

 private:
  std::vector<W> memory_;
  W* first_;
};

// A head's classes are summed a group at a time, many or few: what the registers hold.
constexpr int kFew = 5, kMany = kVectorBytes == 64 ? 10 : 5;

// The size of the group that begins where so many classes are left.
SDKERNELS_INLINE int64_t group_of(int64_t left) { return left > kFew ? kMany : kFew; }

// Classes of whole groups.
SDKERNELS_INLINE int64_t padded_to_groups(int64_t classes) { return (classes + kFew - 1) / kFew * kFew; }

// Keeps nan.
template <bool Relu, typename Vector>
SDKERNELS_INLINE Vector rectified(Vector x) {
  return Relu ? (x < 0 ? Vector{} : x) : x;
}

}  // namespace sdkernels::SDKERNELS_LEVEL
