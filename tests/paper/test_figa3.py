"""Figure A3: norms against the weights written out, and the claims where they are true, false and undecided."""

import pandas as pd
import pytest

from sdkernels.paper.claims import FAILS, HOLDS, UNTESTABLE
from sdkernels.paper.directions import figA2, figA3
from sdkernels.paper.recipe import Done
from tests.paper.small_units import CONVNETS, run, units

STAND_IN = Done(figA3.FIGA3.presets["quick"], {})
NORMS = (figA3.NORM, figA3.MEAN)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run(figA3.FIGA3, CONVNETS, tmp_path_factory.mktemp("figA3"))


@pytest.fixture(scope="module")
def table(done):
    return figA3.table(done)


@pytest.mark.parametrize("layer", [1, 6, 11])
@pytest.mark.parametrize("network", [0, 1])
def test_the_norm_is_of_the_filter(done, table, network, layer):
    own = table[(table.part == "CIFAR-10") & (table.network == network) & (table.layer == f"conv{layer}")]
    weight = done.networks["CIFAR-10"].model(network).get_submodule(f"conv{layer}").weight.detach().double().abs()
    assert own[figA3.NORM].tolist() == pytest.approx(weight.sum((1, 2, 3)).tolist())
    assert own[figA3.MEAN].tolist() == pytest.approx(weight.mean((1, 2, 3)).tolist())


def test_the_norm_of_a_block_is_of_all_that_is_summed_there(done, table):
    own = table[table.layer == "block4.3"]
    stage = done.networks["ImageNet"].model(0).layer4
    summed = [block.conv3.weight for block in stage] + [stage[0].downsample[0].weight]
    weights = [weight.detach().double().abs().flatten(1) for weight in summed]
    expected = sum(weight.sum(1) for weight in weights)
    assert own[figA3.NORM].tolist() == pytest.approx(expected.tolist())
    count = sum(weight.shape[1] for weight in weights)
    assert own[figA3.MEAN].tolist() == pytest.approx((expected / count).tolist())


def test_the_rest_is_figure_a2(done, table):
    assert table.drop(columns=list(NORMS)).equals(figA2.table(done))
    assert [ax.get_title() for ax in figA3.draw(done, table).axes] == ["digits, ConvNet", "ImageNet, ResNet-50", "", ""]
    assert len(figA3.claims(done, table)) == 4


def _table(part, slope, networks=4):
    """Selectivity that falls or rises with the norm, and the norm with the mean weight."""
    made = {
        "selectivity": lambda depth, noise, network: noise,
        figA3.NORM: lambda depth, noise, network: 100 + slope * noise + (noise + network) % 0.1,
        figA3.MEAN: lambda depth, noise, network: 100 - slope * noise + (noise + network) % 0.1,
    }
    return units(part, networks, seed=3, **made)


@pytest.mark.parametrize(("slope", "verdicts"), [(-1, [HOLDS, FAILS]), (1, [FAILS, HOLDS]), (0, [FAILS, FAILS])])
def test_the_claim_of_cifar10_holds_only_of_what_falls(slope, verdicts):
    found = figA3.claims(STAND_IN, _table("CIFAR-10", slope))
    assert [claim.verdict for claim in found] == [*verdicts, UNTESTABLE, UNTESTABLE]
    assert [claim.reason for claim in found[2:]] == ["needs ImageNet"] * 2
    assert "L1 norm and" in found[0].claim
    assert "mean absolute weight" in found[1].claim


@pytest.mark.parametrize(("slope", "verdict"), [(-1, FAILS), (1, FAILS), (0, HOLDS)])
def test_the_claim_of_imagenet_holds_only_where_there_is_none(slope, verdict):
    table = pd.concat([_table("CIFAR-10", -1), _table("ImageNet", slope, networks=1)])
    assert [claim.verdict for claim in figA3.claims(STAND_IN, table)[2:]] == [verdict, verdict]


def test_the_figure_has_selectivity_above_the_norm():
    table = _table("CIFAR-10", -1)
    above, below = figA3.draw(STAND_IN, table).axes
    assert (above.get_xlabel(), above.get_ylabel()) == ("L1 norm of the filter", "class selectivity")
    drawn = above.collections[0].get_offsets()
    assert sorted(drawn[:, 0]) == pytest.approx(sorted(table[figA3.NORM]))
    assert sorted(drawn[:, 1]) == pytest.approx(sorted(table.selectivity))
    assert len(below.containers) == 6
