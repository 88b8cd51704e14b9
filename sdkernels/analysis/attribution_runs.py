"""Run a layer's ablations, prepared once, on any number of inputs of one shape: what the targets' logits lose."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from sdkernels.analysis.attribution_arguments import Baselines
from sdkernels.engine.batches import Batch, Batches
from sdkernels.engine.checks import PROBE_EXAMPLES, check_finite, check_repeatable
from sdkernels.engine.families import Sets, Singles
from sdkernels.engine.graph import UntraceableError
from sdkernels.engine.job import Job
from sdkernels.engine.loop import changed_logits, clamping
from sdkernels.engine.memory import is_out_of_memory, memory_limit
from sdkernels.engine.runner import prepare
from sdkernels.engine.sites import Site
from sdkernels.engine.tiles import TileRun
from sdkernels.engine.values import Clamp

# The part of the device's memory that tensors may take beyond the model and the inputs.
MEMORY_FRACTION = 0.5

# Examples a pass where a model runs by hooks.
LOOP_EXAMPLES = 256

Logits = Iterator[tuple[Tensor, Tensor]]  # configurations [k], and their logits [k, N, L], run by run


@dataclass
class Ready:
    """A layer's ablations, ready to run on any number of inputs of one shape."""

    site: Site
    family: Singles | Sets
    tiles: TileRun | None  # None: the model runs by hooks
    size: int  # examples at once
    probed: int  # examples that it was prepared on


def prepared(
    model: nn.Module,
    site: Site,
    x: Tensor,
    baselines: Baselines,
    groups: Tensor | None,
    per_pass: int | None,
) -> tuple[Ready, list[str]]:
    """A run that was held against hooks on the first examples, and what the user should know about it."""
    inputs = x[:PROBE_EXAMPLES]
    probe = _batch(inputs, torch.arange(len(inputs), device=x.device))
    logits = model(inputs.clone())  # a model may write into its inputs
    check_repeatable(model, inputs, logits)
    clamp = _clamp(baselines, slice(len(inputs)))
    limit = memory_limit(x.device, MEMORY_FRACTION)
    family: Singles | Sets = Singles((site.units,))
    if groups is not None:
        family = Sets(groups == torch.arange(int(groups.max()) + 1)[:, None], (site.units,))
    batches = Batches((inputs, probe.labels), batch_size=len(inputs), device=x.device)
    job = Job(model, [site], batches, family, [clamp], (), probe, logits, lambda _done: None)
    try:
        tiles = prepare(job, probe, logits, per_pass)
        budget = tiles.budget(probe, limit, are_counted=False)
    except UntraceableError as error:
        remark = f"{type(model).__name__} runs as a hook loop, the slow way, because {error}"
        return Ready(site, family, None, LOOP_EXAMPLES, len(inputs)), [remark]
    remarks = []
    if tiles.graph.sites[0] is None:
        remarks.append(f"the logits do not depend on layers {[site.name]}: ablating them does nothing")
    return Ready(site, family, tiles, budget.tile(x.device), len(inputs)), remarks


def run(
    model: nn.Module,
    ready: Ready,
    x: Tensor,
    targets: Tensor,
    baselines: Baselines,
    advance: Callable[[int], None],
) -> Tensor:
    """What the targets' logits lose in each configuration, [K, N]."""
    lost: Tensor | None = None
    start = 0
    logits_of = partial(_loop_logits, model) if ready.tiles is None else partial(_tile_logits, ready.tiles)

    def fits(part: slice) -> bool:
        """Run a tile, all of it or nothing: what memory runs out on leaves no trace, and holds none."""
        nonlocal lost
        count, done = part.stop - part.start, 0
        try:
            intact, runs = logits_of(ready, x, part, baselines)
            if lost is None:
                lost = intact.new_empty(ready.family.configurations, len(x))
            examples = torch.arange(count, device=x.device)
            whole = intact[examples, targets[part]]
            for configurations, logits in runs:
                lost[configurations.to(x.device), part] = whole - logits[:, examples, targets[part]]
                done += count * len(configurations)
                advance(count * len(configurations))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if count == 1:
                raise MemoryError(
                    f"memory ran out on one example ({error}); where perturbations_per_eval is given, a lower one "
                    "takes less"
                ) from error
            if ready.tiles is not None:
                ready.tiles.halve_spare()
            advance(-done)
            return False
        return True

    while start < len(x):
        part = slice(start, min(start + ready.size, len(x)))
        if fits(part):
            start = part.stop
        else:
            ready.size = (part.stop - part.start + 1) // 2
    assert lost is not None  # noqa: S101 - there are inputs
    return lost


def _tile_logits(tiles: TileRun, ready: Ready, x: Tensor, part: slice, baselines: Baselines) -> tuple[Tensor, Logits]:
    """The intact model's logits [N, L], and those of every configuration, by the graph."""
    site = ready.site

    def look(_index: int, _mark: fx.Node, activation: Tensor) -> Tensor:
        check_finite(site.name, activation, part.start)
        return activation

    inputs = x[part]
    tile = tiles.intact(_batch(inputs, torch.zeros(len(inputs), dtype=torch.int64, device=x.device)), look)
    if baselines.by_example and tiles.graph.sites[0] is not None:  # those of the examples that it was prepared on
        own = baselines.value[part].to(tile.clamped[0])
        tile = tile._replace(clamped=[own.expand(len(inputs), *site.example_shape)])
    return tile.logits, tiles.logits(tile)


def _loop_logits(model: nn.Module, ready: Ready, x: Tensor, part: slice, baselines: Baselines) -> tuple[Tensor, Logits]:
    """The same by hooks."""
    site, inputs = ready.site, x[part]
    calls = [site.hooked]
    batch = _batch(inputs, torch.arange(len(inputs), device=x.device))
    change_of = clamping(model, calls, ready.family.ablated(slice(None)), [_clamp(baselines, part)])
    intact = changed_logits(model, calls, inputs, lambda _index, out: check_finite(site.name, out, part.start))

    def runs() -> Logits:
        for k in range(ready.family.configurations):
            yield torch.tensor([k]), changed_logits(model, calls, inputs, change_of(k, batch))[None]

    return intact, runs()


def _batch(inputs: Tensor, labels: Tensor) -> Batch:
    places = torch.arange(len(inputs))
    return Batch(inputs, labels, places, places)


def _clamp(baselines: Baselines, part: slice) -> Clamp:
    """Of some examples, whose labels are their numbers where each has a value of its own."""
    return Clamp(baselines.value[part], "class") if baselines.by_example else Clamp(baselines.value)
