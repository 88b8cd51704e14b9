"""What each example's target logit loses without a unit [N, K]: captum, and a loop of hooks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from python_bench.opponents.task import Setting, Task, like_units


def hook_attributions(task: Task, _setting: Setting) -> Tensor:
    """The whole network on all examples once a unit."""
    (layer,) = task.layers
    module, targets = task.model.get_submodule(layer), task.labels[:, None]
    lost = []
    with torch.no_grad():
        intact = task.model(task.inputs).gather(1, targets)
        for mask in task.masks()[layer]:
            handle = module.register_forward_hook(lambda _module, _inputs, out, mask=mask: out * like_units(mask, out))
            lost.append(intact - task.model(task.inputs).gather(1, targets))
            handle.remove()
    return torch.cat(lost, 1)


def captum_attributions(task: Task, setting: Setting) -> Tensor:
    """captum's ``LayerFeatureAblation`` of all examples; ``perturbations_per_eval`` is the number of configurations.

    The targets come as an argument of the forward function: its own ``target=`` takes different ones only for one
    configuration at a time.
    """
    from captum.attr import LayerFeatureAblation

    def target_logits(x: Tensor, y: Tensor) -> Tensor:
        return task.model(x).gather(1, y[:, None])[:, 0]

    (layer,) = task.layers
    units = task.ablated.int().argmax(1)
    features = torch.zeros(task.widths[0], dtype=torch.int64)
    features[units] = torch.arange(1, len(units) + 1)  # 0: all other units, at once
    attributions = LayerFeatureAblation(target_logits, task.model.get_submodule(layer)).attribute(
        task.inputs,
        layer_baselines=0,
        additional_forward_args=(task.labels,),
        layer_mask=features.view(1, -1, *[1] * (task.inputs.ndim - 2)).to(task.inputs.device),
        perturbations_per_eval=setting.configurations,
    )
    return attributions.flatten(2)[..., 0][:, units] if attributions.ndim > 2 else attributions[:, units]


ATTRIBUTIONS: Mapping[str, Callable[[Task, Setting], Tensor]] = {
    "hook loop": hook_attributions,
    "captum": captum_attributions,
}
