"""What work done by Ray's workers costs beside the work: measured here, and simulated for more of them."""

import random
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from python_bench.race import described, duration, machine, markdown, write_result
from sdkernels.engine.elsewhere import PARTS_A_WORKER
from sdkernels.engine.keeping import FIRST_EXAMPLES
from sdkernels.lab.cluster.worker import dumps

WORKERS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


@dataclass
class Stopwatch:
    """Workers that are this process: does every task at once, and takes the time of each step of the way.

    Attributes:
        count: how many workers the call is to be cut for.
        seconds: by step. ``read``: the next task is cut, hashed and looked up; ``send``: its argument is pickled;
            ``do``: a worker's work, but for what it does once; ``keep``: the answer is written and added.
        sent, answered: bytes of arguments and of answers.
    """

    count: int
    sharing: int = 1
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"read": [], "send": [], "do": [], "keep": []})
    sent: bytes = b""
    answered: bytes = b""

    def run(
        self, start: Callable[[], Callable[[Any], Iterator[Any]]], tasks: Iterable[tuple[Hashable, Callable[[], Any]]]
    ) -> Iterator[tuple[Hashable, Any]]:
        """As :class:`sdkernels.engine.keeping.Workers` says."""
        dumps(None)  # imports what pickles
        do, tasks, warm = start(), iter(tasks), set()
        while (task := self._timed("read", lambda: next(tasks, None))) is not None:
            name, argument = task
            self.sent = self._timed("send", lambda argument=argument: dumps(argument()))
            part = argument()[0]
            if part not in warm:  # the first task of a kind traces the model
                warm.add(part)
                list(do(argument()))
            (self.answered,) = self._timed("do", lambda content=argument(): list(do(content)))  # noqa: B008 - once
            begin = time.perf_counter()
            yield name, self.answered
            self.seconds["keep"].append(time.perf_counter() - begin)

    def _timed(self, step: str, do: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = do()
        self.seconds[step].append(time.perf_counter() - begin)
        return result


def layout(examples: int, orders: int, workers: int) -> tuple[int, int, int]:
    """Tiles, examples of a tile, and parts of the configurations, as the engine cuts a curve of so many orders."""
    wanted = PARTS_A_WORKER * workers
    size = max(min(examples, FIRST_EXAMPLES), -(-examples // wanted))
    tiles = -(-examples // size)
    return tiles, size, 1 if size > FIRST_EXAMPLES else min(orders, -(-wanted // tiles))


def makespan(tasks: Sequence[float], workers: int, give: float, take: float) -> float:
    """Seconds until all answers are there.

    The driver does one thing at a time: it gives tasks in order, each to the worker that will be free first and has at
    most one other waiting, and takes an answer in before it gives the next one.
    """
    free = [0.0] * workers  # when each has done what it was given
    begun = [0.0] * workers  # when each began the last of it: from then on it can be given another
    driver = 0.0
    for count, seconds in enumerate(tasks):
        worker = min(range(workers), key=lambda w: (free[w], w))
        driver = max(driver, begun[worker]) + give + (take if count >= workers else 0.0)
        begun[worker] = max(free[worker], driver)
        free[worker] = begun[worker] + seconds
    last = max(free, default=0.0)
    return last + take * min(workers, len(tasks))


@dataclass(frozen=True)
class Scaling:
    """A call's time by the number of workers, simulated from times that were measured.

    Attributes:
        title: what the call is.
        examples, orders: of the call.
        task_seconds: by number of parts, the measured times of tasks of ``FIRST_EXAMPLES`` examples.
        costs: measured seconds by what they are spent on; those of ``give`` and ``take`` are the driver's, a task.
        notes: other things measured.
    """

    title: str
    examples: int
    orders: int
    task_seconds: Mapping[int, list[float]]
    costs: Mapping[str, float]
    notes: Mapping[str, Any]
    give: tuple[str, ...] = ("read", "send", "Ray")
    take: tuple[str, ...] = ("keep",)

    def rows(self) -> list[tuple[int, int, float, float, float]]:
        """Workers, tasks, seconds, speed-up and efficiency against the same work without any driver."""
        give, take = (sum(self.costs[name] for name in names) for names in (self.give, self.take))
        alone = fmean(self.task_seconds[1]) * self.examples / FIRST_EXAMPLES
        found = []
        for workers in WORKERS:
            tiles, size, parts = layout(self.examples, self.orders, workers)
            measured = self.task_seconds[min(self.task_seconds, key=lambda p, parts=parts: abs(p - parts))]
            draw = random.Random(workers)
            pieces = max(1, round(size / FIRST_EXAMPLES))
            scale = self.examples / FIRST_EXAMPLES / tiles / pieces  # all tiles alike, though the last has fewer
            times = [scale * sum(draw.choices(measured, k=pieces)) for _ in range(tiles * parts)]
            seconds = makespan(times, workers, give, take)
            found.append((workers, len(times), seconds, alone / seconds, alone / seconds / workers))
        return found

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Scaling":
        """What :meth:`write` kept."""
        times = {int(parts): seconds for parts, seconds in raw["task_seconds"].items()}
        return cls(raw["title"], raw["examples"], raw["orders"], times, raw["costs"], raw["notes"])

    def table(self) -> str:
        """Markdown."""
        return "\n".join([f"### {self.title}", "", *self.lines(), "", described({**self.notes, **machine()})])

    def lines(self) -> list[str]:
        """What was measured, and what is simulated."""
        costs = markdown(("the driver, a task", "time (measured)"), [(n, duration(s)) for n, s in self.costs.items()])
        times = [
            (f"{FIRST_EXAMPLES} examples, 1 of {parts} parts", duration(median(s)), f"{min(s):.3f} to {max(s):.3f} s")
            for parts, s in self.task_seconds.items()
        ]
        rows = [(str(w), f"{n:,}", duration(s), f"{up:.1f}", f"{e:.0%}") for w, n, s, up, e in self.rows()]
        header = ("workers", "tasks", "time (simulated)", "times one process", "efficiency")
        measured = markdown(("a task, on one thread", "median (measured)", "least to most"), times)
        return [*costs, "", *measured, "", *markdown(header, rows)]

    def write(self, folder: Path, name: str) -> None:
        """Keep the tables and what they are made of."""
        raw = {
            "title": self.title,
            "examples": self.examples,
            "orders": self.orders,
            "task_seconds": {str(parts): seconds for parts, seconds in self.task_seconds.items()},
            "costs": dict(self.costs),
            "simulated": self.rows(),
            "notes": dict(self.notes),
            "machine": machine(),
        }
        write_result(folder, name, self.table(), raw)
