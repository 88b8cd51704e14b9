"""What an experienced user writes by hand for one network: nothing above the first ablated layer runs twice."""

import torch

from python_bench.opponents.task import Scores, Setting, Task, correct_and_loss, like_units


def prefix_cache(task: Task, setting: Setting) -> Scores:
    """Each batch once through the network, keeping the layers' outputs; configurations start from the one they ablate.

    Several configurations of one layer may share a forward pass, side by side in the batch.
    """
    stages = task.stages(task.model)
    after = {name: stages[i + 1 :] for i, (name, _) in enumerate(stages)}
    masks, groups, ablated = task.masks(), task.groups(), task.by_layer()
    correct, loss = task.no_scores()
    with torch.no_grad():
        for x, y in task.batches(setting.examples):
            kept = {}
            for name, stage in stages:
                x = stage(x)
                if name in groups:
                    kept[name] = x
            for layer, members in groups.items():
                if layer is None:
                    more_correct, more_loss = correct_and_loss(x[None], y)
                    correct[members] += more_correct
                    loss[members] += more_loss
                    continue
                touched = {name for name, units in ablated.items() if units[members].any()}
                for configurations in members.split(setting.configurations):
                    k, there = len(configurations), configurations.to(x.device)
                    out = (kept[layer] * like_units(masks[layer][there, None], kept[layer])).flatten(0, 1)
                    for name, stage in after[layer]:
                        out = stage(out)
                        if name in touched:
                            out.unflatten(0, (k, -1)).mul_(like_units(masks[name][there, None], out))
                    correct[there], loss[there] = (
                        total[there] + more
                        for total, more in zip(
                            (correct, loss), correct_and_loss(out.unflatten(0, (k, -1)), y), strict=True
                        )
                    )
    return task.scores(correct, loss)
