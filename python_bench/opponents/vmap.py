"""``torch.func.vmap`` over the masks of many configurations."""

import warnings

import torch
from torch import Tensor

from python_bench.opponents.task import Scores, Setting, Task, correct_and_loss, like_units


def vmap_configurations(task: Task, setting: Setting) -> Scores:
    """One vectorised forward pass for a chunk of configurations that first ablate the same layer.

    Hooks multiply by the masks that are being mapped over. What lies above the first of them has no mapped dimension,
    so vmap runs it once a chunk.
    """
    masks, groups, ablated = task.masks(), task.groups(), task.by_layer()
    correct, loss = task.no_scores()
    current: dict[str, Tensor] = {}
    handles = [
        task.model.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, out, layer=layer: (
                out * like_units(current[layer], out) if layer in current else None
            )
        )
        for layer in task.layers
    ]
    with torch.no_grad(), warnings.catch_warnings():
        # vmap says so where it runs an operation as a loop, as with channels-last maps; tuning finds what is faster
        warnings.filterwarnings("ignore", message="There is a performance drop")
        for x, y in task.batches(setting.examples):

            def score(given: dict[str, Tensor], x: Tensor = x, y: Tensor = y) -> tuple[Tensor, Tensor]:
                current.clear()
                current.update(given)
                more_correct, more_loss = correct_and_loss(task.model(x)[None], y)
                return more_correct[0], more_loss[0]

            for layer, members in groups.items():
                there = members.to(x.device)
                touched = [name for name in task.layers if ablated[name][members].any()]
                if layer is None:
                    more = score({})
                else:
                    mapped = torch.func.vmap(score, chunk_size=setting.configurations)
                    more = mapped({name: masks[name][there] for name in touched})
                correct[there] += more[0]
                loss[there] += more[1]
    for handle in handles:
        handle.remove()
    return task.scores(correct, loss)
