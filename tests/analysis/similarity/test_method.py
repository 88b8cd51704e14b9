"""Settings of comparisons: every refusal, which settings count, and comparisons of blocks one after another."""

import pytest
import torch

from sdkernels.analysis.similarity import method as module
from sdkernels.analysis.similarity.method import Method, few_examples
from sdkernels.analysis.similarity.similarity import similarity
from tests.analysis.similarity.oracle import related


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "rsa"}, ValueError, "method='rsa': choose one of 'cca', 'svcca', 'pwcca', 'cka'"),
        ({"side": "left"}, ValueError, "side='left': choose one of 'smaller', 'first', 'second'"),
        ({"method": "pwcca", "compat": "google"}, ValueError, "compat='google': choose one of None, 'svcca'"),
        ({"solver": "qr"}, ValueError, "solver='qr': choose one of"),
        ({"variance": 0.0}, ValueError, r"variance=0 must be within \(0, 1\]"),
        ({"variance": 99}, ValueError, "variance=99 must be within"),
        ({"variance": float("nan")}, ValueError, "variance=nan must be a finite number"),
        ({"variance": True}, TypeError, "variance is a bool"),
        ({"tolerance": 1.0}, ValueError, "tolerance=1.0 must be within"),
        ({"tolerance": -1e-9}, ValueError, "tolerance=-1e-09 must be within"),
        ({"tolerance": "small"}, TypeError, "tolerance is a str; give a number"),
        ({"reduce": 0}, ValueError, "reduce=0 must be at least 1"),
        ({"reduce": 2.0}, TypeError, "reduce is a float"),
        ({"debiased": 1}, TypeError, "debiased is a int; give True or False"),
        ({"side": "first"}, ValueError, "side='first' says nothing to method='cca'; it is for 'pwcca'"),
        ({"compat": "svcca"}, ValueError, "compat='svcca' says nothing to method='cca'"),
        ({"variance": 0.9, "method": "pwcca"}, ValueError, "variance=0.9 says nothing to method='pwcca'"),
        ({"debiased": True}, ValueError, "debiased=True says nothing to method='cca'; it is for 'cka'"),
        ({"method": "cka", "reduce": 3}, ValueError, "reduce=3 says nothing to method='cka'"),
        ({"method": "cka", "solver": "svd"}, ValueError, "solver='svd' says nothing to method='cka'"),
    ],
    ids=str,
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        Method(**options)


@pytest.mark.parametrize("method", ["cca", "svcca", "pwcca", "cka"])
def test_blocks_are_compared_as_pairs_are(method):
    """Whitened once, and the same as each pair by itself; exchanging the two changes pwcca alone."""
    first, second = related(0, 300, 5, 6)
    layers = [first, second, related(1, 300, 4, 1)[0]]
    how = Method(method=method)
    moments = how.moments([x.shape[1] for x in layers], [(0, 1), (0, 2), (1, 2)])
    moments.add(layers)
    whites = [how.whiten(moments, i) if how.is_whitened else None for i in range(3)]
    for i in range(3):
        for j in range(3):
            found = how.compare(moments, i, j, whites[i], whites[j])
            alone = similarity(layers[i], layers[j], method=method)
            assert found.distance == pytest.approx(alone.distance, abs=1e-12)
            assert found.side == alone.side
            back = how.compare(moments, j, i, whites[j], whites[i])
            assert how.is_symmetric is (method != "pwcca")
            assert found.distance == pytest.approx(back.distance, abs=1e-12)  # the smaller side either way


@pytest.mark.parametrize("widths", [(3, 5), (5, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("side", ["smaller", "first", "second"])
def test_both_ways_by_one_decomposition_are_each_way_alone(side, widths):
    layers = related(3, 200, *widths)
    how = Method(method="pwcca", side=side)
    moments = how.moments(list(widths), [(0, 1)])
    moments.add(layers)
    one, other = (how.whiten(moments, i) for i in range(2))
    there, back = how.compare_both(moments, 0, 1, one, other)
    for found, alone in (
        (there, how.compare(moments, 0, 1, one, other)),
        (back, how.compare(moments, 1, 0, other, one)),
    ):
        assert found.distance == pytest.approx(alone.distance, abs=1e-12)
        assert found.side == alone.side
        assert torch.allclose(found.weights, alone.weights, atol=1e-10)
    if side != "smaller" or widths == (4, 4):
        assert abs(there.distance - back.distance) > 1e-6  # else the test could not tell them apart


def test_no_distance_is_below_zero(monkeypatch):
    """Weights may add up to more than 1 by rounding."""
    weights = torch.tensor([0.5, 0.5 + 2**-52], dtype=torch.float64)
    monkeypatch.setattr(module, "canonical_with_weights", lambda *_, **__: (torch.ones(2).double(), [weights]))
    layers = related(2, 50, 2, 2)
    how = Method(method="pwcca")
    moments = how.moments([2, 2], [(0, 1)])
    moments.add(layers)
    assert how.compare(moments, 0, 1, how.whiten(moments, 0), how.whiten(moments, 1)).distance == 0


def test_settings_are_those_that_count():
    whitened = {"reduce": None, "tolerance": 1e-12, "solver": "auto"}
    assert Method().settings == Method(method="pwcca").settings == whitened
    assert Method(method="svcca", variance=0.9).settings == {"variance": 0.9} | whitened
    assert Method(method="cka", debiased=True).settings == {"debiased": True}
    assert Method(tolerance=0.1, reduce=4).settings == {"reduce": 4, "tolerance": 0.1, "solver": "auto"}


def test_both_must_be_whitened():
    how = Method()
    moments = how.moments([1, 1], [(0, 1)])
    moments.add([torch.eye(5)[:, :1], torch.eye(5)[:, 1:2]])
    with pytest.raises(ValueError, match="method='cca' takes both whitenings"):
        how.compare(moments, 0, 1, how.whiten(moments, 0))


@pytest.mark.parametrize(("count", "is_few"), [(29, True), (30, False)])
def test_few_examples_are_fewer_than_five_a_direction(count, is_few):
    how = Method()
    moments = how.moments([4, 6], [(0, 1)])
    moments.add(related(0, count, 4, 6))
    told = few_examples(how.whiten(moments, 0), how.whiten(moments, 1), ("fc1", "fc2"))
    assert (told is not None) is is_few
    if is_few:
        assert told.startswith("29 examples are few for the 4 and 6 directions of fc1 and fc2")
