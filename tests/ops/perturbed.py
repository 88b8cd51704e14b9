"""perturb by its definition: one configuration and one unit at a time; only the draws come from the package."""

import math

import torch
from torch import Tensor

from sdkernels.ops.random_stream import IMPLEMENTATIONS


def perturbed(
    x: Tensor,  # [N, ...] or [K, N, ...]
    ablated: Tensor,  # [K, C]
    value: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    sigma: Tensor | None = None,
    seed: int = 0,
    configurations: Tensor | None = None,
    examples: Tensor | None = None,
    site: int = 0,
    per_map: bool = False,
    unit_dim: int = 1,
    shared: bool = True,
) -> Tensor:  # [K, N, ...]
    """All arguments as :func:`sdkernels.ops.perturb` takes them, on the CPU."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    examples_shape = x.shape if shared else x.shape[1:]
    example = examples_shape[1:]
    if sigma is not None:
        elements = example[unit_dim - 1] if per_map else math.prod(example)
        draws = IMPLEMENTATIONS["reference"](examples, configurations, torch.tensor(seed), 2, elements, site)
    y = x.new_empty(len(ablated), *examples_shape)
    for k, c in ((k, c) for k in range(len(ablated)) for c in range(example[unit_dim - 1])):
        unit = (x if shared else x[k]).select(unit_dim, c)  # [N, ...]
        if ablated[k, c]:
            unit = value.expand(example).select(unit_dim - 1, c).expand_as(unit)
        else:
            if scale is not None:
                unit = unit.to(wide) * scale[c]
                unit = unit + shift[c]
            if relu:
                unit = torch.where(unit < 0, 0, unit)
        if sigma is not None and sigma[k, c] != 0:
            # element (a C + c) B + b of an example: its place in logical order
            normal = draws[k, :, c] if per_map else draws[k].view(examples_shape).select(unit_dim, c)
            noise = sigma[k, c] * normal.to(wide)
            unit = unit.to(wide) + noise.view(-1, *[1] * (unit.ndim - 1)) if per_map else unit.to(wide) + noise
        y[k].select(unit_dim, c).copy_(unit)
    return y
