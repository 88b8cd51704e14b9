"""The learning rate of a step: a function of its number alone, so that a run can go on at any step."""

import math

from sdkernels.lab.training.options import TrainingOptions


def learning_rate(options: TrainingOptions, step: int, steps_an_epoch: int) -> float:
    r"""The learning rate of step ``step``, counted from 0.

    .. math:: \eta_s = \eta \cdot \min(1, \tfrac{s + 1}{w}) \cdot f(s), \quad
        f_\text{linear} = 1 - r, \quad f_\text{cosine} = \tfrac12 (1 + \cos \pi r), \quad
        f_\text{step} = d^{\#\{m \le s\}}

    with w steps of warm-up, r the part of the steps after them that are done, and milestones m counted in steps.

    Example:
        >>> options = TrainingOptions(epochs=3, learning_rate=1.0, schedule="step", milestones=(2,), warmup=2)
        >>> [learning_rate(options, step, 2) for step in range(6)]
        [0.5, 1.0, 1.0, 1.0, 0.1, 0.1]
    """
    if step < options.warmup:
        return options.learning_rate * ((step + 1) / options.warmup)
    if options.schedule == "constant":
        return options.learning_rate
    if options.schedule == "step":
        unit = 1 if options.steps is not None else steps_an_epoch
        return options.learning_rate * options.decay ** sum(m * unit <= step for m in options.milestones)
    total = total_steps(options, steps_an_epoch)
    done = (step - options.warmup) / max(1, total - options.warmup)
    if options.schedule == "linear":
        return options.learning_rate * (1 - done)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def total_steps(options: TrainingOptions, steps_an_epoch: int) -> int:
    """How many steps the run has, if nothing ends it before."""
    return options.steps if options.steps is not None else (options.epochs or 0) * steps_an_epoch
