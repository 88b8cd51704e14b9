"""Every Triton kernel compiles to machine code as its launcher calls it, without spilling more than one value.

The launchers run on CPU tensors; where they would start a kernel, it is compiled for a GPU that need not be there.
"""

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

import sdkernels.ops.triton
from sdkernels.ops.class_moments import ClassMoments
from sdkernels.ops.layout import computed_in

pytestmark = pytest.mark.compile

ARCHITECTURES = (80, 90)
STACK = 16  # bytes: Triton 3.7.1 keeps one or two values of some kernels there, 3.6.0 none; nothing is spilled
STREAM_KERNELS = ("random_stream_kernel", "perturb_kernel", "perturb_units_kernel")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def launcher(op: str, name: str | None = None) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"sdkernels.ops.triton.{op}"), name or op)  # type: ignore[no-any-return]


def ids(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def activation(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    x = torch.zeros(shape, dtype=dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def random_stream(kind: int, elements: int = 4096) -> None:
    launcher("random_stream")(ids(64), ids(4), torch.tensor(0), kind, elements, 3)


def perturb(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    noise: str | None = None,
    *,
    channels_last: bool = False,
    full: bool = False,
    unit_dim: int = 1,
) -> None:
    """``full``: with an affine map, ReLU, a value an element and packed masks."""
    x = activation(shape, dtype, channels_last)
    K, C, wide = 8, shape[unit_dim], computed_in(dtype)
    out = torch.stack([x] * K)
    affine = torch.zeros(C, dtype=wide) if full else None
    mask = torch.zeros((K, -(-C // 8)), dtype=torch.uint8) if full else torch.zeros((K, C), dtype=torch.bool)
    value = torch.zeros(shape[1:] if full else (), dtype=dtype)
    drawn = (torch.zeros((K, C), dtype=wide), torch.tensor(0), ids(K), ids(shape[0])) if noise else (None,) * 4
    launcher("perturb")(out, x, mask, value, affine, affine, full, *drawn, 3, noise == "map", unit_dim, True)


def class_moments(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False, unit_dim: int = 1, means: bool = False
) -> None:
    state = ClassMoments.empty(10, shape[unit_dim]).tensors()
    out = torch.zeros(shape[0], shape[unit_dim], dtype=F64) if means else None
    launcher("class_moments")(activation(shape, dtype, channels_last), ids(shape[0]), *state, out, unit_dim)


def class_histogram(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> None:
    edges = torch.zeros((shape[1], 16), dtype=F64)
    counts = torch.zeros((10, shape[1], 18), dtype=torch.int64)
    launcher("class_histogram")(activation(shape, dtype, channels_last), ids(shape[0]), edges, counts, 1)


SCORES: dict[str, tuple[bool, int, bool, float]] = {
    "counts": (False, 0, False, -1.0),
    "loss": (True, 0, False, -1.0),
    "everything": (True, 5, True, 1e-4),
}


def score(classes: int, dtype: torch.dtype, options: str, transposed: bool = False) -> None:
    shape = (8, classes, 1024) if transposed else (8, 1024, classes)
    logits = torch.zeros(shape, dtype=dtype)
    logits = logits.transpose(1, 2) if transposed else logits
    launcher("score")(logits, ids(1024), ids(1024) if options == "everything" else None, *SCORES[options])


def nested_linear(outputs: int, dtype: torch.dtype, head: bool = False, options: str | None = None) -> None:
    N, C, T, L = 256, 64, 17, 10

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    heads = (zeros(L, outputs), zeros(1, L)) if head else (None, None)
    arguments = (zeros(N, C), torch.arange(C), zeros(outputs, C), zeros(1, outputs), *heads, ids(T), ids(T), True)
    if options is None:
        launcher("nested_linear")(*arguments)
    else:
        prediction = ids(N) if options == "everything" else None
        launcher("nested_linear", "nested_linear_score")(*arguments, ids(N), prediction, *SCORES[options])


def rank_one(shape: tuple[int, ...], dtype: torch.dtype, full: bool = False) -> None:
    z = torch.zeros(shape, dtype=dtype)
    a = torch.zeros((shape[0], 64, *shape[2:]), dtype=dtype)
    affine = torch.zeros(shape[1], dtype=computed_in(dtype)) if full else None
    value = torch.zeros(64, dtype=dtype) if full else None
    launcher("rank_one")(z, torch.zeros((shape[1], 64), dtype=dtype), a, ids(64), value, affine, affine, full)


def rank_one_head(
    classes: int, dtype: torch.dtype, full: bool = False, shape: tuple[int, int, int] = (256, 512, 64)
) -> None:
    """``full``: with an affine map, ReLU, values, a bias and intact logits."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    N, D, C = shape
    affine = torch.zeros(D, dtype=computed_in(dtype)) if full else None
    value, head_bias, intact = (zeros(C), zeros(classes), zeros(N, classes)) if full else (None, None, None)
    head = zeros(classes, D)
    launcher("rank_one_head")(
        zeros(N, D), zeros(D, C), zeros(N, C), ids(C), value, affine, affine, full, head, head_bias, intact
    )


FEATURES, TOKENS = (512, 512), (32, 128, 256)
MAPS, ODD_MAPS, LARGE_MAPS = (32, 128, 16, 16), (32, 128, 7, 7), (8, 64, 56, 56)

CASES: dict[str, tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]] = {}


def case(variant: str, launch: Callable[..., None], *arguments: Any, **options: Any) -> None:
    CASES[f"{launch.__name__}: {variant}"] = (launch, arguments, options)


case("bits", random_stream, 0)
case("uniform", random_stream, 1)
case("normal", random_stream, 2)
case("normal, odd", random_stream, 2, 4097)
for name, dtype in (("float64", F64), ("float32", F32), ("bfloat16", BF16), ("float16", F16)):
    case(f"features {name}, noise", perturb, FEATURES, dtype, "element")
    case(f"maps {name}, everything", perturb, MAPS, dtype, "element", full=True)
    case(f"channels-last {name}, noise", perturb, MAPS, dtype, "element", channels_last=True)
    case(f"channels-last {name}, everything a map", perturb, MAPS, dtype, "map", channels_last=True, full=True)
    case(f"features {name}", class_moments, FEATURES, dtype)
    case(f"maps {name}", class_moments, MAPS, dtype)
    case(f"large maps {name}", class_moments, LARGE_MAPS, dtype)
    case(f"channels-last {name}", class_moments, MAPS, dtype, True)
    case(f"features {name}, means", class_moments, FEATURES, dtype, means=True)
    case(f"maps {name}, means", class_moments, MAPS, dtype, means=True)
    case(f"large maps {name}, means", class_moments, LARGE_MAPS, dtype, means=True)
    case(f"channels-last {name}, means", class_moments, MAPS, dtype, True, means=True)
    case(f"maps {name}", class_histogram, MAPS, dtype)
    case(f"10 classes {name}, everything", score, 10, dtype, "everything")
    case(f"1000 classes {name}, everything", score, 1000, dtype, "everything")
    case(f"512 outputs {name}", nested_linear, 512, dtype)
    case(f"512 outputs {name}, head", nested_linear, 512, dtype, head=True)
    case(f"512 outputs {name}, score everything", nested_linear, 512, dtype, head=True, options="everything")
    case(f"maps {name}, everything", rank_one, (64, 128, 49), dtype, True)
    case(f"10 classes {name}, everything", rank_one_head, 10, dtype, True)
    case(f"1000 classes {name}, everything", rank_one_head, 1000, dtype, True)
for name, dtype in (("float32", F32), ("bfloat16", BF16)):
    case(f"features {name}", perturb, FEATURES, dtype)
    case(f"maps {name}", perturb, MAPS, dtype)
    case(f"odd maps {name}, everything", perturb, ODD_MAPS, dtype, "element", full=True)
    case(f"maps {name}, everything a map", perturb, MAPS, dtype, "map", full=True)
    case(f"tokens {name}, noise", perturb, TOKENS, dtype, "element", unit_dim=2)
    case(f"tokens {name}, a unit", perturb, TOKENS, dtype, "map", unit_dim=2)
    case(f"channels-last {name}", perturb, MAPS, dtype, channels_last=True)
    case(f"odd channels-last {name}, everything", perturb, ODD_MAPS, dtype, "element", channels_last=True, full=True)
    case(f"tokens {name}", class_moments, TOKENS, dtype, unit_dim=2)
    case(f"features {name}", class_histogram, FEATURES, dtype)
    case(f"channels-last {name}", class_histogram, MAPS, dtype, True)
    case(f"1000 classes {name}, transposed", score, 1000, dtype, "everything", transposed=True)
    case(f"features {name}", rank_one, (256, 512), dtype)
    case(f"10 classes {name}", rank_one_head, 10, dtype)
case("10 classes float32, counts", score, 10, F32, "counts")
case("10 classes float32, loss", score, 10, F32, "loss")
case("50257 classes float32, loss", score, 50257, F32, "loss")
for outputs in (10, 64, 128, 1024, 2048, 4096):
    case(f"{outputs} outputs float32, score counts", nested_linear, outputs, F32, head=True, options="counts")
    case(f"{outputs} outputs float64, score everything", nested_linear, outputs, F64, head=True, options="everything")


class Recorder:
    """Stands in for launches: says what would be started, and compiles it if a target is given."""

    def __init__(self, target: GPUTarget | None) -> None:
        self.target = target
        self.launched: list[tuple[JITFunction, Any]] = []

    def run(self, kernel: JITFunction, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        assert not warmup
        assert all(isinstance(n, int) and n > 0 for n in grid)
        assert all(n < 2**16 for n in grid[1:])
        compiled = None
        if self.target is not None:
            backend = make_backend(self.target)
            options["debug"] = False
            bound, specialization, _ = create_function_from_signature(kernel.signature, kernel.params, backend)(
                *arguments, **options
            )
            parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, None)
            source = ASTSource(kernel, signature, constants, attributes)
            compiled = triton.compile(source, target=self.target, options=parsed.__dict__)
        self.launched.append((kernel, compiled))


def launch(name: str, arch: int | None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[JITFunction, Any]]:
    recorder = Recorder(None if arch is None else GPUTarget("cuda", arch, 32))
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *a, **o: recorder.run(kernel, *a, **o))
    function, arguments, options = CASES[name]
    function(*arguments, **options)
    assert recorder.launched
    return recorder.launched


def usage(cubin: bytes) -> dict[str, int]:
    """What ptxas gave the kernel: registers (REG), bytes of STACK, LOCAL and SHARED memory, ..."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", text.split("Function")[-1])}
    assert {"REG", "STACK", "LOCAL"} <= set(found), text
    return found


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled once a test run, not once a machine: a stale cubin would prove nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("arch", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", CASES)
def test_nothing_spills(name: str, arch: int, monkeypatch: pytest.MonkeyPatch, resources: Any) -> None:
    failures = []
    for kernel, compiled in launch(name, arch, monkeypatch):
        needs = usage(compiled.asm["cubin"])
        row = {
            "registers": needs["REG"],
            "shared": compiled.metadata.shared,
            "stack": needs["STACK"],
            "spills": needs["LOCAL"],
        }
        resources.add(source="triton", kernel=kernel.__name__, variant=name.split(": ")[1], arch=f"sm_{arch}", **row)
        if needs["STACK"] > STACK or needs["LOCAL"]:
            failures.append((kernel.__name__, row))
        if kernel.__name__ in STREAM_KERNELS:
            ptx = compiled.asm["ptx"]
            assert "sqrt.rn.f32" in ptx or "nois" not in name
            inexact = re.findall(r"^.*(?:\.approx|\.ftz|\bfma\.|\bmad\.rn).*$", ptx, re.MULTILINE)
            assert not inexact, f"{kernel.__name__}: not rounded as the reference does: {inexact[:3]}"
    assert not failures


def test_every_kernel_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = set()
    for module in pkgutil.iter_modules(sdkernels.ops.triton.__path__, "sdkernels.ops.triton."):
        own = vars(importlib.import_module(module.name)).values()
        kernels |= {f.__name__ for f in own if isinstance(f, JITFunction) and f.__name__.endswith("_kernel")}
    launched = {kernel.__name__ for name in CASES for kernel, _ in launch(name, None, monkeypatch)}
    assert launched == kernels
