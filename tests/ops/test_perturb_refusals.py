"""perturb: what it refuses, and how it says so."""

import pytest
import torch

from sdkernels.ops import perturb
from tests.ops.backends import on_cuda

X = torch.zeros(2, 3, 4)
ABLATED = torch.zeros(5, 3, dtype=torch.bool)
ZERO = torch.tensor(0.0)
NOISE = {
    "sigma": torch.ones(5, 3),
    "seed": 1,
    "configurations": torch.arange(5),
    "examples": torch.arange(2),
}
OUT = torch.zeros(5, 2, 3, 4)
MAPS = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"x": X.int(), "value": ZERO.int()}, TypeError, "x is torch.int32; use one of torch.float64, "),
        ({"ablated": ABLATED.int()}, TypeError, "ablated must be torch.bool, or torch.uint8 for packed bits"),
        ({"value": ZERO.double()}, TypeError, "value torch.float32 as x; got torch.bool and torch.float64"),
        ({"x": X[:0]}, ValueError, r"x \[0, 3, 4\] is empty"),
        ({"x": X[:, :0], "ablated": ABLATED[:, :0]}, ValueError, r"x \[2, 0, 4\] is empty"),
        ({"unit_dim": 3}, ValueError, r"unit_dim=3, but x \[2, 3, 4\] is read as \[N, ...\]"),
        ({"unit_dim": 0}, ValueError, "unit_dim=0"),
        ({"unit_dim": -1}, ValueError, "unit_dim=-1"),
        ({"shared": False, "unit_dim": 2}, ValueError, r"unit_dim=2, .* is read as \[K, N, ...\]"),
        ({"x": X[0, 0]}, ValueError, r"unit_dim=1, but x \[4\]"),
        ({"ablated": ABLATED[:, :2]}, ValueError, r"ablated \[5, 2\] must be \[K, C\] with C = 3, dimension 1 of x"),
        ({"ablated": ABLATED[:0]}, ValueError, r"ablated \[0, 3\]"),
        ({"ablated": ABLATED[0]}, ValueError, r"ablated \[3\]"),
        ({"ablated": torch.zeros(5, 2, dtype=torch.uint8)}, ValueError, r"packed to \[K, ceil\(C / 8\)\] with C = 3"),
        ({"x": X[:, None], "shared": False}, ValueError, "x has 2 configurations, ablated has 5"),
        ({"value": torch.zeros(3)}, ValueError, r"value \[3\] does not broadcast to one example \[3, 4\].*\[3, 1\]"),
        ({"value": torch.zeros(2, 3, 4)}, ValueError, "does not broadcast to one example"),
        ({"scale": torch.ones(3)}, ValueError, "scale and shift are given together or not at all"),
        ({"shift": torch.ones(3)}, ValueError, "scale and shift are given together or not at all"),
        ({"scale": torch.ones(3), "shift": torch.ones(3).double()}, TypeError, "shift is torch.float64; .* it is"),
        ({"scale": torch.ones(4), "shift": torch.ones(3)}, ValueError, r"scale \[4\] on cpu must be \[3\] on cpu"),
        ({"scale": torch.ones(3), "shift": torch.ones(1)}, ValueError, r"shift \[1\] on cpu must be \[3\]"),
        ({"sigma": torch.ones(5, 3)}, ValueError, "noise needs seed, configurations and examples"),
        ({**NOISE, "examples": None}, ValueError, "noise needs seed, configurations and examples"),
        ({**NOISE, "sigma": torch.ones(5, 3).half()}, TypeError, "sigma is torch.float16; for a torch.float32 x it is"),
        ({**NOISE, "sigma": torch.ones(3)}, ValueError, r"sigma \[3\] on cpu must be \[5, 3\]"),
        ({**NOISE, "sigma": torch.full((5, 3), -1.0)}, ValueError, "sigma has negative or nan entries"),
        ({**NOISE, "sigma": torch.full((5, 3), torch.nan)}, ValueError, "sigma has negative or nan entries"),
        ({**NOISE, "seed": torch.tensor([1])}, ValueError, r"seed is an int64 tensor \[\]"),
        ({**NOISE, "site": 2**32}, ValueError, r"site=4294967296; it must lie in 0 to 2\*\*32 - 1"),
        ({**NOISE, "site": -1}, ValueError, "site=-1"),
        ({**NOISE, "examples": torch.arange(3)}, ValueError, "5 configurations and 3 examples have ids, but there are"),
        ({**NOISE, "configurations": torch.arange(4)}, ValueError, "4 configurations and 2 examples have ids"),
        ({**NOISE, "configurations": torch.arange(5).int()}, TypeError, "configurations is torch.int32; ids are int64"),
        ({**NOISE, "examples": torch.tensor([0, 2**32])}, ValueError, "examples must lie in 0 to 2"),
        ({**NOISE, "examples": torch.tensor([0, -1])}, ValueError, "examples must lie in .*; got -1 to 0"),
        ({"out": OUT[1:]}, ValueError, r"out must be torch.float32 \[5, 2, 3, 4\] on cpu; got .*\[4, 2, 3, 4\]"),
        ({"out": OUT.half()}, ValueError, r"out must be torch.float32 .*; got torch.float16"),
        ({"out": OUT[:1].expand(5, 2, 3, 4)}, ValueError, r"out with strides \[0, .*\] cannot be written"),
        ({"x": MAPS, "out": torch.zeros(5, 2, 3, 5, 5)[..., :4, :4]}, ValueError, "cannot be written; give a dense"),
        ({"x": MAPS, "out": torch.zeros(5, 2, 3, 4, 4).mT}, ValueError, "cannot be written; give a dense tensor"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_is_refused(changes, error, says):
    with pytest.raises(error, match=f"^perturb: .*{says}"):
        perturb(**{"x": X, "ablated": ABLATED, "value": ZERO, **changes})


@pytest.mark.parametrize("name", ["ablated", "value", "scale", "shift", "sigma", "configurations", "examples", "out"])
@on_cuda
def test_devices_must_agree(name):
    case = {"x": X, "ablated": ABLATED, "value": ZERO, "scale": torch.ones(3), "shift": torch.ones(3), **NOISE}
    case = {n: t.cuda() if isinstance(t, torch.Tensor) and n != name else t for n, t in case.items()}
    if name == "out":
        case["out"] = OUT
    with pytest.raises(ValueError, match="perturb: "):
        perturb(**case)


def test_the_op_itself_checks():
    wrong = torch.zeros(5, 10**6, dtype=torch.bool)
    others = (ZERO, None, None, False, None, None, None, None, 0, False, 1, True)
    with pytest.raises(ValueError, match="C = 3"):
        torch.ops.sdkernels.perturb(X, wrong, *others)
    with pytest.raises(ValueError, match="C = 3"):
        torch.ops.sdkernels.perturb_into(OUT, X, wrong, *others)
