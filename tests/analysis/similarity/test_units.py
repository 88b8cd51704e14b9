"""Comparisons in some of the units alone: which are drawn, and that nothing else counts."""

import itertools

import pytest
import torch

from sdkernels.analysis.similarity import over_networks
from sdkernels.analysis.similarity.over_networks import pairwise_similarity
from sdkernels.analysis.similarity.units import drawn_units
from tests.analysis.similarity.collected import activations, convolutions, each, images, means
from tests.analysis.similarity.oracle import cca, pwcca

WIDTHS = [7, 3, 7, 5]
SAME = 1e-9


@pytest.fixture
def networks():
    return [convolutions(width, seed) for seed, width in enumerate(WIDTHS)]


@pytest.mark.parametrize("rows", [means, each], ids=["mean", "each"])
@pytest.mark.parametrize("limit", [1e9, 6_000], ids=["hold", "lockstep"])
def test_only_units_that_were_drawn_count(limit, rows, networks, monkeypatch):
    monkeypatch.setattr(over_networks, "memory_limit", lambda _device, _fraction: limit)
    layers, inputs = ["1", "4"], images()
    positions = "mean" if rows is means else "each"
    result = pairwise_similarity(networks, layers, inputs, method="pwcca", positions=positions, units=3, seed=5)
    assert set(result.settings["ways"].values()) == {"hold, 1 pass" if limit > 1e8 else "lockstep, 1 pass"}
    for place, layer in enumerate(layers):
        found = [rows(activations(network, layer, inputs)) for network in networks]
        own = [x[:, drawn_units(x.shape[1], 3, 5).numpy()] for x in found]
        for i, j in itertools.permutations(range(4), 2):
            live = [(x.std(0) > 0).sum() for x in (own[i], own[j])]
            expected = 1 - pwcca(own[i], own[j], int(live[1] < live[0]))[0]
            assert float(result.distance[place, i, j]) == pytest.approx(expected, abs=SAME)
    assert result.ranks.max() <= 3
    assert (result.settings["units"], result.settings["seed"]) == (3, 5)


def test_features_and_other_unit_dims(networks):
    result = pairwise_similarity(networks, ["6"], images(), units=2, seed=1)
    found = [activations(network, "6", images())[:, drawn_units(4, 2, 1)] for network in networks]
    assert float(result.distance[0, 0, 1]) == pytest.approx(1 - cca(found[0], found[1]).mean(), abs=SAME)
    result = pairwise_similarity(networks[::2], ["1"], images(), unit_dim=3, units=4, seed=2)
    found = [activations(n, "1", images()).mean((1, 2))[:, drawn_units(6, 4, 2)] for n in networks[::2]]
    assert float(result.distance[0, 0, 1]) == pytest.approx(1 - cca(found[0], found[1]).mean(), abs=SAME)


def test_all_units_are_no_draw(networks):
    one, other = (pairwise_similarity(networks[::2], ["1"], images(), units=units) for units in (7, None))
    assert torch.allclose(one.distance, other.distance, rtol=0, atol=SAME)
    assert "units" not in other.settings


def test_draws_are_without_replacement_even_and_by_seed():
    draws = torch.stack([drawn_units(10, 3, seed) for seed in range(2000)])
    assert (draws.diff(dim=1) > 0).all()
    shares = draws.flatten().bincount(minlength=10) / 2000
    assert (shares - 0.3).abs().max() < 0.05  # five standard deviations
    assert len({tuple(draw.tolist()) for draw in draws}) == 120
    assert drawn_units(10, 3, 4).equal(draws[4])


def test_copies_of_a_network_are_at_no_distance(networks):
    result = pairwise_similarity([networks[0], networks[2], networks[0]], ["1"], images(), units=3)
    assert float(result.distance[0, 0, 2]) == pytest.approx(0, abs=SAME)
    assert float(result.distance[0, 0, 1]) > 0.01


def test_a_store_keeps_draws_apart(networks, tmp_path):
    given = {"store": tmp_path / "kept.sdk"}
    results = [pairwise_similarity(networks[::2], ["1"], images(), units=3, seed=seed, **given) for seed in (0, 1, 0)]
    alone = pairwise_similarity(networks[::2], ["1"], images(), units=3, seed=1)
    assert results[0].distance.equal(results[2].distance)
    assert not torch.allclose(results[0].distance, results[1].distance)
    assert torch.allclose(results[1].distance, alone.distance, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("units", "error", "message"),
    [
        (4, ValueError, r"units=4, and layer '1' of 1 has 3; give at most as many as the narrowest"),
        (0, ValueError, "units=0 must be at least 1"),
        (2.0, TypeError, "units is a float; give an int"),
        (True, TypeError, "units is a bool"),
    ],
)
def test_slips_are_refused(units, error, message, networks):
    with pytest.raises(error, match=message):
        pairwise_similarity(networks, ["1"], images(), units=units)
