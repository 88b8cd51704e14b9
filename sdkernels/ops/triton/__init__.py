"""The ops' Triton kernels, one module an op; every ``*_kernel`` is an entry, its launcher has the op's own name."""
