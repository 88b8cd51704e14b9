"""captum's ``LayerFeatureAblation``, a unit a feature."""

import torch
import torch.nn.functional as F
from torch import Tensor

from python_bench.opponents.task import Scores, Setting, Task

# captum gives one number an example and feature, f(x) - f(ablated x). So that counts and losses both come out of it,
# f is loss + STEP * correct in float64: losses are below STEP / 2, and keep ten digits beside it.
STEP = 2.0**16


def expressible(task: Task) -> bool:
    """Whether every configuration is one unit alone."""
    return bool((task.ablated.sum(1) == 1).all())


def evaluations(task: Task) -> int:
    """Forward passes over the data: a unit each, for a layer two intact ones, and one for all units not asked for."""
    layers = [units.any(0) for units in task.by_layer().values() if units.any()]
    return len(task.ablated) + sum(2 + (not bool(asked.all())) for asked in layers)


def captum_ablation(task: Task, setting: Setting) -> Scores:
    """Every unit of ``task.ablated`` by itself; ``perturbations_per_eval`` is the number of configurations."""
    from captum.attr import LayerFeatureAblation

    if not expressible(task):
        raise ValueError("captum ablates features one by one")
    correct, loss = task.no_scores()

    def forward(x: Tensor, y: Tensor) -> Tensor:
        logits = task.model(x)
        return F.cross_entropy(logits, y, reduction="none").double() + STEP * (logits.argmax(1) == y)

    with torch.no_grad():
        for x, y in task.batches(setting.examples):
            intact = forward(x, y)
            for layer, ablated in task.by_layer().items():
                configurations = ablated.any(1).nonzero()[:, 0]  # those of this layer
                if not len(configurations):
                    continue
                units = ablated[configurations].int().argmax(1)
                features = torch.zeros(ablated.shape[1], dtype=torch.int64)
                features[units] = torch.arange(1, len(units) + 1)  # 0: all other units, at once
                shape = (1, -1, *[1] * (x.ndim - 2))  # maps where inputs are maps
                attributions = LayerFeatureAblation(forward, task.model.get_submodule(layer)).attribute(
                    x,
                    layer_baselines=0,
                    additional_forward_args=(y,),
                    layer_mask=features.view(shape).to(x.device),
                    perturbations_per_eval=setting.configurations,
                )
                change = attributions.reshape(*attributions.shape[:2], -1)[..., 0]  # the same all over a map
                scores = intact[:, None] - change[:, units.to(x.device)]  # [N, units]
                right = (scores / STEP).round()
                there = configurations.to(x.device)
                correct[there] += right.sum(0).long()
                loss[there] += (scores - STEP * right).sum(0)
    return task.scores(correct, loss)
