"""ClassMoments: what it says of its sums, and what it refuses."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from sdkernels.ops import ClassMoments
from tests.ops.backends import on_cuda
from tests.ops.moments import all_equal, assert_equal, exact_moments, of_batches
from tests.ops.tensors import integers, numbers
from tests.ops.tolerances import MERGED_MOMENTS, MOMENTS

OP = "class_moments"


@pytest.fixture
def case():
    x, labels = numbers((40, 5, 3)) + 1, integers(0, 4, [40])
    return x, labels, of_batches(x, labels, 4, [], "cpu")


@pytest.mark.parametrize("correction", [0, 1])
def test_variance_is_that_of_the_examples_means(native, case, correction):
    x, labels, moments = case
    means = x.double().mean(2)
    for label in range(4):
        expected = means[labels == label].var(0, correction=correction)
        assert torch.allclose(moments.variance(correction)[label], expected, rtol=MERGED_MOMENTS)


@pytest.mark.parametrize("correction", [0, 1])
def test_element_variance_is_that_of_all_elements(native, case, correction):
    x, _, moments = case
    expected = x.double().movedim(1, 0).flatten(1).var(1, correction=correction)
    assert torch.allclose(moments.element_variance(correction), expected, rtol=MERGED_MOMENTS)


def test_too_few_examples_have_no_variance(native):
    moments = ClassMoments.empty(3, 2)
    assert moments.variance().isnan().all()
    assert moments.element_variance().isnan().all()
    moments.update(numbers((3, 2)), torch.tensor([0, 1, 1]))
    assert moments.variance().isnan().tolist() == [[False] * 2, [False] * 2, [True] * 2]
    assert moments.variance(correction=1).isnan().tolist() == [[True] * 2, [False] * 2, [True] * 2]


def test_over_classes_forgets_the_classes(native, case):
    x, _, moments = case
    count, mean, m2 = moments.over_classes()
    exact = exact_moments(x, torch.zeros(40, dtype=torch.int64), 1)
    assert count == 40
    assert np.allclose(mean.numpy(), exact.mean[0].astype(float), rtol=MERGED_MOMENTS)
    assert np.allclose(m2.numpy(), exact.m2[0].astype(float), rtol=MERGED_MOMENTS)


def test_over_classes_of_none_is_nan(native):
    count, mean, _ = ClassMoments.empty(3, 2).over_classes()
    assert count == 0
    assert mean.isnan().all()


def test_dead_is_zero_at_every_position_of_every_example(native):
    moments = ClassMoments.empty(2, 6)
    assert not moments.dead().any(), "nobody has looked"
    x = torch.zeros(4, 6, 3)
    x[:, 1], x[:, 2], x[3, 3, 1], x[1, 4, 2], x[0, 5, 0] = 1, -0.5, -1e-30, 1e-30, torch.nan
    labels = torch.tensor([0, 1, 0, 1])
    moments.update(x, labels)
    assert moments.dead().tolist() == [True, False, False, False, False, False]
    moments.update(torch.zeros(4, 6, 3), labels)
    assert moments.dead().tolist() == [True, False, False, False, False, False]
    moments.update(x.roll(2, 1), labels)
    assert not moments.dead().any()


def test_one_of_two_merged_that_is_not_dead_is_enough(native):
    merged, other = ClassMoments.empty(1, 3), ClassMoments.empty(1, 3)
    merged.update(torch.tensor([[0.0, 0.0, -2.0]]), torch.tensor([0]))
    other.update(torch.tensor([[0.0, 3.0, 2.0]]), torch.tensor([0]))
    merged.merge(other)
    assert merged.dead().tolist() == [True, False, False]


def test_merge_with_nothing_changes_no_bit(native, case):
    x, labels, moments = case
    moments.merge(ClassMoments.empty(4, 5))
    assert all_equal(moments, of_batches(x, labels, 4, [], "cpu"))
    fresh = ClassMoments.empty(4, 5)
    fresh.merge(moments)
    assert all_equal(fresh, moments)


def test_merge_leaves_the_other_alone(native, case):
    x, labels, moments = case
    other = of_batches(x[:10], labels[:10], 4, [], "cpu")
    moments.merge(other)
    assert all_equal(other, of_batches(x[:10], labels[:10], 4, [], "cpu"))
    both = exact_moments(torch.cat([x, x[:10]]), torch.cat([labels, labels[:10]]), 4)
    assert_equal(moments, both, MERGED_MOMENTS)


def test_large_counts_are_divided_in_float64(native):
    """As integers beyond 2**24 they would lose digits in float32."""
    one, other = ClassMoments.empty(1, 1), ClassMoments.empty(1, 1)
    one.count.fill_(2**26 + 1)
    other.count.fill_(1)
    other.mean.fill_(1.0)
    one.merge(other)
    assert one.mean.item() == pytest.approx(1 / (2**26 + 2), rel=MOMENTS)


def test_an_update_keeps_no_graph(native):
    x = numbers((4, 2)).requires_grad_()
    moments = ClassMoments.empty(2, 2)
    moments.update(x, torch.tensor([0, 1, 0, 1]))
    assert not any(t.requires_grad for t in moments.tensors())


class TestRefusals:
    x, labels = torch.zeros(4, 3, 2), torch.tensor([0, 1, 0, 1])

    @pytest.mark.parametrize(
        ("x", "labels", "unit_dim", "error", "says"),
        [
            (x.int(), labels, 1, TypeError, "x is torch.int32; use one of torch.float64"),
            (x[:0], labels[:0], 1, ValueError, r"x \[0, 3, 2\] is empty"),
            (x[:, :, :0], labels, 1, ValueError, r"x \[4, 3, 0\] is empty"),
            (x, labels, 0, ValueError, r"unit_dim=0, but x \[4, 3, 2\] is read as \[N, ...\]"),
            (x, labels, 3, ValueError, "unit_dim=3"),
            (x, labels.int(), 1, TypeError, "labels are torch.int32; they are int64"),
            (x, labels[:3], 1, ValueError, r"labels \[3\] on cpu must be \[4\] on cpu"),
            (x, labels[None], 1, ValueError, r"labels \[1, 4\] on cpu"),
            (x, labels - 1, 1, ValueError, "label -1 of example 0 is out of range: with 2 classes labels are 0 to 1"),
            (x, labels * 2, 1, ValueError, "label 2 of example 1 is out of range"),
            (x, labels * 10**12, 1, ValueError, "label 1000000000000 of example 1"),
            (x, labels, 2, ValueError, r"with 2 classes and 2 units, mean is torch.float64 \[2, 2\] on cpu; got .*3\]"),
        ],
    )
    def test_is_refused(self, x, labels, unit_dim, error, says):
        moments = ClassMoments.empty(2, 3)
        with pytest.raises(error, match=f"^class_moments: {says}"):
            moments.update(x, labels, unit_dim=unit_dim)
        assert all_equal(moments, ClassMoments.empty(2, 3)), "what is refused changes nothing"

    @pytest.mark.parametrize("name", [field.name for field in fields(ClassMoments)])
    def test_accumulators_of_other_kinds_are_refused(self, name):
        state = {field.name: getattr(ClassMoments.empty(2, 3), field.name) for field in fields(ClassMoments)}
        wrong = state[name].float() if state[name].dtype == torch.int64 else state[name].half()
        with pytest.raises(ValueError, match=f"class_moments: .*{name} is torch.(int|float)64"):
            ClassMoments(**{**state, name: wrong}).update(self.x, self.labels)
        if state[name].ndim == 2:
            strided = state[name].t().contiguous().t()
            with pytest.raises(ValueError, match=f"{name} must be contiguous; make all by ClassMoments.empty"):
                ClassMoments(**{**state, name: strided}).update(self.x, self.labels)

    @on_cuda
    def test_devices_must_agree(self):
        with pytest.raises(ValueError, match="class_moments: "):
            ClassMoments.empty(2, 3).update(self.x.cuda(), self.labels.cuda())
        with pytest.raises(ValueError, match="class_moments: labels"):
            ClassMoments.empty(2, 3, "cuda").update(self.x.cuda(), self.labels)
