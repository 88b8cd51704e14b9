"""3x3 convolutions by 36 products: every backend against torch's own convolution in float64, at any shape."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdkernels.ops import winograd_input, winograd_output, winograd_weight
from tests.ops.backends import Backend, on_cuda
from tests.ops.tensors import LAYOUTS, laid_out, numbers, threads
from tests.ops.tolerances import same_bits, same_numbers, winograd_of

OP = "winograd_input"  # and winograd_output, which has the same backends

MAPS = [(1, 1), (2, 2), (3, 5), (4, 4), (7, 9), (8, 8)]
UNITS = [(1, 3), (3, 1), (16, 63), (63, 16), (64, 32)]  # C, D
FLOATS = [torch.float64, torch.float32]


def convolution_case(
    size: tuple[int, int] = (7, 9), units: tuple[int, int] = (16, 63), dtype: torch.dtype = torch.float32, n: int = 3
) -> dict[str, Tensor]:
    inputs, outputs = units
    return {
        "x": numbers((n, inputs, *size), dtype),
        "weight": numbers((outputs, inputs, 3, 3), dtype, seed=1) / inputs**0.5,
        "bias": numbers([outputs], dtype, seed=2),
        "add": numbers((n, outputs, *size), dtype, seed=3),
    }


def convolved(x: Tensor, u: Tensor, bias: Tensor | None, relu: bool, add: Tensor | None) -> Tensor:
    return winograd_output(winograd_input(x, relu=relu) @ u, bias, *x.shape[2:], relu=relu, add=add)


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, add: Tensor | None) -> Tensor:
    x, weight, bias, add = (t if t is None else t.double() for t in (x, weight, bias, add))
    y = F.conv2d(x.relu() if relu else x, weight, bias, padding=1)
    y = y if add is None else y + add
    return y.relu() if relu else y


def assert_convolved(y: Tensor, expected: Tensor) -> None:
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.shape == expected.shape
    assert (y.cpu() - expected).abs().max() <= winograd_of(y.dtype) * expected.abs().max()


def on(backend: Backend, case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to(backend.device) for name, t in case.items()}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("units", UNITS, ids=str)
@pytest.mark.parametrize("size", MAPS, ids=str)
def test_equals_the_convolution(backend, size, units, dtype):
    case = convolution_case(size, units, dtype)
    x, weight, bias, add = on(backend, case).values()
    for relu, own_bias, own_add in ((False, None, None), (True, bias, None), (False, None, add), (True, bias, add)):
        y = convolved(x, winograd_weight(weight), own_bias, relu, own_add)
        given = [t if t is None else t.cpu() for t in (own_bias, own_add)]
        assert_convolved(y, definition(case["x"], case["weight"], given[0], relu, given[1]))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_each_transform_equals_its_matrices(backend, dtype):
    """Written out with the matrices of the interpolation, place by place."""
    a, b = 5 / 8, 3 / 2
    rows = [
        [a * a * b * b, 0, -a * a - b * b, 0, 1, 0],
        [0, -a * b * b, -b * b, a, 1, 0],
        [0, a * b * b, -b * b, -a, 1, 0],
    ]
    rows += [[0, -a * a * b, -a * a, b, 1, 0], [0, a * a * b, -a * a, -b, 1, 0]]
    inward = torch.tensor([*rows, [0, a * a * b * b, 0, -a * a - b * b, 0, 1]], dtype=torch.float64)
    points = torch.tensor([0, a, -a, b, -b], dtype=torch.float64)
    outward = torch.cat([points.pow(torch.arange(4)[:, None]), torch.eye(4, dtype=torch.float64)[:, 3:]], 1)
    x, m = numbers((2, 5, 7, 9), dtype), numbers((36, 2 * 2 * 3, 5), dtype, seed=1)
    padded = F.pad(x.double(), (1, 4, 1, 2))
    v, y = winograd_input(x.to(backend.device)).cpu(), winograd_output(m.to(backend.device), None, 7, 9).cpu()
    tolerance = winograd_of(dtype)
    for t, (n, i, j) in enumerate((n, i, j) for n in range(2) for i in range(2) for j in range(3)):
        patch = padded[n, :, 4 * i : 4 * i + 6, 4 * j : 4 * j + 6]
        expected = (inward @ patch @ inward.t()).permute(1, 2, 0).reshape(36, 5)
        assert torch.allclose(v[:, t].double(), expected, rtol=0, atol=20 * tolerance)
        maps = outward @ m[:, t].double().t().reshape(5, 6, 6) @ outward.t()
        found = y[n, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        assert torch.allclose(found.double(), maps[:, : found.shape[1], : found.shape[2]], rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_strides_are_read_right(backend, dtype, layout):
    case = convolution_case(dtype=dtype)
    plain = on(backend, case)
    lying = {name: laid_out(plain[name], layout) for name in ("x", "add", "weight")}
    lying["bias"] = torch.stack([plain["bias"], torch.full_like(plain["bias"], torch.nan)], 1)[:, 0]
    assert same_bits(winograd_weight(lying["weight"]), winograd_weight(plain["weight"]))
    v = winograd_input(lying["x"], relu=True)
    assert v.is_contiguous()
    assert same_bits(v, winograd_input(plain["x"], relu=True))
    m = v @ winograd_weight(plain["weight"])
    for products in (m, laid_out(m, layout, unit_dim=2)):
        y = winograd_output(products, lying["bias"], 7, 9, relu=True, add=lying["add"])
        assert_convolved(y, definition(**case, relu=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_slices_of_weights_are_the_layers_of_living_units(backend, dtype):
    case = convolution_case(dtype=dtype)
    x, weight, bias, _ = on(backend, case).values()
    u = winograd_weight(weight)
    assert u.is_contiguous()
    for c, d in ((16, 63), (8, 32), (7, 5), (1, 1)):
        living = u[:, :c, :d]
        assert living.stride() == (16 * 63, 63, 1)
        y = convolved(x[:, :c], living, bias[:d], True, None)
        assert_convolved(y, definition(case["x"][:, :c], case["weight"][:d, :c], case["bias"][:d], True, None))


@pytest.mark.parametrize("empty", ["examples", "inputs", "outputs"])
def test_nothing_in_nothing_out(backend, empty):
    units = {"inputs": (0, 5), "outputs": (5, 0)}.get(empty, (5, 4))
    case = on(
        backend,
        convolution_case((5, 6), units, n=0 if empty == "examples" else 2) | {"weight": torch.ones(*units[::-1], 3, 3)},
    )
    y = convolved(case["x"], winograd_weight(case["weight"]), case["bias"], True, None)
    assert y.shape == (len(case["x"]), units[1], 5, 6)
    assert same_bits(y, case["bias"].relu()[:, None, None].expand(y.shape))


def test_relu_keeps_nan(backend):
    """In the whole tile that reads it, and nowhere else."""
    x = numbers((1, 2, 8, 8)).to(backend.device)
    x[0, 1, 1, 1] = torch.nan
    v = winograd_input(x, relu=True)
    assert v[:, 0, 1].isnan().any()
    assert not v[:, 1:].isnan().any()
    assert not v[:, :, 0].isnan().any()
    m = numbers((36, 4, 2)).to(backend.device)
    m[:, 0, 1] = torch.nan
    nan = winograd_output(m, None, 8, 8, relu=True).isnan()
    assert nan[0, 1, :4, :4].all()
    assert nan.sum() == 16


def test_infinity_is_rectified_and_not_multiplied(backend):
    x = torch.full((1, 1, 4, 4), -torch.inf, device=backend.device)
    assert same_numbers(winograd_input(x, relu=True), torch.zeros(36, 1, 1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("units", [(16, 63), (64, 3)], ids=str)
@pytest.mark.parametrize("size", [(3, 5), (8, 8)], ids=str)
def test_every_number_is_written(cpu_level, monkeypatch, size, units, dtype):
    """Outputs are not zeroed before: here they start as nan."""
    empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **o: empty(*a, **o).fill_(torch.nan))
    x, weight, bias, add = convolution_case(size, units, dtype).values()
    v = winograd_input(x)
    assert v.isfinite().all()
    assert_convolved(
        winograd_output(v @ winograd_weight(weight), bias, *size, add=add), definition(x, weight, bias, False, add)
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("units", [1, 5, 16, 63, 96])
def test_threads_and_how_the_work_is_divided_do_not_matter(cpu_level, dtype, units):
    """Not a bit, whichever examples and units stand side by side."""
    x, add = numbers((20, units, 7, 9), dtype), numbers((20, units, 7, 9), dtype, seed=1)
    m, bias = numbers((36, 20 * 6, units), dtype, seed=2), numbers([units], dtype, seed=3)

    def both(examples: slice, own: slice) -> tuple[Tensor, Tensor]:
        tiles = slice(6 * (examples.start or 0), None if examples.stop is None else 6 * examples.stop)
        v = winograd_input(x[examples, own], relu=True)
        return v, winograd_output(m[:, tiles, own], bias[own], 7, 9, relu=True, add=add[examples, own])

    everything = slice(None)
    v, y = both(everything, everything)
    for count in (1, 2, 5):
        with threads(count):
            again = both(everything, everything)
            assert same_bits(again[0], v)
            assert same_bits(again[1], y)
            halves = [both(part, everything) for part in (slice(0, 7), slice(7, 20))]
            assert same_bits(torch.cat([half[0] for half in halves], 1), v)
            assert same_bits(torch.cat([half[1] for half in halves]), y)
            few = both(everything, slice(0, units // 2 + 1))
            assert same_bits(few[0], v[:, :, : units // 2 + 1])
            assert same_bits(few[1], y[:, : units // 2 + 1])


@pytest.mark.parametrize("inputs", [64, 512])
def test_the_error_is_near_that_of_a_direct_sum(cpu_level, inputs):
    """After a ReLU, as far as float32 goes: rms a millionth or so of the outputs', the greatest some ten times that."""
    x = numbers((4, inputs, 8, 8)).relu()
    weight = numbers((64, inputs, 3, 3), seed=1) / inputs**0.5
    expected = definition(x, weight, None, False, None)
    error = convolved(x, winograd_weight(weight), None, False, None) - expected
    rms = expected.square().mean().sqrt()
    assert error.square().mean().sqrt() <= 2e-6 * rms
    assert error.abs().max() <= 2e-5 * rms


class TestRefusals:
    x, m, weight, add = numbers((2, 3, 5, 7)), numbers((36, 8, 4)), numbers((4, 3, 3, 3)), numbers((2, 4, 5, 7))
    bias = numbers([4])

    @pytest.mark.parametrize(
        ("x", "error", "says"),
        [
            (x.half(), TypeError, "one of torch.float64, torch.float32; got x torch.float16"),
            (x.long(), TypeError, "got x torch.int64"),
            (x[0], ValueError, r"x is \[N, C, H, W\], H and W at least 1; got \[3, 5, 7\]"),
            (x[..., :0], ValueError, r"H and W at least 1; got \[2, 3, 5, 0\]"),
        ],
        ids=["half", "long", "three-dimensions", "no-positions"],
    )
    def test_input(self, x, error, says):
        with pytest.raises(error, match=f"^winograd_input: .*{says}"):
            winograd_input(x)

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"m": m.bfloat16()}, TypeError, "got m torch.bfloat16, bias torch.float32, add torch.float32"),
            ({"bias": bias.double()}, TypeError, "got m torch.float32, bias torch.float64"),
            ({"add": add.half()}, TypeError, "add torch.float16"),
            ({"m": m[0]}, ValueError, r"m is \[36, T, D\], .*; got \[8, 4\]"),
            ({"m": m[:35]}, ValueError, r"m is \[36, T, D\], .*; got \[35, 8, 4\]"),
            ({"m": m[:, :7]}, ValueError, r"T a multiple of the 2 x 2 tiles of a map of 5 x 7; got \[36, 7, 4\]"),
            ({"height": 0}, ValueError, "height and width are at least 1; got 0 and 7"),
            ({"width": -4}, ValueError, "height and width are at least 1; got 5 and -4"),
            ({"bias": bias[:3]}, ValueError, r"bias is \[D\] = \[4\], as m has; got \[3\]"),
            ({"add": add[:1]}, ValueError, r"add is \[N, D, H, W\] = \[2, 4, 5, 7\]; got \[1, 4, 5, 7\]"),
            ({"add": add.movedim(1, 3)}, ValueError, r"add is .* = \[2, 4, 5, 7\]; got \[2, 5, 7, 4\]"),
        ],
        ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
    )
    def test_output(self, changes, error, says):
        case = {"m": self.m, "bias": self.bias, "height": 5, "width": 7, "add": self.add, **changes}
        with pytest.raises(error, match=f"^winograd_output: .*{says}"):
            winograd_output(**case)

    @pytest.mark.parametrize(
        ("weight", "error", "says"),
        [
            (weight.half(), TypeError, "got weight torch.float16"),
            (weight[..., :2], ValueError, r"weight is \[D, C, 3, 3\]; got \[4, 3, 3, 2\]"),
            (weight[0], ValueError, r"weight is \[D, C, 3, 3\]; got \[3, 3, 3\]"),
        ],
        ids=["half", "another-window", "three-dimensions"],
    )
    def test_weight(self, weight, error, says):
        with pytest.raises(error, match=f"^winograd_weight: .*{says}"):
            winograd_weight(weight)

    @pytest.mark.parametrize(
        ("function", "given"),
        [
            (winograd_input, {"x": x}),
            (winograd_weight, {"weight": weight}),
            (winograd_output, {"m": m, "bias": None, "height": 5, "width": 7}),
            (winograd_output, {"bias": bias, "m": m, "height": 5, "width": 7}),
            (winograd_output, {"add": add, "m": m, "bias": None, "height": 5, "width": 7}),
        ],
        ids=lambda v: v.__name__ if callable(v) else next(iter(v)),
    )
    def test_gradients(self, native, function, given):
        name = next(iter(given))
        given = {**given, name: given[name].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=rf"{function.__name__} has no gradient; call it under torch\.no_grad"):
            function(**given)
        with torch.no_grad():
            function(**given)

    @pytest.mark.parametrize("name", ["bias", "add"])
    @on_cuda
    def test_devices_must_agree(self, name):
        moved = {"m": self.m.cuda(), "bias": self.bias.cuda(), "add": self.add.cuda(), name: getattr(self, name)}
        with pytest.raises(ValueError, match="winograd_output: every tensor must be on cuda"):
            winograd_output(**moved, height=5, width=7)

    def test_the_op_itself_checks(self):
        with pytest.raises(ValueError, match="T a multiple of the 2 x 2 tiles"):
            torch.ops.sdkernels.winograd_output(self.m[:, :7], None, 5, 7, False, None)
