"""nested_linear: every backend against masks and whole products in float64, on odd shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdkernels.ops import nested_linear
from tests.ops.backends import DTYPES, big, drawn
from tests.ops.nested import error_of, nested, on, random_case
from tests.ops.tensors import laid_out, numbers, threads
from tests.ops.tolerances import of_sums, same_bits
from tests.pairwise import pairwise

OP = "nested_linear"

SHAPES = [  # N, C, D, L (0 without a head), T
    (1, 1, 1, 1, 1),
    (1, 1, 1, 0, 1),
    (37, 13, 17, 10, 5),
    (37, 13, 17, 0, 5),
    (65, 7, 5, 23, 4),
    (130, 64, 50, 3, 9),
    pytest.param((130, 64, 50, 0, 9), marks=big),
    pytest.param((263, 101, 70, 11, 33), marks=big),
    pytest.param((263, 101, 70, 0, 33), marks=big),
    pytest.param((500, 600, 600, 10, 3), marks=big),
    pytest.param((70, 300, 5000, 7, 3), marks=big),  # more outputs than a GPU holds
    pytest.param((7, 50, 20, 1000, 3), marks=big),
]


@pytest.mark.parametrize(
    *pairwise(
        shape=SHAPES,
        dtype_and_relu=[*((dtype, True) for dtype in DTYPES), (torch.float32, False)],
        bias_a_point=[False, True],
    ),
    ids=str,
)
def test_equals_the_definition(backend, shape, dtype_and_relu, bias_a_point):
    dtype, relu = dtype_and_relu
    case = random_case(shape, dtype, per_point=bias_a_point) | {"relu": relu}
    expected = nested(**case)
    result = nested_linear(**on(backend, case))
    assert result.shape == expected.shape
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert error_of(result, expected) < of_sums(dtype)


@drawn(120)
@given(
    st.tuples(*(st.integers(1, n) for n in (80, 40, 40)), st.integers(0, 13), st.integers(1, 9)),
    *(st.booleans() for _ in range(2)),
    st.sampled_from(DTYPES),
    st.integers(0, 1000),
)
def test_whole_numbers_are_exact_at_any_shape(backend, shape, per_point, relu, dtype, seed):
    """Sums of whole numbers round nowhere, but at the end to float16 and bfloat16."""
    case = random_case(shape, dtype, per_point=per_point, whole=True, seed=seed) | {"relu": relu}
    result = nested_linear(**on(backend, case))
    assert same_bits(result + 0.0, nested(**case).to(dtype) + 0.0)  # of either sign


def test_is_as_exact_as_the_plain_products(cpu_level, monkeypatch):
    """No more than twice their error, in the mean square."""
    case = random_case((200, 512, 512, 10, 33), torch.float32)
    exact = nested(**case)
    ours = (nested_linear(**case).double() - exact).square().mean().sqrt()
    monkeypatch.setenv("SDKERNELS_BACKEND", "reference")
    assert ours <= 2 * (nested_linear(**case).double() - exact).square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
def test_halves_are_rounded_at_the_end_only(backend, dtype):
    """What overflows float16 on the way comes back through the head."""
    case = random_case((5, 64, 8, 3, 2), dtype)
    case["a"], case["weight"] = case["a"].abs() * 100, case["weight"].abs() * 100
    case["head"] /= 4096
    case["living_in"], case["living_out"] = torch.tensor([64, 40]), torch.tensor([8, 8])
    exact = nested(**case)
    assert nested(**{**case, "head": None, "head_bias": None}).max() > torch.finfo(dtype).max
    assert error_of(nested_linear(**on(backend, case)), exact) < of_sums(dtype)


def test_nothing_alive_and_everything_alive(backend):
    case = random_case((9, 6, 5, 4, 3), torch.float64)
    case["living_in"], case["living_out"] = torch.tensor([6, 6, 0]), torch.tensor([5, 0, 0])
    result = nested_linear(**on(backend, case)).cpu()
    a, weight = case["a"][:, case["units"]], case["weight"]
    whole = (a @ weight.T + case["bias"]).relu() @ case["head"].T + case["head_bias"]
    torch.testing.assert_close(result[0], whole.T)
    assert torch.equal(result[1], case["head_bias"].T.expand(4, 9))
    assert torch.equal(result[2], case["head_bias"].T.expand(4, 9))


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_clamped_outputs_are_zero_and_not_computed(backend, relu):
    """Neither their weights nor their biases are read."""
    case = random_case((70, 6, 9, 0, 4), per_point=True) | {"relu": relu}
    case["living_in"], case["living_out"] = torch.tensor([6, 5, 2, 0]), torch.tensor([7, 7, 3, 0])
    expected = nested(**case)
    case["weight"][7:] = torch.nan
    case["bias"][:2, 7:] = case["bias"][2, 3:] = case["bias"][3] = torch.nan
    result = nested_linear(**on(backend, case)).cpu()
    for t, living in enumerate(case["living_out"].tolist()):
        assert same_bits(result[t, living:], torch.zeros(9 - living, 70))
    assert error_of(result, expected) < of_sums(torch.float32)


@pytest.mark.parametrize("classes", [0, 4], ids=["outputs", "head"])
def test_a_clamped_inf_or_nan_is_not_read(backend, classes):
    case = random_case((5, 6, 5, classes, 3), torch.float32)
    case["a"][:, case["units"][3]], case["a"][:, case["units"][5]] = torch.nan, torch.inf
    case["living_in"], case["living_out"] = torch.tensor([4, 3, 1]), torch.tensor([5, 5, 5])
    result = nested_linear(**on(backend, case))
    assert result[0].isnan().all(), "relu keeps nan"
    assert result[1:].isfinite().all()


def test_points_that_change_nothing_give_the_same(backend):
    case = random_case((20, 6, 9, 3, 5))
    case["living_in"], case["living_out"] = torch.tensor([4, 4, 4, 2, 2]), torch.tensor([7, 7, 7, 7, 7])
    result = nested_linear(**on(backend, case))
    assert same_bits(result[0], result[1])
    assert same_bits(result[0], result[2])
    assert same_bits(result[3], result[4])


@pytest.mark.parametrize("classes", [0, 10], ids=["outputs", "head"])
@pytest.mark.parametrize("layout", ["transposed", "every-other-unit", "window"])
def test_any_strides_are_read_right(backend, layout, classes):
    case = random_case((37, 13, 17, classes, 5), per_point=True, whole=True)
    expected = nested(**case).float()
    strided = {name: laid_out(t, layout) for name, t in on(backend, case).items() if t.is_floating_point()}
    assert same_bits(nested_linear(**{**on(backend, case), **strided}), expected)
    examples = case["a"].repeat_interleave(2, 0).to(backend.device)[::2]
    assert same_bits(nested_linear(**{**on(backend, case), "a": examples}), expected)
    for name in ("units", "living_in", "living_out"):
        case[name] = torch.stack([on(backend, case)[name], on(backend, case)[name] - 10**6], 1)[:, 0]
    assert same_bits(nested_linear(**on(backend, case)), expected)


@pytest.mark.parametrize("classes", [0, 10], ids=["outputs", "head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_threads_and_batches_give_the_same_bits(cpu_level, dtype, classes):
    case = random_case((300, 40, 30, classes, 6), dtype)
    whole = nested_linear(**case)
    assert error_of(whole, nested(**case)) < of_sums(dtype)
    for count in (1, 2, 5):
        with threads(count):
            assert same_bits(nested_linear(**case), whole)
            parts = [nested_linear(**{**case, "a": part}) for part in case["a"].split(77)]
            assert same_bits(torch.cat(parts, 2), whole)


class TestRefusals:
    case = random_case((7, 6, 5, 4, 3))

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"a": case["a"].half()}, TypeError, "a, weight, bias, head and head_bias share one of .*a torch.float16"),
            ({"a": case["a"].int()}, TypeError, "share one of .*; got a torch.int32"),
            ({"head": case["head"].double()}, TypeError, "head torch.float64"),
            ({"living_in": case["living_in"].int()}, TypeError, "are int64; got .*living_in torch.int32"),
            ({"units": case["units"].int()}, TypeError, "are int64; got units torch.int32"),
            ({"head": None}, ValueError, "head and head_bias are given together or not at all"),
            ({"head_bias": None}, ValueError, "head and head_bias are given together or not at all"),
            ({"a": case["a"][:0]}, ValueError, "none of them empty"),
            ({"a": case["a"][0]}, ValueError, r"a is \[N, C\].*'a': \[6\]"),
            ({"weight": case["weight"][:0]}, ValueError, r"none of them empty; got .*'weight': \[0, 6\]"),
            ({"living_in": case["living_in"][:0]}, ValueError, "none of them empty"),
            ({"weight": case["weight"].t()}, ValueError, r"weight is \[D, C\].*'weight': \[6, 5\]"),
            ({"units": case["units"][:5]}, ValueError, r"units \[C\].*'units': \[5\]"),
            ({"bias": torch.zeros(2, 5)}, ValueError, r"bias \[1 or T, D\]"),
            ({"bias": torch.zeros(5)}, ValueError, r"bias \[1 or T, D\]"),
            ({"living_out": torch.tensor([5, 4])}, ValueError, r"living_out \[T\]"),
            ({"head": torch.zeros(4, 6)}, ValueError, r"head \[L, D\].*'head': \[4, 6\]"),
            ({"head": torch.zeros(0, 5), "head_bias": torch.zeros(1, 0)}, ValueError, r"head \[L, D\]"),
            ({"head_bias": torch.zeros(1, 5)}, ValueError, r"head_bias \[1 or T, L\]"),
            ({"head_bias": torch.zeros(2, 4)}, ValueError, r"head_bias \[1 or T, L\]"),
            ({"living_in": torch.tensor([3, 4, 2])}, ValueError, "living_in must lie in 0..6 and never grow"),
            ({"living_in": torch.tensor([7, 4, 2])}, ValueError, r"living_in must lie in 0..6 .*; got \[7, 4, 2\]"),
            ({"living_out": torch.tensor([6, 4, 2])}, ValueError, "living_out must lie in 0..5"),
            ({"living_out": torch.tensor([5, 4, -1])}, ValueError, "living_out must lie in 0..5"),
            ({"units": torch.tensor([0, 1, 2, 3, 4, 4])}, ValueError, "units is no permutation of 0..5"),
            ({"units": torch.tensor([1, 2, 3, 4, 5, 6])}, ValueError, "units is no permutation of 0..5"),
        ],
        ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
    )
    def test_is_refused(self, changes, error, says):
        with pytest.raises(error, match=f"^nested_linear: .*{says}"):
            nested_linear(**{**self.case, **changes})

    @pytest.mark.parametrize("name", ["a", "weight", "bias", "head", "head_bias"])
    def test_gradients_are_refused(self, native, name):
        case = {**self.case, name: numbers(self.case[name].shape).requires_grad_()}
        with pytest.raises(RuntimeError, match=r"nested_linear has no gradient; call it under torch\.no_grad"):
            nested_linear(**case)
        with torch.no_grad():
            nested_linear(**case)

    def test_the_op_itself_checks(self):
        case = {**self.case, "units": self.case["units"] + 10**9}
        order = ("a", "units", "weight", "bias", "head", "head_bias", "living_in", "living_out")
        with pytest.raises(ValueError, match="no permutation"):
            torch.ops.sdkernels.nested_linear(*(case[name] for name in order), True)
