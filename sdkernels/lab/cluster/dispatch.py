"""Tasks given to Ray's workers, whose messages are read as they come; tasks of lost workers are given to others."""

import re
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sdkernels.engine.checks import warn
from sdkernels.engine.stopping import heed
from sdkernels.lab.cluster.worker import Failure, Message, Warned, dumps

IN_FLIGHT = 2  # tasks a worker: one that it does, and one that it need not wait for
PATIENCE = 60.0  # seconds without any worker, after which the user hears of it
LISTENING = 10.0  # seconds without a message, after which a signal that asks for the end is heeded all the same


class WorkerLostError(RuntimeError):
    """Workers were lost more often than was to be made good; says with which task, and how often."""


class Task(NamedTuple):
    """What is to be done."""

    name: Hashable
    argument: Callable[[], Any]


class Given(NamedTuple):
    """A task that a worker has."""

    task: Task
    stream: Any  # of references to its messages


@dataclass(eq=False)
class Member:
    """A worker. It does its tasks one after the other, in the order in which it was given them."""

    actor: Any
    starting: Any  # a reference to what begin gives; None: it has begun
    doing: deque[Given] = field(default_factory=deque)

    @property
    def watched(self) -> Any:
        """What is to be waited for next; None: nothing."""
        return self.starting if self.starting is not None else self.doing[0].stream if self.doing else None


class Crew:
    """The workers, who stay from call to call.

    Args:
        ray: the module, connected.
        hire: makes an actor.
        count: of workers.
        retries: how often a task may lose its worker and be done again.
    """

    def __init__(self, ray: Any, hire: Callable[[], Any], count: int, retries: int) -> None:
        self._ray, self._hire, self._count, self._retries = ray, hire, count, retries
        self._members: list[Member] = []
        self._calls = 0

    def run(
        self, start: Callable[[], Callable[[Any], Iterator[Any]]], tasks: Iterable[tuple[Hashable, Callable[[], Any]]]
    ) -> Iterator[tuple[Hashable, Any]]:
        """As :class:`sdkernels.engine.keeping.Workers` says."""
        self._calls += 1
        self.dismiss(idle=False)  # of a call that was given up
        call = _Call(self, start, tasks)
        own = self._calls
        try:
            for message in call.messages():
                yield message
                if own != self._calls:
                    raise RuntimeError("these workers were given to another call before this one was done")
        finally:
            if own == self._calls:
                self.dismiss(idle=False)

    def dismiss(self, *, idle: bool = True) -> None:
        """End workers: those who have tasks, or all."""
        for member in [m for m in self._members if idle or m.doing]:
            self.drop(member)

    def drop(self, member: Member) -> None:
        """End a worker, if it is not gone already."""
        self._members.remove(member)
        with suppress(Exception):  # there is no Ray any more
            self._ray.kill(member.actor, no_restart=True)


class _Call:
    """The state of one call."""

    def __init__(
        self,
        crew: Crew,
        start: Callable[[], Callable[[Any], Iterator[Any]]],
        tasks: Iterable[tuple[Hashable, Callable[[], Any]]],
    ) -> None:
        self._crew, self._ray = crew, crew._ray
        self._start = self._ray.put(dumps(start))
        self._tasks = (Task(*task) for task in tasks)
        self._waiting: deque[Task] = deque()
        self._losses: Counter[Hashable] = Counter()
        self._stillborn = 0  # workers in a row that were lost before they had begun
        for member in crew._members:
            member.starting = member.actor.begin.remote(self._start)

    def messages(self) -> Iterator[tuple[Hashable, Any]]:
        """All messages of all tasks."""
        while self._give():
            for member in self._ready():
                yield from self._read(member)

    def _give(self) -> bool:
        """Read tasks, hire workers and give the ones to the others; whether there is anything to wait for."""
        crew = self._crew
        in_flight = sum(len(member.doing) for member in crew._members)
        while len(self._waiting) + in_flight < IN_FLIGHT * crew._count:
            task = next(self._tasks, None)
            if task is None:
                break
            self._waiting.append(task)
        if not self._waiting and not in_flight:
            return False
        while len(crew._members) < min(crew._count, len(self._waiting) + in_flight):
            actor = crew._hire()
            crew._members.append(Member(actor, actor.begin.remote(self._start)))
        while self._waiting:
            able = [m for m in crew._members if m.starting is None and len(m.doing) < IN_FLIGHT]
            if not able:
                break
            member = min(able, key=lambda m: len(m.doing))
            task = self._waiting.popleft()
            stream = member.actor.do.options(num_returns="streaming").remote(dumps(task.argument()))
            member.doing.append(Given(task, stream))
        return True

    def _ready(self) -> list[Member]:
        """The workers from whom something has come, waiting for the first."""
        by_watched = {m.watched: m for m in self._crew._members if m.watched is not None}
        watched = list(by_watched)
        if all(member.starting is not None for member in by_watched.values()):
            some, _ = self._ray.wait(watched, num_returns=1, timeout=PATIENCE)
            if not some:
                warn(
                    f"no worker has started within {PATIENCE:.0f} seconds; of what the cluster has, there is free: "
                    f"{self._ray.available_resources()}"
                )
        while not self._ray.wait(watched, num_returns=1, timeout=LISTENING)[0]:
            heed("what workers had not sent is not kept, and all else that was to be is")
        ready, _ = self._ray.wait(watched, num_returns=len(watched), timeout=0)
        return [by_watched[one] for one in ready]

    def _read(self, member: Member) -> Iterator[tuple[Hashable, Any]]:
        """The next thing that a worker sent."""
        try:
            if member.starting is not None:
                answer = self._ray.get(member.starting)
            else:
                answer = self._ray.get(next(member.doing[0].stream))
        except (StopIteration, self._ray.exceptions.RayError) as error:
            self._lose(member, error)
            return
        if isinstance(answer, Failure):
            raise answer.as_exception()
        if isinstance(answer, Warned):
            warn(answer.text)
        elif isinstance(answer, Message):
            yield member.doing[0].task.name, self._ray.cloudpickle.loads(answer.content)
        elif member.starting is not None:
            member.starting, self._stillborn = None, 0
        else:
            member.doing.popleft()

    def _lose(self, member: Member, error: BaseException) -> None:
        """Give a lost worker's tasks to others, or give up."""
        retries = self._crew._retries
        self._crew.drop(member)
        if member.starting is not None:
            self._stillborn += 1
            if self._stillborn > retries:
                raise WorkerLostError(
                    f"{self._stillborn} workers in a row were lost before they had begun: {_reason(error)}"
                ) from error
            return
        for given in reversed(member.doing):
            self._waiting.appendleft(given.task)
        name = member.doing[0].task.name  # the worker had not begun with the others
        self._losses[name] += 1
        if self._losses[name] > retries:
            raise WorkerLostError(
                f"task {name!r} lost its worker {self._losses[name]} times, and retries={retries}; a worker that is "
                f"killed has often run out of memory. {_reason(error)}"
            ) from error
        warn(f"a worker was lost, and its tasks are done again. {_reason(error)}")


def _reason(error: BaseException) -> str:
    """Ray's words in one line, without its names and guesses."""
    text, _, _ = " ".join(str(error).split()).partition(" Some common causes")
    text = re.sub(r" (class_name|actor_id|namespace): \S+", "", text)
    return text or f"{type(error).__name__}: its messages ended too early"
