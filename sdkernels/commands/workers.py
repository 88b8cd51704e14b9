"""Who does the work of a command: this process, or Ray's workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

Ray = Annotated[str | None, typer.Option(metavar="local|ADDRESS", help="Share the networks among Ray's workers.")]
Count = Annotated[int | None, typer.Option(min=1, max=10_000, help="How many of them; by default one a core.")]
Cpus = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, help="Cores, and threads, of each; by default 1, or without --ray all of the machine's."
    ),
]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of each; 0.5: two workers share one.")]


@contextmanager
def opened_workers(ray: str | None, count: int | None, cpus: int | None, gpus: float) -> Iterator[Any]:
    """Ray's workers, if it is asked for; else this process has so many threads. The first SIGTERM ends it cleanly."""
    from sdkernels.engine.stopping import stopping_cleanly

    with _opened(ray, count, cpus, gpus) as workers, stopping_cleanly("run the same command again to go on"):
        yield workers  # in this order, as Ray has a handler of its own


@contextmanager
def _opened(ray: str | None, count: int | None, cpus: int | None, gpus: float) -> Iterator[Any]:
    if ray is None:
        if cpus is not None:
            import torch

            if cpus > (there := os.cpu_count() or 1):  # a thread that cannot be started ends the process
                raise ValueError(f"--cpus {cpus}: this machine has {there}")
            torch.set_num_threads(cpus)
        yield None
        return
    from sdkernels.lab.cluster import RayWorkers

    with RayWorkers(ray, count=count, cpus=cpus or 1, gpus=gpus) as workers:
        yield workers
