"""What users write or call today, written well and in plain torch. Nothing here imports the package."""

from collections.abc import Callable, Mapping

from python_bench.opponents.captum_ablation import captum_ablation
from python_bench.opponents.hook_loop import hook_loop
from python_bench.opponents.prefix_cache import prefix_cache
from python_bench.opponents.task import Scores, Setting, Task
from python_bench.opponents.vmap import vmap_configurations

OPPONENTS: Mapping[str, Callable[[Task, Setting], Scores]] = {
    "hook loop": hook_loop,
    "hand-written prefix cache": prefix_cache,
    "captum": captum_ablation,
    "torch.func.vmap": vmap_configurations,
}

__all__ = [
    "OPPONENTS",
    "Scores",
    "Setting",
    "Task",
    "captum_ablation",
    "hook_loop",
    "prefix_cache",
    "vmap_configurations",
]
