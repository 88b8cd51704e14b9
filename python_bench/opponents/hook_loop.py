"""The loop around forward hooks that most studies are written with."""

import torch

from python_bench.opponents.task import Scores, Setting, Task, correct_and_loss, like_units


def hook_loop(task: Task, setting: Setting) -> Scores:
    """The whole network over the whole data set once a configuration, with hooks where it ablates."""
    masks, ablated = task.masks(), task.by_layer()
    correct, loss = task.no_scores()
    with torch.no_grad():
        for k in range(len(task.ablated)):
            handles = [
                task.model.get_submodule(layer).register_forward_hook(
                    lambda _module, _inputs, out, mask=masks[layer][k]: out * like_units(mask, out)
                )
                for layer in task.layers
                if ablated[layer][k].any()
            ]
            for x, y in task.batches(setting.examples):
                more_correct, more_loss = correct_and_loss(task.model(x)[None], y)
                correct[k] += more_correct[0]
                loss[k] += more_loss[0]
            for handle in handles:
                handle.remove()
    return task.scores(correct, loss)
