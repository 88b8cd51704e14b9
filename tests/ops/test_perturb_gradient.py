"""perturb's gradient: by differences, against autograd through the definition, and where there is none."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sdkernels.ops import pack_mask, perturb
from tests.ops.backends import DTYPES, Backend
from tests.ops.tensors import chances, laid_out, numbers
from tests.ops.tolerances import same_bits

OP = "perturb"


def leaf(backend: Backend, t: Tensor) -> Tensor:
    return t.to(backend.device).requires_grad_()


@pytest.mark.not_interpreted
@pytest.mark.parametrize("noisy", [False, True], ids=["exact", "noisy"])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_by_differences(backend, shared, affine, relu, noisy):
    shape = (2, 3, 2)
    x = leaf(backend, numbers(shape if shared else (3, *shape), torch.float64))
    value = leaf(backend, numbers((3, 1), torch.float64, seed=1))
    ablated = chances((3, 3), 0.4).to(backend.device)
    options: dict[str, Any] = {"relu": relu, "shared": shared}
    if noisy:
        ids = {n: torch.arange(m, device=backend.device) for n, m in (("configurations", 3), ("examples", 2))}
        options |= {"sigma": torch.ones(3, 3, dtype=torch.float64, device=backend.device), "seed": 1, **ids}
    maps = [leaf(backend, numbers([3], torch.float64, seed)) for seed in (2, 3)] if affine else []

    def function(x: Tensor, value: Tensor, *maps: Tensor) -> Tensor:
        named = dict(zip(("scale", "shift"), maps, strict=True)) if maps else {}
        return perturb(x, ablated, value, **named, **options)

    with torch.random.fork_rng(devices=[]):  # gradcheck draws its directions there
        assert torch.autograd.gradcheck(function, (x, value, *maps))


def by_autograd(x, ablated, value, scale, shift, relu, shared) -> Tensor:
    """The definition of one unit dimension 1, in torch's own differentiable operations."""
    y = x * scale[:, None, None] + shift[:, None, None]
    y = y.relu() if relu else y
    return torch.where(ablated[:, None, :, None, None], value, y if not shared else y[None])


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_that_of_the_definition(backend, dtype, shared, layout):
    shape, wide = (2, 9, 2, 3), torch.float64 if dtype == torch.float64 else torch.float32
    x = numbers(shape if shared else (3, *shape), dtype)
    ablated, value = chances((3, 9), 0.4), numbers((9, 1, 1), dtype, seed=1)
    maps = [numbers([9], wide, seed) for seed in (2, 3)]
    towards = numbers((3, *shape), dtype, seed=4)
    leaves = [leaf(backend, t) for t in (laid_out(x, layout, 1 if shared else 2), value, *maps)]
    y = perturb(
        leaves[0],
        pack_mask(ablated).to(backend.device),
        leaves[1],
        scale=leaves[2],
        shift=leaves[3],
        relu=True,
        shared=shared,
    )
    found = torch.autograd.grad(y, leaves, towards.to(backend.device))
    exact = [t.double().requires_grad_() for t in (x, value, *maps)]
    z = by_autograd(exact[0], ablated, *exact[1:], True, shared)
    expected = torch.autograd.grad(z, exact, towards.double())
    for of, gradient, right in zip((x, value, *maps), found, expected, strict=True):
        assert gradient.dtype == of.dtype
        assert gradient.shape == of.shape
        # sums over up to 36 elements, in the tensor's own dtype
        error = (gradient.cpu().double() - right).abs().max() / right.abs().max()
        assert error < 4 * torch.finfo(dtype).eps


def test_clamped_inputs_and_rectified_ones_get_none(backend):
    x = leaf(backend, torch.tensor([[torch.nan, -1.0, 0.0, 2.0, torch.inf]]))
    ablated = torch.tensor([[True, False, False, False, True]], device=backend.device)
    perturb(x, ablated, torch.tensor(0.0, device=backend.device), relu=True).sum().backward()
    assert same_bits(x.grad, torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]]))


def test_is_the_same_whatever_the_noise(backend):
    ids = {n: torch.arange(m, device=backend.device) for n, m in (("configurations", 2), ("examples", 4))}
    towards, results = numbers((2, 4, 5), seed=1).to(backend.device), []
    for sigma in (0.0, 3.0):
        x, value = leaf(backend, numbers((4, 5))), leaf(backend, torch.tensor(0.5))
        noise = {"sigma": torch.full((2, 5), sigma, device=backend.device), "seed": 3, **ids}
        y = perturb(x, chances((2, 5), 0.5).to(backend.device), value, relu=True, **noise)
        results.append((y, *torch.autograd.grad(y, (x, value), towards)))
    (y, *exact), (noisy_y, *noisy) = results
    assert not torch.equal(y, noisy_y)
    assert all(same_bits(a, b) for a, b in zip(exact, noisy, strict=True))


@pytest.mark.not_interpreted
class TestRefusals:
    def test_sigma_has_none(self, backend):
        sigma = torch.ones(1, 3, device=backend.device, requires_grad=True)
        x, mask = torch.ones(2, 3, device=backend.device), torch.ones(1, 3, dtype=torch.bool, device=backend.device)
        ids = {"configurations": torch.tensor([0]), "examples": torch.tensor([0, 1])}
        ids = {name: t.to(backend.device) for name, t in ids.items()}
        with pytest.raises(RuntimeError, match="sigma has no gradient; detach it"):
            perturb(x, mask, x.new_zeros(()), sigma=sigma, seed=0, **ids)
        with torch.no_grad():
            perturb(x, mask, x.new_zeros(()), sigma=sigma, seed=0, **ids)

    @pytest.mark.parametrize("name", ["x", "value", "scale", "shift", "out"])
    def test_out_has_none(self, backend, name):
        case = {
            "x": torch.ones(2, 3, device=backend.device),
            "ablated": torch.ones(1, 3, dtype=torch.bool, device=backend.device),
            "value": torch.zeros((), device=backend.device),
            "scale": torch.ones(3, device=backend.device),
            "shift": torch.ones(3, device=backend.device),
            "out": torch.zeros(1, 2, 3, device=backend.device),
        }
        case[name].requires_grad_()
        with pytest.raises(RuntimeError, match=r"out= has no gradient; call it under torch\.no_grad"):
            perturb(**case)
        with torch.no_grad():
            perturb(**case)
