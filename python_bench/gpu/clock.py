"""Times on a device, bit by bit comparisons, and the two ceilings: copy bandwidth and matrix products."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

# What a stage measures: cases by name; a case makes its inputs, and gives what is to be run by name; that gives a row.
Row = dict[str, Any]
Measures = Mapping[str, Callable[[], Row]]
Cases = Mapping[str, Callable[[], Measures]]

WARM_UP = 3
LEAST, MOST = 10, 50  # timed runs
BUDGET = 250.0  # milliseconds for those beyond the least
FLUSHED = 2**28  # bytes: more than any GPU's L2 cache

COPIED = {"full": 2**31, "quick": 2**28, "tiny": 2**12}  # bytes
PRODUCT = {"full": 8192, "quick": 2048, "tiny": 32}  # N of an N x N x N product
PRODUCT_ERROR = {"bfloat16": 2e-2, "TF32": 5e-3, "float32": 1e-5}  # relative to the greatest entry


class CheckError(Exception):
    """A result is not what it must be, so its time means nothing."""


class Clock:
    """Milliseconds of work on a device: by events on a GPU, with its cache overwritten before every run."""

    def __init__(self, device: torch.device, quick: bool = False) -> None:
        self.device = device
        self._least, self._budget = (3, 0.0) if quick else (LEAST, BUDGET)
        self._flush = torch.empty(FLUSHED, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def times(self, run: Callable[[], Any]) -> list[float]:
        """Warm up, then as many runs as fit, at least ten unless quick. What ``run`` gives is dropped."""
        for _ in range(WARM_UP):
            run()
        (once,) = self._measure(run, 1)
        return self._measure(run, max(self._least, min(MOST, int(self._budget / max(once, 1e-3)))))

    def _measure(self, run: Callable[[], Any], count: int) -> list[float]:
        if self._flush is None:
            return [_seconds(run) * 1e3 for _ in range(count)]
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        torch.cuda.synchronize()
        for start, end in marks:
            self._flush.zero_()  # also keeps the GPU busy while the run is being launched
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in marks]


def _seconds(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def rate(row: Row, work: str) -> float | None:
    """Work (bytes, flop, normals) a second, by the median time; None where a row has no time or no such work."""
    if work not in row or not row.get("milliseconds"):
        return None
    return float(row[work] / (median(row["milliseconds"]) * 1e-3))


def as_bits(t: Tensor) -> Tensor:
    """The same memory as integers."""
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def require_same_bits(name: str, result: Tensor, expected: Tensor) -> None:
    """
    Raises:
        CheckError: how many elements differ.
    """
    if result.shape != expected.shape or result.dtype != expected.dtype:
        raise CheckError(f"{name}: {result.dtype} {list(result.shape)}, not {expected.dtype} {list(expected.shape)}")
    if not torch.equal(as_bits(result), as_bits(expected)):
        count = int((as_bits(result) != as_bits(expected)).sum())
        raise CheckError(f"{name}: {count} of {result.numel()} elements differ from the reference")


def require_close(name: str, result: Tensor, expected: Tensor, tolerance: float) -> float:
    """The greatest difference relative to the greatest magnitude, both in float64.

    Raises:
        CheckError: it exceeds the tolerance, or is nan.
    """
    scale = max(float(expected.abs().max()), 1e-300)
    error = float((result.double() - expected.double()).abs().max()) / scale
    if not error <= tolerance:
        raise CheckError(f"{name}: error {error:.1e} relative to the greatest value, more than {tolerance:.0e}")
    return error


def normal(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random data: products of zeros are faster than products of numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, device=device, generator=generator).to(dtype)


def ceilings(device: torch.device, scale: str) -> Cases:
    """Cases ``copy`` and ``product <precision>``."""
    clock = Clock(device, quick=scale != "full")
    cases: dict[str, Callable[[], Measures]] = {"copy": lambda: _copy(clock, COPIED[scale])}
    for precision in PRODUCT_ERROR:
        cases[f"product {precision}"] = lambda p=precision: _product(clock, PRODUCT[scale], p)  # type: ignore[misc]
    return cases


def _copy(clock: Clock, size: int) -> Measures:
    source = normal(size // 4, device=clock.device)
    target = torch.full_like(source, torch.nan)

    def measure() -> Row:
        target.copy_(source)
        require_same_bits("copy", target, source)
        return {"milliseconds": clock.times(lambda: target.copy_(source)), "bytes": 2 * size, "checked": "all bits"}

    return {"torch": measure}


def _product(clock: Clock, n: int, precision: str) -> Measures:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (normal(n, n, device=clock.device, dtype=dtype, seed=seed) for seed in (1, 2))
    out = torch.full((n, n), torch.nan, dtype=dtype, device=clock.device)
    rows = slice(0, min(n, 64))

    def measure() -> Row:
        with _float32_products("high" if precision == "TF32" else "highest"):
            torch.mm(a, b, out=out)
            expected = a[rows].double() @ b.double()
            error = require_close(f"product {precision}", out[rows], expected, PRODUCT_ERROR[precision])
            times = clock.times(lambda: torch.mm(a, b, out=out))
        return {"milliseconds": times, "flop": 2 * n**3, "checked": f"64 rows against float64, error {error:.1e}"}

    return {"torch": measure}


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
