"""rank_one with a head: every backend against the definition in float64, rows that nothing changes to the bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import rank_one
from tests.ops.backends import DTYPES, big, drawn, on_cuda
from tests.ops.clamped import on, random_case
from tests.ops.headed import assert_logits, head_case, hidden_of, is_float, logits_of
from tests.ops.tensors import LAYOUTS, laid_out, threads
from tests.ops.tolerances import same_bits, same_numbers
from tests.pairwise import pairwise

OP = "rank_one_head"

SHAPES = [  # N, C, D, L, K
    (1, 1, 1, 1, 1),
    (3, 3, 1, 3, 1),
    (1, 5, 63, 1, 3),
    (3, 6, 63, 10, 4),
    (5, 7, 16, 6, 3),
    pytest.param((63, 40, 63, 23, 3), marks=big),
    pytest.param((500, 30, 500, 10, 3), marks=big),
    pytest.param((3, 500, 500, 63, 500), marks=big),
    pytest.param((1, 500, 500, 10, 500), marks=big),
    pytest.param((7, 5, 20, 1000, 3), marks=big),
]


@pytest.mark.parametrize(*pairwise(shape=SHAPES, dtype=DTYPES, intact=[False, True]), ids=str)
def test_equals_the_definition(backend, shape, dtype, intact):
    for relu, affine in ((True, False), (False, True), (True, True)):
        case = head_case(shape, dtype, intact=intact, relu=relu, affine=affine, value=relu, bias=affine == relu)
        assert_logits(rank_one(**on(backend, case)), case)


@drawn(120)
@given(
    st.tuples(*(st.integers(1, n) for n in (9, 7, 40, 13, 6))),
    *(st.booleans() for _ in range(4)),
    st.sampled_from(DTYPES),
    st.integers(0, 1000),
)
def test_whole_numbers_are_exact_at_any_shape(backend, shape, value, affine, relu, intact, dtype, seed):
    """Sums of whole numbers round nowhere, but at the end to float16 and bfloat16."""
    case = head_case(shape, dtype, value=value, affine=affine, relu=relu, intact=intact, seed=seed)
    case = {name: t.round() if is_float(t) else t for name, t in case.items()}
    found = rank_one(**on(backend, case))
    assert same_bits(found + 0.0, logits_of(**case)[0].to(dtype) + 0.0)  # of either sign


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@big
def test_a_row_beyond_the_first_caches(backend, dtype):
    case = head_case((3, 3, 20011, 23, 3), dtype)
    case = {name: t.round() if is_float(t) else t for name, t in case.items()}
    assert same_bits(rank_one(**on(backend, case)).cpu() + 0.0, logits_of(**case)[0].to(dtype) + 0.0)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_strides_are_read_right(backend, dtype, layout):
    case = head_case((5, 7, 9, 3, 6), dtype)
    lying = {name: laid_out(case[name].to(backend.device), layout) for name in ("z", "a", "weight", "head", "intact")}
    for name in ("units", "value", "scale", "shift", "head_bias"):
        t = case[name].to(backend.device)
        lying[name] = torch.stack([t, t + 1000], 1)[:, 0]
    assert_logits(rank_one(**{**case, **lying}), case)


@pytest.mark.parametrize(
    *pairwise(
        shape=[(70, 30, 63, 10, 20), (9, 8, 40, 23, 8), (200, 16, 500, 3, 16)],
        dtype=[torch.float32, torch.float64, torch.bfloat16],
        intact=[False, True],
    ),
    ids=str,
)
def test_threads_and_how_the_work_is_divided_do_not_matter(cpu_level, dtype, shape, intact):
    """Not a bit, whichever rows stand side by side."""
    case = head_case(shape, dtype, intact=intact)
    whole = rank_one(**case)
    assert_logits(whole, case)
    per_example = [name for name in ("z", "a", "intact") if name in case]
    for count in (1, 2, 5):
        with threads(count):
            assert same_bits(rank_one(**case), whole)
            parts = [rank_one(**{**case, "units": units}) for units in case["units"].split(3)]
            assert same_bits(torch.cat(parts), whole)
            runs = zip(*(case[name].split(7) for name in per_example), strict=True)
            parts = [rank_one(**{**case, **dict(zip(per_example, run, strict=True))}) for run in runs]
            assert same_bits(torch.cat(parts, 1), whole)


def test_rows_do_not_depend_on_absent_neighbours(cpu_level):
    case = head_case((70, 30, 63, 10, 20))
    computed = rank_one(**{**case, "intact": None})
    absent = logits_of(**case)[1]
    assert absent.any()
    assert not absent.all()
    assert same_bits(rank_one(**case)[~absent], computed[~absent])


def test_is_as_exact_as_plain_products(cpu_level, monkeypatch):
    """No more than twice their error, in the mean square."""
    case = head_case((100, 64, 512, 10, 64), intact=False)
    exact = logits_of(**case)[0]
    ours = (rank_one(**case).double() - exact).square().mean().sqrt()
    monkeypatch.setenv("SDKERNELS_BACKEND", "reference")
    assert ours <= 2 * (rank_one(**case).double() - exact).square().mean().sqrt()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_intact_rows_are_copied_and_not_computed(backend, dtype):
    """Whatever they hold, nan too; and z is not looked at."""
    case = head_case((6, 5, 20, 11, 5), dtype) | {"units": torch.arange(5)}
    case["a"] = case["value"].expand(6, -1).clone()
    case["intact"][0, :3] = torch.tensor([torch.nan, torch.inf, -0.0], dtype=dtype)
    case["z"][:] = torch.nan
    result = rank_one(**on(backend, case))
    assert same_bits(result, case["intact"].expand(5, -1, -1))


@pytest.mark.parametrize("given", [False, True], ids=["default", "zeros"])
def test_zeros_of_either_sign_are_at_their_value_and_nan_never_is(backend, given):
    a = torch.tensor([[0.0], [-0.0], [torch.inf], [torch.nan], [1e-45]])
    case = {"z": torch.ones(5, 3), "weight": torch.ones(3, 1), "a": a, "units": torch.tensor([0])}
    case |= {"head": torch.ones(2, 3), "intact": torch.full((5, 2), 7.0), "relu": False}
    if given:
        case["value"] = torch.zeros(1)
    result = rank_one(**on(backend, case))[0, :, 0].cpu()
    assert same_numbers(result, torch.tensor([7.0, 7.0, -torch.inf, torch.nan, 3.0]))


def test_a_value_of_inf_or_nan(backend):
    """inf is at a value of inf; nan is at no value."""
    a = torch.tensor([[torch.inf, torch.nan], [1.0, 1.0]])
    case = {"z": torch.ones(2, 3), "weight": torch.ones(3, 2), "a": a, "units": torch.tensor([0, 1])}
    case |= {"head": torch.ones(1, 3), "intact": torch.full((2, 1), 7.0), "value": torch.tensor([torch.inf, torch.nan])}
    result = rank_one(**on(backend, case))[:, :, 0].cpu()
    assert same_numbers(result, torch.tensor([[7.0, torch.inf], [torch.nan, torch.nan]]))


@pytest.mark.parametrize("outputs", [1, 5, 16, 37])
def test_infinite_outputs_meet_no_zeros_that_are_not_there(backend, outputs):
    """Behind the last output vectors are filled up, and 0 * inf is nan."""
    case = {"z": torch.ones(3, outputs), "weight": torch.ones(outputs, 1), "units": torch.tensor([0])}
    case |= {"a": torch.tensor([[-torch.inf], [torch.inf], [2.0]]), "head": torch.ones(3, outputs), "relu": True}
    result = rank_one(**on(backend, case))[0].cpu()
    assert same_bits(result, torch.tensor([torch.inf, 0.0, 0.0])[:, None].expand(3, 3))


def test_what_is_not_finite_in_z_cannot_be_taken_back(backend):
    """Clamping the unit that made it so gives nan, as without a head."""
    a = torch.tensor([[torch.inf, 1.0], [torch.nan, 1.0]])
    weight = torch.ones(4, 2)
    case = {"z": a @ weight.T, "weight": weight, "a": a, "units": torch.tensor([0]), "relu": True}
    assert rank_one(**on(backend, case)).isnan().all()
    case["head"] = torch.ones(3, 4)
    assert rank_one(**on(backend, case)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
def test_halves_are_rounded_at_the_end_only(backend, dtype):
    """What overflows float16 on the way comes back through the head."""
    case = head_case((5, 8, 16, 3, 8), dtype, affine=False, intact=False)
    case["weight"], case["a"] = case["weight"] * 1000, case["a"] * 1000
    case["head"] /= 4096
    without_head = {name: t for name, t in case.items() if not name.startswith("head")}
    assert hidden_of(**without_head).max() > torch.finfo(dtype).max
    result = rank_one(**on(backend, case))
    assert result.isfinite().all()
    assert_logits(result, case)


def test_units_may_come_again(backend):
    case = head_case((5, 7, 4, 3, 1)) | {"units": torch.tensor([3, 3, 0, 3])}
    y = rank_one(**on(backend, case))
    assert_logits(y, case)
    assert same_bits(y[0], y[3])


@pytest.mark.parametrize("shape", [(3, 6, 63, 10, 4), (70, 5, 20, 13, 3)], ids=str)
def test_every_logit_is_written(native, monkeypatch, shape):
    """Outputs are not zeroed before: here they start as nan."""
    empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **o: empty(*a, **o).fill_(torch.nan))
    case = head_case(shape)
    result = rank_one(**case)
    assert result.isfinite().all()
    assert_logits(result, case)


class TestRefusals:
    case = head_case((5, 7, 4, 3, 6))
    maps = random_case((5, 7, 4, (3,), 6))

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"head": None}, ValueError, "head_bias and intact belong to a head"),
            ({"head": None, "intact": None}, ValueError, "head_bias and intact belong to a head"),
            ({"head": None, "head_bias": None}, ValueError, "head_bias and intact belong to a head"),
            (
                {"z": maps["z"], "a": maps["a"]},
                ValueError,
                r"a head reads z of \[N, D\].*; got z \[5, 4, 3\]",
            ),
            ({"head": case["head"].double()}, TypeError, "head has z's dtype, torch.float32; got torch.float64"),
            ({"head_bias": case["head_bias"].half()}, TypeError, "head_bias has z's dtype, .*; got torch.float16"),
            ({"intact": case["intact"].int()}, TypeError, "intact has z's dtype, .*; got torch.int32"),
            ({"head": case["head"][0]}, ValueError, r"head is \[L, D\], D = 4 as in z, not empty; got \[4\]"),
            ({"head": case["head"].t()}, ValueError, r"head is \[L, D\].*; got \[4, 3\]"),
            ({"head": case["head"][:0]}, ValueError, r"head is \[L, D\].*; got \[0, 4\]"),
            ({"head_bias": case["head_bias"][:2]}, ValueError, r"head_bias is \[3\], to fit z and head; got \[2\]"),
            ({"intact": case["intact"][:4]}, ValueError, r"intact is \[5, 3\], to fit z and head; got \[4, 3\]"),
            ({"intact": case["intact"].t()}, ValueError, r"intact is \[5, 3\], to fit z and head; got \[3, 5\]"),
            ({"units": case["units"] + 7}, ValueError, "units must lie in 0 to 6"),
            ({"units": case["units"][:0]}, ValueError, "none of them empty"),
            ({"z": case["z"][:0], "a": case["a"][:0]}, ValueError, "none of them empty"),
            ({"shift": None}, ValueError, "scale and shift are given together or not at all"),
        ],
        ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
    )
    def test_is_refused(self, changes, error, says):
        with pytest.raises(error, match=f"^rank_one: .*{says}"):
            rank_one(**{**self.case, **changes})

    @pytest.mark.parametrize("name", ["z", "head", "head_bias", "intact"])
    def test_gradients_are_refused(self, native, name):
        case = {**self.case, name: self.case[name].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=r"rank_one has no gradient; call it under torch\.no_grad"):
            rank_one(**case)
        with torch.no_grad():
            rank_one(**case)

    @pytest.mark.parametrize("name", ["weight", "a", "units", "head", "head_bias", "intact"])
    @on_cuda
    def test_devices_must_agree(self, name):
        moved = {n: t.cuda() if isinstance(t, Tensor) and n != name else t for n, t in self.case.items()}
        with pytest.raises(ValueError, match="rank_one: every tensor must be on cuda"):
            rank_one(**moved)

    def test_the_op_itself_checks(self):
        case = {**self.case, "units": self.case["units"] + 10**12}
        order = ("z", "weight", "a", "units", "value", "scale", "shift", "relu", "head", "head_bias", "intact")
        with pytest.raises(ValueError, match="units must lie in 0 to 6"):
            torch.ops.sdkernels.rank_one_head(*(case[name] for name in order))
