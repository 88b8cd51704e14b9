#include "cpu.h"

#include <atomic>

namespace sdkernels {
namespace {

int highest_level() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v4")) return 4;
  if (__builtin_cpu_supports("x86-64-v3")) return 3;
#endif
  return 1;
}

std::atomic<int> asked_level{0};

const ExactKernels& exact() {
#if defined(__x86_64__)
  if (cpu_level() == 4) return v4::kExact;
  if (cpu_level() == 3) return v3::kExact;
#endif
  return v1::kExact;
}

const SumKernels& sums() {
#if defined(__x86_64__)
  if (cpu_level() == 4) return v4::kSums;
  if (cpu_level() == 3) return v3::kSums;
#endif
  return v1::kSums;
}

}  // namespace

int cpu_level() {
  static const int highest = highest_level();
  const int asked = asked_level;
  return asked ? asked : highest;
}

bool use_cpu_level(int level) {
  if (level != 0 && level != 1 && level != 3 && level != 4) return false;
  if (level > highest_level()) return false;
  asked_level = level;
  return true;
}

int class_histogram(const Activation& x, const int64_t* labels, const double* edges, int64_t* counts, int64_t classes,
                    int64_t edge_count, int threads) {
  return sums().class_histogram(x, labels, edges, counts, classes, edge_count, threads);
}

int class_moments(const Activation& x, const int64_t* labels, const Moments& moments, int threads) {
  return sums().class_moments(x, labels, moments, threads);
}

int nested_linear(const NestedLinear& p, int threads) { return sums().nested_linear(p, threads); }

int perturb(const Perturb& p, int threads) { return exact().perturb(p, threads); }

int random_stream(const int64_t* seed, const int64_t* configurations, const int64_t* examples, void* out, int64_t k,
                  int64_t n, int64_t elements, int64_t site, int kind, int threads) {
  return exact().random_stream(seed, configurations, examples, out, k, n, elements, site, kind, threads);
}

int rank_one(const RankOne& p, int threads) { return exact().rank_one(p, threads); }

int rank_one_head(const RankOneHead& p, int threads) { return sums().rank_one_head(p, threads); }

int score(const Logits& logits, const ScoreTask& task, int threads) { return sums().score(logits, task, threads); }

int winograd_input(const WinogradInput& p, int threads) { return sums().winograd_input(p, threads); }

int winograd_output(const WinogradOutput& p, int threads) { return sums().winograd_output(p, threads); }

}  // namespace sdkernels
