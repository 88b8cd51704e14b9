"""The arithmetic that torch itself reaches on this machine: no plan can need less time than its work over this."""

from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

PRODUCT = "torch.mm GFLOP/s"
CONVOLUTION = "3x3 convolution GFLOP/s"
TRIES = 5


def peaks(device: torch.device, small: bool = False) -> dict[str, float]:
    """Best of five each: a float32 product of 2048^3, a convolution of 32 x 256 maps of 16 x 16; both in GFLOP/s."""
    n, (batch, channels, side) = (64, (2, 8, 4)) if small else (2048, (32, 256, 16))
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    a, b = normal(n, n), normal(n, n)
    maps, weight = (
        t.contiguous(memory_format=torch.channels_last)
        for t in (normal(batch, channels, side, side), normal(channels, channels, 3, 3))
    )
    flop = 2 * batch * side * side * channels * channels * 9
    with torch.no_grad():
        product = 2 * n**3 / _least_seconds(lambda: torch.mm(a, b), device)
        convolution = flop / _least_seconds(lambda: F.conv2d(maps, weight, padding=1), device)
    return {PRODUCT: round(product / 1e9, 1), CONVOLUTION: round(convolution / 1e9, 1)}


def _least_seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    times = []
    for _ in range(TRIES + 1):  # the first only warms up
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return min(times[1:])
