"""``auto`` equals ``loop`` on random networks with random ablations.

``SDKERNELS_CASES=10000 pytest tests/engine/test_generated.py`` tries that many.
"""

import os
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.engine import products
from tests.engine.calls import calls_of
from tests.engine.compare import assert_same, assert_same_but_for_rounding, left_as_they_were
from tests.engine.generated import CASES, Case, build, resolve

NUMBER = int(os.environ.get("SDKERNELS_CASES", "200"))
METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")
# That a network runs as a hook loop is an error: every generated one can be traced.
QUIET = (
    "ignore:ablating units of:sdkernels.SdkernelsWarning",  # random networks may be dead
    "ignore:the logits do not depend:sdkernels.SdkernelsWarning",
)
SETTINGS = {
    "phases": [phase for phase in Phase if phase is not Phase.explain],  # a shrunk case explains itself
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def run(
    case: Case, model: nn.Module, data: tuple[Tensor, Tensor], layers: list[str], units: int, **options: Any
) -> Any:
    """The case's ablation of ``model``."""
    kind, *how = case.family
    if kind == "singles":
        return sd.unit_importance(model, layers, data, **options)
    if kind == "sets":
        generator = torch.Generator().manual_seed(case.seed)
        chance = torch.rand(how[0], 1, generator=generator) * 1.4 - 0.2  # at times nothing, at times everything
        return sd.ablate(model, layers, data, units=torch.rand(how[0], units, generator=generator) < chance, **options)
    if kind == "noise":
        own = {name: given for name, given in options.items() if name not in ("value", "within", "configs_per_batch")}
        scales = {"scales": [0.0, 0.5, 2.0], "repeats": 2, "common_random_numbers": how[0], "per_map": how[1]}
        return sd.noise_robustness(model, layers, data, seed=case.seed, **scales, **own)
    if kind == "directions":
        return along_directions(case, model, data, layers, **options)
    orders, points = how
    points = [min(points[0], units)] if isinstance(points, tuple) else points
    return sd.cumulative_ablation(model, layers, data, orders=orders, points=points, seed=case.seed, **options)


def along_directions(
    case: Case, model: nn.Module, data: tuple[Tensor, Tensor], layers: list[str], **options: Any
) -> Any:
    """A few random directions of every layer; numbers and words are values of coordinates as of units."""
    _, how, most = case.family
    shapes = calls_of(model, data[0])
    channels = {layer: shapes[layer][options["unit_dim"][layer] - 1] for layer in layers}
    bases = {a: sd.random_directions(c, min(c, most), seed=case.seed) for a, c in channels.items()}
    given = options["value"]
    value = {a: 0.4 if isinstance(v, Tensor) else v for a, v in given.items()} if isinstance(given, dict) else given
    options |= {"value": value, "directions": bases, "seed": case.seed}
    if how == "orders":
        options |= {"orders": 2, "points": "all"}
    elif how == "subspaces":
        total = sum(map(len, bases.values()))
        options |= {"subspaces": [[], [0], range(total), range(0, total, 2)]}
    return sd.ablate_directions(model, layers, data, **options)


def both_ways(case: Case, model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
    """What ``auto`` gives, cut into tiles as the case has it, and what ``loop`` gives."""
    layers, unit_dim, counts, value = resolve(case, model, data[0])
    note(f"layers {layers}, units {counts}")
    options = {"value": value, "within": case.within, "unit_dim": unit_dim, "metrics": METRICS, "outcomes": True}
    tiles = {"batch_size": case.batch_size, "configs_per_batch": case.configs_per_batch}
    with pytest.MonkeyPatch.context() as patch, left_as_they_were(model, data[0]):
        patch.setenv("SDKERNELS_BACKEND", case.backend)
        engine = [module for name, module in sys.modules.items() if name.startswith("sdkernels.engine.")]
        tiled = [module for module in engine if hasattr(module, "WORKING_SET")]
        assert tiled
        for module in tiled:
            patch.setattr(module, "WORKING_SET", {"cpu": case.working_set})
        if case.winograd:
            patch.setattr(products, "FEWEST_CHANNELS", 1)
            patch.setattr(products, "LARGEST_SHARE", 100.0)
        auto = run(case, model, data, layers, sum(counts), **tiles, **options)
    return auto, run(case, model, data, layers, sum(counts), method="loop", **options)


@pytest.mark.filterwarnings(*QUIET)
@settings(max_examples=NUMBER, **SETTINGS)
@given(CASES)
def test_generated(case):
    model, data = build(case)
    note(str(model))
    assert_same(*both_ways(case, model, data))


@pytest.mark.filterwarnings(*QUIET)
@settings(max_examples=max(1, NUMBER // 5), **SETTINGS)
@given(CASES)
def test_generated_in_float32(case):
    model, (inputs, labels) = build(case, standard=False)
    assert_same_but_for_rounding(*both_ways(case, model.float(), (inputs.float(), labels)))
