"""nested_linear: native against the definition in float64, on odd shapes; the walk forms each product once."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import nested_linear
from sdkernels.ops.nested_linear import IMPLEMENTATIONS

SHAPES = [  # N, C, D, L, T
    (1, 1, 1, 1, 1),
    (37, 13, 17, 10, 5),
    (130, 64, 50, 3, 9),
    (263, 101, 70, 11, 33),
    (65, 7, 5, 23, 4),
    (500, 600, 600, 10, 3),
]


@pytest.fixture(params=list(IMPLEMENTATIONS))
def backend(request, monkeypatch):
    monkeypatch.setenv("SDKERNELS_BACKEND", request.param)
    return request.param


def random_case(shape, dtype, *, per_point=False, seed=0) -> tuple[Tensor, ...]:
    n, c, d, classes, points = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    def living(most: int) -> Tensor:
        return torch.randint(0, most + 1, (points,), generator=generator).sort(descending=True).values

    rows = points if per_point else 1
    units = torch.randperm(c, generator=generator)
    weights = normal(d, c), normal(rows, d), normal(classes, d), normal(rows, classes)
    return normal(n, c), units, *weights, living(c), living(d)


def definition(a, units, weight, bias, head, head_bias, living_in, living_out) -> Tensor:
    """Masks and whole products in float64; shares nothing with the op."""
    a, weight, bias, head, head_bias = (t.double() for t in (a, weight, bias, head, head_bias))
    logits = []
    for t in range(len(living_in)):
        alive_in = torch.zeros(a.shape[1], dtype=torch.float64)
        alive_in[units[: living_in[t]]] = 1
        alive_out = (torch.arange(len(weight)) < living_out[t]).double()
        in_order = weight.new_zeros(weight.shape)
        in_order[:, units] = weight  # columns back to those of a
        hidden = ((a * alive_in) @ in_order.T + bias[t % len(bias)]).clamp(min=0) * alive_out
        logits.append((hidden @ head.T + head_bias[t % len(head_bias)]).T)
    return torch.stack(logits)


@pytest.mark.parametrize("per_point", [False, True], ids=["one-bias", "bias-a-point"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(backend, shape, dtype, per_point):
    case = random_case(shape, dtype, per_point=per_point)
    expected = definition(*case)
    result = nested_linear(*case)
    assert result.shape == expected.shape
    assert result.dtype == dtype
    assert result.is_contiguous()
    error = (result.double() - expected).abs().max() / expected.abs().max()
    assert error < 30 * torch.finfo(dtype).eps  # roundings of two sums of up to 600 products add up as a random walk


@given(st.tuples(*(st.integers(1, n) for n in (80, 40, 40, 13, 9))), st.booleans(), st.integers(0, 1000))
def test_native_equals_the_definition_on_random_shapes(shape, per_point, seed):
    case = random_case(shape, torch.float64, per_point=per_point, seed=seed)
    torch.testing.assert_close(IMPLEMENTATIONS["native"](*case), definition(*case), rtol=1e-12, atol=1e-12)


def test_is_as_exact_as_the_plain_products():
    case = random_case((200, 512, 512, 10, 33), torch.float32)
    exact = definition(*case)
    errors = {name: (run(*case).double() - exact).abs().max() for name, run in IMPLEMENTATIONS.items()}
    assert errors["native"] <= 2 * errors["reference"], "no more than twice the error of plain products"


def test_nothing_alive_and_everything_alive(backend):
    a, units, weight, bias, head, head_bias, _, _ = random_case((9, 6, 5, 4, 3), torch.float64)
    counts_in, counts_out = torch.tensor([6, 6, 0]), torch.tensor([5, 0, 0])
    result = nested_linear(a, units, weight, bias, head, head_bias, counts_in, counts_out)
    whole = (a[:, units] @ weight.T + bias).relu() @ head.T + head_bias
    torch.testing.assert_close(result[0], whole.T)
    assert torch.equal(result[1], head_bias.T.expand(4, 9))
    assert torch.equal(result[2], head_bias.T.expand(4, 9))


def test_a_clamped_inf_or_nan_is_not_read(backend):
    a, units, weight, bias, head, head_bias, *_ = random_case((5, 6, 5, 4, 2), torch.float32)
    a[:, units[3]], a[:, units[5]] = float("nan"), float("inf")
    counts = torch.tensor([4, 3]), torch.tensor([5, 5])
    result = nested_linear(a, units, weight, bias, head, head_bias, *counts)
    assert result[0].isnan().all()
    assert result[1].isfinite().all()


def test_threads_and_batches_give_the_same_bits(monkeypatch):
    monkeypatch.setenv("SDKERNELS_BACKEND", "native")
    case = random_case((300, 40, 30, 10, 6), torch.float32)
    threads = torch.get_num_threads()
    try:
        whole = nested_linear(*case)
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(nested_linear(*case), whole)
            parts = [nested_linear(part, *case[1:]) for part in case[0].split(77)]
            assert torch.equal(torch.cat(parts, 2), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_opcheck(backend, transposed):
    case = list(random_case((7, 6, 5, 4, 3), torch.float32, per_point=True))
    if transposed:
        for i in (0, 2, 3, 4, 5):
            case[i] = case[i].t().contiguous().t()
    torch.library.opcheck(torch.ops.sdkernels.nested_linear.default, tuple(case))


def test_full_graph_compile():
    case = random_case((7, 6, 5, 4, 3), torch.float64)
    a, rest = case[0], case[1:]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(a: Tensor) -> Tensor:
        return torch.ops.sdkernels.nested_linear(a * 2, *rest).argmax(1)

    assert torch.equal(function(a), definition(a * 2, *rest).argmax(1))


class TestRefusals:
    case: ClassVar = dict(
        zip(
            ("a", "units", "weight", "bias", "head", "head_bias", "living_in", "living_out"),
            random_case((7, 6, 5, 4, 3), torch.float32),
            strict=True,
        )
    )

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"a": case["a"].half()}, TypeError, "float16"),
            ({"head": case["head"].double()}, TypeError, "head torch.float64"),
            ({"living_in": case["living_in"].int()}, TypeError, "living_in torch.int32"),
            ({"a": case["a"][:0]}, ValueError, "none of them empty"),
            ({"weight": case["weight"].t()}, ValueError, r"weight is \[D, C\].*'weight': \[6, 5\]"),
            ({"bias": torch.zeros(2, 5)}, ValueError, r"bias \[1 or T, D\]"),
            ({"living_out": torch.tensor([5, 4])}, ValueError, r"living_out \[T\]"),
            ({"living_in": torch.tensor([3, 4, 2])}, ValueError, "living_in must lie in 0..6 and never grow"),
            ({"living_out": torch.tensor([6, 4, 2])}, ValueError, "living_out must lie in 0..5"),
            ({"living_out": torch.tensor([5, 4, -1])}, ValueError, "living_out must lie in 0..5"),
            ({"units": torch.tensor([0, 1, 2, 3, 4, 4])}, ValueError, "no permutation of 0..5"),
            ({"weight": case["weight"].clone().requires_grad_()}, RuntimeError, "torch.no_grad"),
        ],
    )
    def test_is_refused(self, changes, error, says):
        with pytest.raises(error, match=says):
            nested_linear(**{**self.case, **changes})

    def test_the_op_itself_checks(self):
        case = {**self.case, "units": self.case["units"] + 10**9}
        with pytest.raises(ValueError, match="no permutation"):
            torch.ops.sdkernels.nested_linear(*case.values())
