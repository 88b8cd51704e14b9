"""Figure A3: class selectivity against the L1 norm of the filter."""

import copy
from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sdkernels.analysis.weight_scores import weight_norm
from sdkernels.lab.models import layer_names
from sdkernels.lab.sweep import Networks
from sdkernels.lab.sweep.data import true_data
from sdkernels.paper.claims import Claim, untestable
from sdkernels.paper.directions import figA2
from sdkernels.paper.directions.figA2 import Options, sweeps
from sdkernels.paper.directions.parts import CHOICES, NEEDS, WITHOUT, cifar10_part, imagenet_part
from sdkernels.paper.directions.relations import MARGIN, claim_relation, draw_by_layer, draw_units, relate
from sdkernels.paper.drawing import new_figure
from sdkernels.paper.frames import trained
from sdkernels.paper.recipe import PRESETS, Done, Recipe

NORM, MEAN = "l1_norm", "mean_absolute_weight"


def table(done: Done[Options]) -> pd.DataFrame:
    """One row a unit of each network of each part."""
    norms = [_norms(found, done.options.parts[name].layers) for name, found in done.networks.items()]
    return pd.concat([figA2.table(done), pd.concat(norms, ignore_index=True)], axis=1)


def draw(done: Done[Options], table: pd.DataFrame) -> Figure:
    """Above, selectivity against the norm, a point a unit; below, their correlation within each layer."""
    names = list(table.part.unique())
    figure, axes = new_figure(len(names), 2, height=2.6, width=3.6)
    for column, name in enumerate(names):
        above, below = axes[:, column]
        rows = table[table.part == name]
        draw_units(above, rows[~rows.dead], NORM, "selectivity")
        above.set(title=done.options.parts[name].title, ylabel=done.options.selectivity.words)
        above.set(xscale="log", xlabel="L1 norm of the filter")
        above.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        above.xaxis.set_minor_formatter(NullFormatter())
        draw_by_layer(below, relate(rows, NORM, "selectivity"))
    return figure


def claims(done: Done[Options], table: pd.DataFrame) -> list[Claim]:
    """A negative correlation in the ConvNet, and none in ResNet-50; by the norm, and by the mean weight."""
    parts = {str(name): rows for name, rows in table.groupby("part", sort=False)}
    return [_claim(name, parts.get(name), column) for name in done.options.parts for column in (NORM, MEAN)]


def _claim(name: str, rows: pd.DataFrame | None, column: str) -> Claim:
    is_negative = name == "CIFAR-10"
    size = "L1 norm" if column == NORM else "mean absolute weight (the L1 norm less its growth with fan-in)"
    what = (
        "the larger a filter, the less selective its feature map"
        if is_negative
        else "a filter's size says little of its feature map's selectivity"
    )
    claim = f"{name}: {what}: rank correlation of {size} and selectivity"
    published = "negative (shown)" if is_negative else "none (shown)"
    if rows is None:
        return untestable(claim, WITHOUT, published)
    how = {"sign": -1} if is_negative else {"margin": MARGIN}
    return claim_relation(relate(rows, column, "selectivity"), claim=claim, published=published, **how)


def _norms(networks: Networks, layers: Sequence[str]) -> pd.DataFrame:
    """Of every unit of each network, as the table has them, the norm of its weights, and that over their number."""
    frames = []
    for index in trained(networks):
        model = networks.model(index)
        shape = true_data(networks.sweep.networks[index], networks.data_dir).shape
        counted = copy.deepcopy(model)
        with torch.no_grad():
            for weight in counted.parameters():
                weight.fill_(1.0)
        sums, counts = (
            weight_norm(one, layer_names(one, layers), torch.zeros(2, *shape), p=1).values.numpy()
            for one in (model, counted)
        )
        frames.append(pd.DataFrame({NORM: sums, MEAN: sums / counts}))
    return pd.concat(frames, ignore_index=True)


FIGA3 = Recipe(
    "figA3",
    "Class selectivity against the L1 norm of the filter (Morcos et al. 2018, figure A3)",
    {preset: Options(cifar10_part(preset), imagenet_part(preset)) for preset in PRESETS},
    sweeps,
    table,
    draw,
    claims,
    {
        **CHOICES,
        "L1 norm": "of the weights that make a feature map, without bias, and without the scale of the batch norm that "
        "follows; of ResNet-50's blocks, of all convolutions that are summed there. It grows with the number of "
        "weights, and so with depth: a second claim divides it by that number",
    },
    NEEDS,
)
