"""Are the random stream and ``perturb`` the same, bit for bit, in C++, CUDA, Triton and pure torch?"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from python_bench.gpu.case import Ablation, backends
from python_bench.gpu.clock import Cases, Measures, Row, as_bits
from sdkernels.ops.backend import interpreted
from sdkernels.ops.layout import empty_like_examples
from sdkernels.ops.perturb import IMPLEMENTATIONS as PERTURB
from sdkernels.ops.random_stream import IMPLEMENTATIONS as STREAM
from sdkernels.ops.random_stream import KINDS

CPU = torch.device("cpu")
NAMES = {
    ("native", "cpu"): "C++",
    ("native", "cuda"): "CUDA C++",
    ("triton", "cpu"): "Triton's interpreter",
    ("triton", "cuda"): "Triton",
    ("reference", "cpu"): "pure torch on the CPU",
    ("reference", "cuda"): "pure torch on the GPU",
}

# Seeds, first configuration, first example, site: of the four words of a counter each reaches its ends.
DRAWS = [
    (0, 0, 0, 0),
    (-1, 2**32 - 64, 2**32 - 512, 2**32 - 1),
    (0x123456789ABCDEF, 2**31 - 3, 2**31 - 5, 2**31),
    (-(2**63), 7, 60_000, 12),
]
STREAM_SHAPE = {"full": (8, 67, 8219), "quick": (8, 67, 1027), "tiny": (2, 3, 7)}  # K, N, elements, a draw

# K, N, C, H, W: whole packs, and odd sizes in every dimension.
MAPS = {
    "full": [(4, 8, 64, 16, 16), (3, 9, 67, 15, 17)],
    "quick": [(4, 8, 64, 16, 16), (3, 9, 67, 15, 17)],
    "tiny": [(2, 3, 5, 3, 2)],
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Triton's interpreter computes bfloat16 wrongly; float64 takes it long.
INTERPRETED_DTYPES = (torch.float32, torch.float16)

_BITS_SET = torch.tensor([bin(byte).count("1") for byte in range(256)])


def bits_cases(device: torch.device, scale: str) -> Cases:
    """The kinds of the stream, then ``perturb`` in every dtype and both memory layouts.

    Every case compares with its first contestant: C++ where it was built, else pure torch on the CPU.
    """
    cases: dict[str, Callable[[], Measures]] = {}
    for kind in KINDS:
        cases[f"random_stream: {kind}"] = lambda kind=kind: _compare(  # type: ignore[misc]
            "random_stream", device, lambda name, where: _draw(kind, STREAM_SHAPE[scale], name, where)
        )
    for dtype in INTERPRETED_DTYPES if interpreted() else DTYPES:
        for channels_last in (False, True):
            layout = "channels-last" if channels_last else "contiguous"
            cases[f"perturb: {str(dtype).removeprefix('torch.')}, {layout}"] = lambda d=dtype, last=channels_last: (  # type: ignore[misc]
                _compare("perturb", device, lambda name, where: _perturb(MAPS[scale], d, last, name, where))
            )
    return cases


def contestants(op: str, device: torch.device) -> dict[str, tuple[str, torch.device]]:
    """Names with backend and device; the first is what the others are compared with."""
    here = [("native", CPU)] if "native" in backends(op, CPU) else []
    here += [(name, device) for name in backends(op, device) if (name, device) not in here]
    here += [("reference", CPU)] + [("reference", device)] * (device != CPU)
    return {NAMES[name, where.type]: (name, where) for name, where in here}


def _compare(op: str, device: torch.device, compute: Callable[[str, torch.device], list[Tensor]]) -> Measures:
    all_of_them = contestants(op, device)
    base, first = next(iter(all_of_them.items()))

    @cache
    def expected() -> list[Tensor]:
        return compute(*first)

    def measure(name: str, where: torch.device) -> Row:
        results = [t.cpu() for t in compute(name, where)]
        values = sum(t.numel() for t in results)
        bits = sum(differing_bits(a, b) for a, b in zip(results, expected(), strict=True))
        elements = sum(int((as_bits(a) != as_bits(b)).sum()) for a, b in zip(results, expected(), strict=True))
        return {"against": base, "values": values, "differing_values": elements, "differing_bits": bits}

    return {
        label: lambda who=who: measure(*who)  # type: ignore[misc]
        for label, who in all_of_them.items()
        if label != base
    }


def differing_bits(a: Tensor, b: Tensor) -> int:
    """How many bits of two tensors of one shape and dtype differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)} are not alike")
    a, b = as_bits(a).flatten(), as_bits(b).flatten()
    other = (a ^ b)[a != b]
    return int(_BITS_SET[other.contiguous().view(torch.uint8).long()].sum())


def _draw(kind: str, shape: tuple[int, int, int], name: str, device: torch.device) -> list[Tensor]:
    k, n, elements = shape
    results = []
    for seed, configuration, example, site in DRAWS:
        configurations = torch.arange(k, device=device) + configuration
        examples = torch.arange(n, device=device) + example
        seed_given = torch.tensor(seed, device=device)
        results.append(STREAM[name](examples, configurations, seed_given, KINDS.index(kind), elements, site))
    return results


def _perturb(
    shapes: list[tuple[int, int, int, int, int]],
    dtype: torch.dtype,
    channels_last: bool,
    name: str,
    device: torch.device,
) -> list[Tensor]:
    results = []
    for shape in shapes:
        for per_map in (False, True):
            for packed in (False, True):
                # drawn on the CPU: generators of other devices give other numbers
                ablation = Ablation.random(
                    shape,
                    CPU,
                    dtype,
                    affine=True,
                    noise=True,
                    channels_last=channels_last,
                    packed=packed,
                    per_map=per_map,
                )
                _make_hard(ablation)
                here = ablation.to(device)
                out = empty_like_examples(here.given["x"], list(shape[:2]), 1, 1).fill_(torch.nan)
                PERTURB[name](out, *here.arguments())
                results.append(out)
    return results


def _make_hard(ablation: Ablation) -> None:
    """Some zeros of both signs, subnormal and great numbers, infinities, and units without noise."""
    x, dtype = ablation.given["x"], ablation.given["x"].dtype
    limits = torch.finfo(dtype)
    special = [0.0, -0.0, limits.tiny / 2, -limits.tiny / 4, limits.max / 4, torch.inf]
    place = torch.arange(x.numel()).view(x.shape) % 101
    for i, number in enumerate(special):
        x[place == i] = number
    ablation.given["sigma"][:, ::5] = 0
    ablation.given["scale"][1::7] = 1
    ablation.given["shift"][1::7] = 0
