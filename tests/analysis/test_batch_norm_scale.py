"""batch_norm_scale: the scales as they stand in the modules, whichever way leads to them."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdkernels.analysis.weight_scores import batch_norm_scale
from tests.analysis.wired import Wired
from tests.engine.networks import with_lively_batch_norm
from tests.engine.zoo import ZOO, build


@pytest.fixture
def wired(seeds_torch):
    model = with_lively_batch_norm(Wired())
    return SimpleNamespace(model=model, inputs=torch.randn(14, 2, 11, 11).double())


def test_batch_norm_scales(wired):
    m, inputs = wired.model, wired.inputs
    m.bn1.weight.data[1] *= -1
    m.bn2.weight.data[5] *= -1
    found = batch_norm_scale(m, ["relu1", "bn2"], inputs)
    assert torch.equal(found.values, torch.cat([m.bn1.weight, m.bn2.weight]).detach().abs())
    assert found.name == "batch norm scale"
    signed = batch_norm_scale(m, ["relu1", "bn2"], inputs, signed=True)
    assert torch.equal(signed.values, torch.cat([m.bn1.weight, m.bn2.weight]).detach())
    assert batch_norm_scale(m, "bn3", inputs).values.tolist() == [1] * 4  # affine=False
    with pytest.raises(ValueError, match=r"layer 'stem': no batch norm stands between it and node 'stem'"):
        batch_norm_scale(m, "stem", inputs)
    with pytest.raises(ValueError, match=r"layer 'act3': unit 0 is a sum behind several batch norms, node 'bn\d'"):
        batch_norm_scale(m, "act3", inputs)
    with pytest.raises(ValueError, match=r"layer 'joined': no batch norm stands between it and node 'grouped'"):
        batch_norm_scale(m, "joined", inputs)


def test_batch_norm_scales_of_branches():
    model, (inputs, _) = build(ZOO["inception"])
    expected = torch.cat([model.branch1[1].weight, model.branch3[1][1].weight, model.branch_double[2][1].weight])
    found = batch_norm_scale(model, ["branch1", "branch3", "branch_double"], inputs)
    assert torch.equal(found.values, expected.detach())


class Normed(nn.Module):
    """Two batch norms as functions, one of them without weights, joined and flattened."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.flat, self.out = (
            nn.Conv1d(2, 3, 1),
            nn.Conv1d(2, 2, 1),
            nn.Identity(),
            nn.Linear(20, 2),
        )
        self.gamma, self.beta = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        for channels in (2, 3):
            self.register_buffer(f"mean{channels}", torch.randn(channels))
            self.register_buffer(f"variance{channels}", torch.rand(channels) + 0.5)

    def forward(self, x):
        left = F.batch_norm(self.left(x), self.mean3, self.variance3, self.gamma, self.beta)
        right = F.batch_norm(self.right(x), self.mean2, self.variance2)
        return self.out(self.flat(torch.cat([left, right], 1).relu().flatten(1)))


def test_batch_norm_as_a_function(seeds_torch):
    model, inputs = Normed().double().eval(), torch.randn(3, 2, 4).double()
    expected = torch.cat([model.gamma.detach(), torch.ones(2).double()]).repeat_interleave(4)
    assert torch.equal(batch_norm_scale(model, "flat", inputs, signed=True).values, expected)
