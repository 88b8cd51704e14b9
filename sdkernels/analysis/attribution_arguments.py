"""The arguments of an attribution, as captum's users give them: targets, baselines, masks."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.arguments import dense, whole_number
from sdkernels.engine.batches import INTEGER_DTYPES
from sdkernels.engine.sites import Site

Target = int | list[int] | Tensor | None


@dataclass(frozen=True)
class Baselines:
    """What units are clamped to.

    Attributes:
        value: float64 on the model's device; broadcasts to one example, or, by example, to all ``[N, *example]``.
        by_example: whether each example has its own.
    """

    value: Tensor
    by_example: bool


def check_target(target: Target, examples: int, classes: int, device: torch.device) -> Tensor:
    """int64 [N]: the logit of each example.

    Raises:
        ValueError: none given though there are several logits, another number of targets than of examples, one out of
            range; names the example.
        TypeError: something else than integers.
    """
    wanted = f"a class 0..{classes - 1}, or one for each of the {examples} examples"
    if target is None:
        if classes > 1:
            raise ValueError(f"the model gives {classes} logits; say by target= which counts: {wanted}")
        target = 0
    try:
        targets = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"target is a {type(target).__name__}; give {wanted} ({error})") from error
    if targets.dtype not in INTEGER_DTYPES:
        raise TypeError(f"target is {targets.dtype}; give integers: {wanted}")
    if targets.ndim > 1 or targets.numel() not in (1, examples):
        raise ValueError(f"target is {list(targets.shape)}; give {wanted}")
    targets = targets.detach().to(device, torch.int64).flatten()
    wrong = ((targets < 0) | (targets >= classes)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        whose = "" if len(targets) == 1 else f" of example {at}"
        raise ValueError(
            f"target {int(targets[at])}{whose} is out of range: the model gives {classes} logits, 0..{classes - 1}"
        )
    return targets.expand(examples)


def check_baselines(given: Any, site: Site, examples: int, device: torch.device) -> Baselines:
    """A number, a value a unit, one an element, or any of these by example.

    Raises:
        ValueError: a tensor that does not fit.
        TypeError: something else than a number or a tensor.
    """
    if given is None:  # captum's word for zero
        given = 0.0
    if not isinstance(given, (bool, Tensor)) and isinstance(given, Real):
        return Baselines(torch.tensor(float(given), dtype=torch.float64, device=device), False)
    if not isinstance(given, Tensor) or given.dtype == torch.bool or given.is_complex():
        found = f"a {given.dtype} tensor" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise TypeError(f"layer_baselines is {found}; give a number or a real tensor")
    value = dense("layer_baselines", given).detach().to(device, torch.float64)
    if value.shape == (site.units,):
        return Baselines(value.view(site.per_unit), False)
    shape = (examples, *site.example_shape)
    if not _fits(value, shape):
        raise ValueError(
            f"layer_baselines {list(value.shape)} for layer {site.name!r} fits neither its units [{site.units}], nor "
            f"one example {list(site.example_shape)}, nor all {list(shape)}"
        )
    if value.ndim < len(shape):
        return Baselines(value, False)
    return Baselines(value, True) if len(value) > 1 or examples == 1 else Baselines(value[0], False)


def check_groups(layer_mask: Tensor | None, site: Site) -> Tensor | None:
    """int64 [U]: the group of each unit, from 0 on; None where each unit is a group of its own.

    Raises:
        ValueError: a mask that does not fit the layer, or that parts a unit.
        TypeError: no tensor of integers.
    """
    if layer_mask is None:
        return None
    if not isinstance(layer_mask, Tensor) or layer_mask.dtype not in INTEGER_DTYPES:
        found = layer_mask.dtype if isinstance(layer_mask, Tensor) else f"a {type(layer_mask).__name__}"
        raise TypeError(f"layer_mask is {found}; give an integer tensor, the number of the group of each unit")
    mask = layer_mask.detach().cpu().long()
    numbers = mask if mask.shape == (site.units,) else _a_unit(mask, site)
    found, groups = numbers.unique(return_inverse=True)
    return None if len(found) == site.units else groups


def _a_unit(mask: Tensor, site: Site) -> Tensor:
    """int64 [U]: the number that a mask has all over each unit."""
    shape = site.example_shape
    one = mask[0] if mask.ndim == len(shape) + 1 and len(mask) == 1 else mask
    if not _fits(one, shape):
        raise ValueError(
            f"layer_mask {list(mask.shape)} for layer {site.name!r} fits neither its units [{site.units}] nor one "
            f"example {list(shape)}, which is masked as all others are"
        )
    by_unit = one.expand(shape).movedim(site.unit_dim - 1, 0).reshape(site.units, -1)
    parted = (by_unit != by_unit[:, :1]).any(1).nonzero()
    if len(parted):
        raise ValueError(
            f"layer_mask has several groups within unit {int(parted[0])} of layer {site.name!r} {list(shape)}: whole "
            "units are ablated here, so give a number a unit; captum.attr.LayerFeatureAblation ablates parts of one"
        )
    return by_unit[:, 0]


def _fits(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor broadcasts to a shape."""
    try:
        tensor.expand(shape)
    except RuntimeError:
        return False
    return True


def check_perturbations(given: Any) -> int | None:
    """How many configurations share a pass; None leaves the choice.

    Raises:
        ValueError: neither ``"auto"`` nor a positive int.
    """
    if isinstance(given, str) and given == "auto":
        return None
    return whole_number("perturbations_per_eval", given, 1, what="'auto' or a positive int")
