"""What a clamped unit becomes: a number, a mean over a data set, a tensor, or one of them by layer."""

from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from sdkernels.engine.batches import Batches
from sdkernels.engine.sites import Site, watch

SiteValue = float | str | Tensor
Value = SiteValue | Mapping[str, SiteValue]

MEANS = ("mean", "element_mean")


def resolve_values(value: Value, sites: Sequence[Site], model: nn.Module, batches: Batches) -> list[Tensor]:
    """For each site, a float64 tensor that broadcasts to one example of its output.

    ``"mean"`` is each unit's mean over the examples and positions of ``batches``; ``"element_mean"`` keeps positions
    apart. Both are summed in float64 in one pass.

    Raises:
        ValueError: an unknown word, a tensor that does not fit its site, a dict that misses or invents a layer.
    """
    by_site = [_pick(value, site, sites) for site in sites]
    needs_mean = [i for i, v in enumerate(by_site) if isinstance(v, str)]
    element_means = dict(
        zip(needs_mean, _element_means([sites[i] for i in needs_mean], model, batches), strict=True)
        if needs_mean
        else ()
    )
    device = next(iter(element_means.values())).device if element_means else None
    return [
        _as_tensor(v, site, element_means.get(i), device)
        for i, (v, site) in enumerate(zip(by_site, sites, strict=True))
    ]


def describe_value(value: Value) -> str:
    """One line for reports: the word, the number, or the shape."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {describe_value(v)}" for name, v in value.items()) + "}"
    return f"tensor {list(value.shape)}" if isinstance(value, Tensor) else str(value)


def _pick(value: Value, site: Site, sites: Sequence[Site]) -> SiteValue:
    if isinstance(value, Mapping):
        names = {s.name for s in sites}
        if set(value) != names:
            raise ValueError(f"value is a dict of {sorted(value)}; it must name the layers {sorted(names)}, each once")
        value = value[site.name]
    if isinstance(value, str) and value not in MEANS:
        raise ValueError(f"value={value!r} for layer {site.name!r}: the words are {' and '.join(map(repr, MEANS))}")
    if not isinstance(value, (str, Real, Tensor)):
        raise TypeError(f"value for layer {site.name!r} is a {type(value).__name__}; give a number, a word or a tensor")
    return value


def _as_tensor(value: SiteValue, site: Site, element_mean: Tensor | None, device: torch.device | None) -> Tensor:
    per_unit = [1] * len(site.example_shape)
    per_unit[site.unit_dim - 1] = site.units
    if element_mean is not None:
        if value == "element_mean":
            return element_mean
        positions = [d for d in range(element_mean.ndim) if d != site.unit_dim - 1]
        return element_mean.mean(positions, keepdim=True) if positions else element_mean
    number_or_tensor = value if isinstance(value, Tensor) else float(value)
    tensor = torch.as_tensor(number_or_tensor, dtype=torch.float64)
    if device is not None:
        tensor = tensor.to(device)
    if tensor.shape == (site.units,):
        return tensor.view(per_unit)
    try:
        tensor.expand(site.example_shape)
    except RuntimeError as error:
        raise ValueError(
            f"value {list(tensor.shape)} for layer {site.name!r} fits neither its units [{site.units}] nor its output "
            f"{list(site.example_shape)}"
        ) from error
    return tensor


def _element_means(sites: Sequence[Site], model: nn.Module, batches: Batches) -> list[Tensor]:
    sums: list[Tensor | None] = [None] * len(sites)
    examples = 0

    def add(index: int, output: Tensor) -> None:
        total = output.sum(0, dtype=torch.float64)
        sums[index] = total if (so_far := sums[index]) is None else so_far + total

    with torch.no_grad(), watch(model, sites, add):
        for inputs, labels in batches:
            model(inputs.clone())  # a model may write into its inputs
            examples += len(labels)
    means = [total / examples for total in sums if total is not None]
    for site, mean in zip(sites, means, strict=True):
        if not mean.isfinite().all():
            wrong = int((~mean.isfinite()).sum())
            raise ValueError(f"layer {site.name!r}: {wrong} of {mean.numel()} means are not finite; look at the data")
    return means
