"""What Ray costs a task, and what that makes of a large call on 1 to 256 workers."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

import sdkernels as sd
from python_bench.cluster_costs import WORKERS, Scaling, Stopwatch, layout
from python_bench.workloads import WORKLOADS, prepare, tiny
from sdkernels.engine.keeping import FIRST_EXAMPLES
from sdkernels.lab.cluster import RayWorkers

EXAMPLES, ORDERS, POINTS = 10_000, 10, 33  # of the call that is simulated
MEASURED_TILES = 4


def answer(content: bytes) -> Any:
    """A worker that sends what it is told to, and does nothing."""

    def start() -> Any:
        def do(_argument: bytes) -> Iterator[bytes]:
            yield content

        return do

    return start


def seconds_a_task(workers: RayWorkers, argument: bytes, content: bytes, tasks: int) -> float:
    """From the first answer to the last, when workers have nothing to do."""
    arrived = [
        time.perf_counter() for _ in workers.run(answer(content), ((i, lambda: argument) for i in range(tasks + 1)))
    ]
    return (arrived[-1] - arrived[0]) / tasks


def spread(seconds: list[float]) -> str:
    """Milliseconds: the median, the least and the most."""
    middle, least, most = (value * 1e3 for value in (median(seconds), min(seconds), max(seconds)))
    return f"{middle:.2f} ms ({least:.2f} to {most:.2f})"


def test_cluster(benchmark, report, is_tiny, tmp_path):
    name = "cumulative_convnet"
    workload = tiny(name) if is_tiny else WORKLOADS[name]
    task, _ = prepare(workload, torch.device("cpu"))
    images = MEASURED_TILES * FIRST_EXAMPLES
    inputs = task.inputs[torch.arange(images) % len(task.inputs)]
    labels = task.labels[torch.arange(images) % len(task.labels)]
    wanted = sorted({layout(EXAMPLES, ORDERS, workers)[2] for workers in WORKERS})
    watches = {parts: Stopwatch(parts) for parts in wanted}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def do_tasks() -> None:
        for parts, watch in watches.items():
            store = tmp_path / f"{parts}.sdk"
            sd.cumulative_ablation(
                task.model, task.layers, (inputs, labels), orders=ORDERS, points=POINTS, workers=watch, store=store
            )

    try:
        benchmark.pedantic(do_tasks, rounds=1)
    finally:
        torch.set_num_threads(threads)
    whole = watches[1]
    for parts, watch in watches.items():
        assert len(watch.seconds["do"]) == MEASURED_TILES * parts, "the engine cuts the call as the simulation does"

    begin = time.perf_counter()
    with RayWorkers("local", count=2) as workers:
        started = time.perf_counter() - begin
        list(workers.run(answer(b""), ((i, lambda: b"") for i in range(4))))
        hired = time.perf_counter() - begin - started
        number = 20 if is_tiny else 300
        empty = [seconds_a_task(workers, b"", b"", number) for _ in range(5)]
        loaded = [seconds_a_task(workers, whole.sent, whole.answered, number) for _ in range(5)]

    steps = {step: [s for watch in watches.values() for s in watch.seconds[step]] for step in ("read", "send", "keep")}
    costs = {"read": median(steps["read"]), "send": median(steps["send"]), "Ray": median(loaded)}
    costs["keep"] = median(steps["keep"])
    notes = {
        "Ray, an empty task": spread(empty),
        "Ray, a task of this call": spread(loaded),
        "sent a task": f"{len(whole.sent) / 1e3:,.0f} kB",
        "answered": f"{len(whole.answered) / 1e3:,.1f} kB",
        "Ray starts in": f"{started:.1f} s",
        "two workers begin in": f"{hired:.1f} s",
    }
    network = workload.heading() if is_tiny else "CIFAR-10 ConvNet, last three layers"
    title = f"{network}: {ORDERS} orders x {POINTS} points, {EXAMPLES:,} images"
    seconds = {parts: watch.seconds["do"] for parts, watch in watches.items()}
    report(Scaling(title, EXAMPLES, ORDERS, seconds, costs, notes), "cluster")
