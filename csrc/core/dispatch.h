// One object serves every x86 processor: the loader picks the widest version that this one runs.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SDKERNELS_DISPATCH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SDKERNELS_DISPATCH
#endif

// A clone compiles for its own processor only what is inlined into it.
#define SDKERNELS_INLINE inline __attribute__((always_inline))
