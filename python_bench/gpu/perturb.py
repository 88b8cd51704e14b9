"""Cases of ``perturb`` and of the random stream, with what users write in plain torch."""

from collections.abc import Callable

import torch
from torch import Tensor

from python_bench.gpu.case import TORCH, Ablation, Case, require, runs
from python_bench.gpu.clock import Cases, Clock, Measures, require_close, require_same_bits
from sdkernels.ops import perturb, random_stream
from sdkernels.ops.layout import computed_in, empty_like_examples
from sdkernels.ops.perturb import IMPLEMENTATIONS, reference
from sdkernels.ops.random_stream import IMPLEMENTATIONS as STREAM_IMPLEMENTATIONS
from sdkernels.ops.random_stream import KINDS
from sdkernels.ops.random_stream import reference as draw

MAPS = {"full": (64, 256, 256, 16, 16), "quick": (8, 32, 256, 16, 16), "tiny": (3, 4, 5, 2, 3)}  # K, N, C, H, W
DRAWS = {"full": (16, 1024, 65536), "quick": (4, 64, 65536), "tiny": (2, 3, 7)}  # K, N, elements

COPY_TARGET = ">= 85% of copy"
NOISE_TARGET = ">= 5 x torch"
VARIANTS: dict[str, tuple[torch.dtype, dict[str, bool]]] = {
    "clamp, float32": (torch.float32, {}),
    "clamp, bfloat16": (torch.bfloat16, {}),
    "affine + ReLU + clamp, float32": (torch.float32, {"affine": True}),
    "noise, float32": (torch.float32, {"clamp": False, "noise": True}),
    "noise, bfloat16": (torch.bfloat16, {"clamp": False, "noise": True}),
    "noise, float32, channels-last": (torch.float32, {"clamp": False, "noise": True, "channels_last": True}),
    "affine + ReLU + clamp + noise, float32": (torch.float32, {"affine": True, "noise": True}),
}


def perturb_cases(device: torch.device, scale: str, clock: Clock) -> Cases:
    """``perturb`` in its variants, and the random stream by itself."""
    cases: dict[str, Callable[[], Measures]] = {}
    for name, (dtype, options) in VARIANTS.items():
        cases[f"perturb: {name}"] = lambda dtype=dtype, options=options: (  # type: ignore[misc]
            perturb_case(Ablation.random(MAPS[scale], device, dtype, **options)).measures(clock)
        )
    cases["random_stream: normals"] = lambda: stream_case(DRAWS[scale], device).measures(clock)
    return cases


def perturb_case(ablation: Ablation) -> Case:
    """The op, written into a tensor that is there."""
    given = ablation.given
    x, sigma = given["x"], given["sigma"]
    k, n = len(given["ablated"]), len(x)
    out = empty_like_examples(x, [k, n], given["unit_dim"], 1)
    run = runs("perturb", IMPLEMENTATIONS, (out, *ablation.arguments()))
    run[TORCH] = lambda: torch_perturb(out, ablation)

    def check(name: str) -> str:
        out.fill_(torch.nan)
        run[name]()
        expected = torch.empty_like(out[:1])
        for i in range(k):
            quiet = name == TORCH and sigma is not None
            here = Ablation({**ablation.only(i).given, "sigma": None}) if quiet else ablation.only(i)
            reference(expected, *here.arguments())
            if quiet:  # torch's own normals, so only their spread is looked at
                spread = ((out[i] - expected[0]).double() / sigma[i, :, None, None]).std()
                error = abs(float(spread) - 1)
                require(
                    error < 0.02 + 5 * x.numel() ** -0.5, f"configuration {i}: the noise's spread is off by {error}"
                )
            elif name == TORCH:
                require_close(f"configuration {i}", out[i], expected[0], 1e-2)
            else:
                require_same_bits(f"configuration {i}", out[i], expected[0])
        if name == TORCH:
            return "spread of the noise" if sigma is not None else "values"
        return "all bits"

    def call() -> Tensor:
        options = {name: option for name, option in given.items() if name not in ("x", "ablated", "value")}
        return perturb(x, given["ablated"], given["value"], **options, out=out)

    return Case(
        f"{k} configurations of {str(x.dtype).removeprefix('torch.')} {list(x.shape)}",
        run,
        call,
        check,
        bytes=x.nbytes + out.nbytes,
        normals=0 if sigma is None else out.numel(),
        target=COPY_TARGET if sigma is None else NOISE_TARGET,
    )


def torch_perturb(out: Tensor, ablation: Ablation) -> None:
    """What a careful user writes: nothing done twice, nothing allocated that need not be."""
    given = ablation.given
    base, sigma = given["x"], given["sigma"]
    if given["scale"] is not None:
        scale, shift = (given[name].view(-1, 1, 1) for name in ("scale", "shift"))
        base = torch.addcmul(shift, base, scale).relu_().to(base.dtype)
    mask = given["ablated"][:, None, :, None, None]
    if sigma is None:
        torch.where(mask, given["value"], base, out=out)
        return
    out.normal_().mul_(sigma.to(out.dtype)[:, None, :, None, None])
    # without clamps (noise, no affine map) the sum needs no select
    out.add_(base if given["scale"] is None else torch.where(mask, given["value"], base))


def stream_case(shape: tuple[int, int, int], device: torch.device) -> Case:
    """Normals, stored."""
    k, n, elements = shape
    configurations, examples = torch.arange(k, device=device), torch.arange(n, device=device)
    seed = torch.tensor(2**40 + 11, device=device)
    kind = KINDS.index("normal")
    run = runs("random_stream", STREAM_IMPLEMENTATIONS, (examples, configurations, seed, kind, elements, 0))
    run[TORCH] = lambda: torch.randn(shape, dtype=computed_in(torch.float32), device=device)

    def check(name: str) -> str:
        result = run[name]()
        require(result.shape == shape, f"its shape is {list(result.shape)}")
        if name == TORCH:
            return "shape"
        for i in range(k):
            expected = draw(examples, configurations[i : i + 1], seed, kind, elements, 0)
            require_same_bits(f"configuration {i}", result[i : i + 1], expected)
        return "all bits"

    return Case(
        f"{k} x {n} x {elements} float32",
        run,
        lambda: random_stream("normal", seed, configurations, examples, elements),
        check,
        bytes=4 * k * n * elements,
        normals=k * n * elements,
        target="",
    )
