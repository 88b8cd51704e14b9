"""rank_one: every backend against the definition, bit for bit, and against a convolution with the unit zeroed."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import rank_one
from tests.ops.backends import DTYPES, big, drawn, on_cuda
from tests.ops.clamped import clamped, on, random_case
from tests.ops.tensors import LAYOUTS, laid_out, numbers, threads
from tests.ops.tolerances import of_sums, same_bits, same_numbers
from tests.pairwise import pairwise

OP = "rank_one"

SHAPES = [  # N, C, D, positions, K
    (5, 7, 4, (), 3),
    (1, 1, 1, (), 1),
    (1, 1, 1, (1,), 1),
    (3, 6, 5, (1,), 9),
    (3, 6, 5, (7,), 9),
    (2, 3, 4, (16,), 2),
    pytest.param((40, 300, 270, (), 5), marks=big),
    pytest.param((3, 60, 70, (49,), 11), marks=big),
    pytest.param((2, 3, 4, (1031,), 2), marks=big),
]


@pytest.mark.parametrize(*pairwise(shape=SHAPES, dtype=DTYPES, affine=[False, True]), ids=str)
def test_equals_the_definition(backend, shape, dtype, affine):
    for relu, value in ((False, True), (True, False)):
        case = random_case(shape, dtype, value=value, affine=affine, relu=relu)
        y = rank_one(**on(backend, case))
        assert same_bits(y, clamped(**case))
        assert y.is_contiguous()


@drawn(100)
@given(
    st.tuples(
        *(st.integers(1, n) for n in (5, 7, 9)), st.sampled_from([(), (1,), (2,), (3,), (8,)]), st.integers(1, 6)
    ),
    st.sampled_from(DTYPES),
    *(st.booleans() for _ in range(3)),
    *(st.sampled_from(LAYOUTS) for _ in range(3)),
    st.integers(0, 1000),
)
def test_any_strides_are_read_right(backend, shape, dtype, value, affine, relu, of_z, of_a, of_weight, seed):
    case = random_case(shape, dtype, value=value, affine=affine, relu=relu, seed=seed)
    expected = clamped(**case)
    lying = {"z": of_z, "a": of_a, "weight": of_weight}
    strided = {name: laid_out(case[name].to(backend.device), layout) for name, layout in lying.items()}
    assert same_bits(rank_one(**{**on(backend, case), **strided}), expected)


def test_strided_vectors_and_units_are_read_right(backend):
    case = random_case((5, 7, 4, (3,), 6))
    expected = clamped(**case)
    for name in ("units", "value", "scale", "shift"):
        t = case[name].to(backend.device)
        case[name] = torch.stack([t, t + 1000], 1)[:, 0]
    assert same_bits(rank_one(**on(backend, case)), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_keep_their_signs_and_nan_stays(backend, dtype):
    """A value of 0 is the default, to the sign of a zero."""
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, torch.nan], dtype=dtype)
    z, a = special.repeat_interleave(6)[:, None], special.repeat(6)[:, None]
    for w in (1.0, -1.0):
        case = {"z": z, "a": a, "weight": torch.tensor([[w]], dtype=dtype), "units": torch.tensor([0])}
        for relu in (False, True):
            expected = clamped(**case, relu=relu)
            assert same_numbers(rank_one(**on(backend, case), relu=relu), expected)
            zero = torch.zeros(1, dtype=dtype, device=backend.device)
            assert same_numbers(rank_one(**on(backend, case), relu=relu, value=zero), expected)


@pytest.mark.parametrize("convolution", [True, False], ids=["convolution", "linear"])
@pytest.mark.parametrize("clamped_to", [0.0, 1.5])
def test_is_the_layer_with_the_unit_clamped(backend, convolution, clamped_to):
    """Against torch's own layer on a clamped input: what the op saves."""
    weight, bias = numbers((6, 5), torch.float64, 1), numbers([6], torch.float64, 2)
    scale, shift = numbers([6], torch.float64, 3), numbers([6], torch.float64, 4)
    x = numbers((4, 5, 3, 2) if convolution else (4, 5), torch.float64)
    rows = [1, -1, *[1] * (x.ndim - 2)]

    def layer(x: Tensor) -> Tensor:
        return F.conv2d(x, weight[..., None, None], bias) if convolution else F.linear(x, weight, bias)

    case = {"z": layer(x), "weight": weight, "a": x, "units": torch.arange(5), "scale": scale, "shift": shift}
    case |= {"value": torch.full([5], clamped_to, dtype=torch.float64), "relu": True}
    if convolution:
        case["z"], case["a"] = case["z"].flatten(2), x.flatten(2)
    y = rank_one(**on(backend, case)).cpu()
    for c in range(5):
        without = x.clone()
        without[:, c] = clamped_to
        expected = (layer(without) * scale.view(rows) + shift.view(rows)).relu()
        assert (y[c] - expected.view(y[c].shape)).abs().max() < of_sums(torch.float64) * expected.abs().max()


@pytest.mark.parametrize("shape", [(40, 30, 50, (), 20), (4, 8, 30, (49,), 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_threads_and_levels_do_not_matter(cpu_level, dtype, shape):
    case = random_case(shape, dtype)
    expected = clamped(**case)
    for count in (1, 2, 5):
        with threads(count):
            assert same_bits(rank_one(**case), expected)


def test_units_may_come_again(backend):
    case = random_case((5, 7, 4, (), 1)) | {"units": torch.tensor([3, 3, 0, 3])}
    y = rank_one(**on(backend, case))
    assert same_bits(y, clamped(**case))
    assert same_bits(y[0], y[3])


class TestRefusals:
    case = random_case((5, 7, 4, (3,), 6))
    flat = random_case((5, 7, 4, (), 6))

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"z": case["z"].int()}, TypeError, "z, weight, a and value share one of .*; got z torch.int32"),
            ({"weight": case["weight"].double()}, TypeError, "share one of .*weight torch.float64"),
            ({"a": case["a"].half()}, TypeError, "share one of .*a torch.float16"),
            ({"value": case["value"].half()}, TypeError, "share one of .*value torch.float16"),
            ({"units": case["units"].int()}, TypeError, "units are int64, not torch.int32"),
            ({"z": case["z"][:0], "a": case["a"][:0]}, ValueError, "none of them empty"),
            ({"units": case["units"][:0]}, ValueError, "none of them empty"),
            ({"z": case["z"][..., :0], "a": case["a"][..., :0]}, ValueError, "none of them empty"),
            ({"z": case["z"][..., None]}, ValueError, r"z is \[N, D\] or \[N, D, S\].*'z': \[5, 4, 3, 1\]"),
            ({"a": flat["a"]}, ValueError, r"a \[N, C\] or \[N, C, S\] like z"),
            ({"weight": case["weight"][0]}, ValueError, r"weight \[D, C\].*'weight': \[7\]"),
            ({"units": case["units"][None]}, ValueError, r"units \[K\]"),
            ({"z": case["z"][:, :3]}, ValueError, r"with weight \[D, C\] = \[4, 7\], z and a do not fit"),
            ({"a": case["a"][:, :6]}, ValueError, r"with weight \[D, C\] = \[4, 7\], z and a do not fit"),
            ({"a": case["a"][..., :2]}, ValueError, "z and a do not fit"),
            ({"a": case["a"][:4]}, ValueError, "z and a do not fit"),
            ({"scale": None}, ValueError, "scale and shift are given together or not at all"),
            ({"shift": None}, ValueError, "scale and shift are given together or not at all"),
            ({"value": torch.zeros(6)}, ValueError, r"value is torch.float32 \[7\]; got torch.float32 \[6\]"),
            ({"scale": torch.zeros(5)}, ValueError, r"scale is torch.float32 \[4\]; got torch.float32 \[5\]"),
            ({"shift": torch.zeros(4).double()}, ValueError, r"shift is torch.float32 \[4\]; got torch.float64 \[4\]"),
            ({"units": case["units"] * 0 + 7}, ValueError, "units must lie in 0 to 6; got 7 to 7"),
            ({"units": case["units"] - 7}, ValueError, "units must lie in 0 to 6; got -"),
        ],
        ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
    )
    def test_is_refused(self, changes, error, says):
        with pytest.raises(error, match=f"^rank_one: .*{says}"):
            rank_one(**{**self.case, **changes})

    @pytest.mark.parametrize("name", ["z", "weight", "a", "value", "scale", "shift"])
    def test_gradients_are_refused(self, native, name):
        case = {**self.case, name: self.case[name].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=r"rank_one has no gradient; call it under torch\.no_grad"):
            rank_one(**case)
        with torch.no_grad():
            rank_one(**case)

    @pytest.mark.parametrize("name", ["weight", "a", "units", "value", "scale", "shift"])
    @on_cuda
    def test_devices_must_agree(self, name):
        moved = {n: t.cuda() if isinstance(t, Tensor) and n != name else t for n, t in self.case.items()}
        with pytest.raises(ValueError, match="rank_one: every tensor must be on cuda"):
            rank_one(**moved)

    def test_the_op_itself_checks(self):
        case = {**self.case, "units": self.case["units"] + 10**12}
        order = ("z", "weight", "a", "units", "value", "scale", "shift", "relu")
        with pytest.raises(ValueError, match="units must lie in 0 to 6"):
            torch.ops.sdkernels.rank_one(*(case[name] for name in order))
