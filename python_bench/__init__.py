"""Benchmarks: the package against its opponents, in the same run, as ratios."""
