"""Where a call's work is kept: how a job is cut into parts, and by which keys they are found.

The examples are cut at the same places whenever a job is run again, and every part is known by a digest of its data:
what was done on other data is not found.
"""

import os
import platform
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdkernels.engine.batches import Batch, concatenate
from sdkernels.engine.digest import Digest
from sdkernels.engine.digested_model import digest_of_model
from sdkernels.engine.families import Cumulative, Family, Noise
from sdkernels.engine.graph import is_close
from sdkernels.engine.job import Job
from sdkernels.engine.ledger import Ledger, Run
from sdkernels.engine.pairs import Pairs
from sdkernels.engine.scores import metric_name

# Of the keys; goes up when the same call would mean something else.
KEY_FORMAT = 1

FIRST_EXAMPLES = 64  # of the first tile, whose time decides how long the others are


class Workers(Protocol):
    """Processes, here or elsewhere, that do tasks.

    Attributes:
        count: how many there are.
        sharing: how many of them have one device's memory between them.
    """

    count: int
    sharing: int

    def run(
        self, start: Callable[[], Callable[[Any], Iterator[Any]]], tasks: Iterable[tuple[Hashable, Callable[[], Any]]]
    ) -> Iterator[tuple[Hashable, Any]]:
        """Do tasks, in any order.

        Args:
            start: makes, once in each worker, the function that does a task and yields messages.
            tasks: names, and what gives the argument; asked again if the task's worker is lost. Read when needed.

        Yields:
            The tasks' names with their messages, as they come. A task that is done again may yield some again.
        """


class Layout(NamedTuple):
    """How a job is cut, the same for all who work on it."""

    first: int  # examples of the first tile
    size: int  # examples of each other one
    parts: int = 1  # of the configurations

    def families(self, family: Family) -> list[tuple[Tensor | None, Family]]:
        """The configurations of each part, int64 [k], and their family; None: all of them."""
        if self.parts == 1:
            return [(None, family)]
        if isinstance(family, Noise):  # of whose draws some configurations may be finished
            groups = family.groups()
        else:
            groups = list(torch.arange(family.configurations).split(indivisible(family)))
        shares = torch.arange(len(groups)).tensor_split(min(self.parts, len(groups)))
        parts = [torch.cat([groups[i] for i in share.tolist()]) for share in shares]
        return [(chosen, family.only(chosen)) for chosen in parts]


def indivisible(family: Family) -> int:
    """How many configurations, one after the other, share so much that they stay together."""
    if isinstance(family, Cumulative):
        return len(family.points)
    if isinstance(family, Noise):
        return int((family.draws == family.draws[0]).sum())
    return family.configurations if isinstance(family, Pairs) else 1


@dataclass
class Keeping:
    """Where a call's work is kept, and who does it.

    Attributes:
        ledger: where finished tiles are; None: nowhere.
        workers: who does the work; None: this process.
        kind: the function that was called.
        about: what the call was given, for people, in JSON's types.
        determines: what the scores depend on beside the job: it goes into the key.
    """

    ledger: Ledger | None
    workers: Workers | None
    kind: str
    about: Mapping[str, Any]
    determines: tuple[Any, ...]
    _plain: str | None = None  # the key of all jobs of the call, which differ in their examples and configurations
    _run: Run | None = None

    def find(self, job: Job) -> tuple[str, Run | None]:
        """The job's key, and its run if there is one.

        A model's code may have changed where no digest sees it: then the logits of the first few examples have too,
        and what was kept belongs to another run.
        """
        assert self.ledger is not None  # noqa: S101 - asked for by those who have one
        if self._run is not None:
            return self._run.key, self._run
        if self._plain is None:
            self._plain = self._key_of(job)
        for variant in count():
            key = self._plain if variant == 0 else f"{self._plain}-{variant}"
            self._run = self.ledger.run(key)
            if self._run is None or _gives_these_logits(job, self._run.description["probe"]):
                return key, self._run
        raise AssertionError  # never: the count has no end

    def add(self, job: Job, key: str, layout: Layout) -> Run:
        """A run of this layout, or of the one that another process has begun it with."""
        assert self.ledger is not None  # noqa: S101 - as above
        family = job.root or job.family
        description = {
            **self.about,
            "model": type(job.model).__name__,
            "configurations": family.configurations,
            "layout": layout._asdict(),
            "stages": job.root is not None,  # each counts its examples from 0
            "columns": _columns(family),
            "probe": {"examples": _each(job.probe.inputs), "logits": job.probe_logits.double().tolist()},
            "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
        }
        while not _gives_these_logits(
            job, (run := self.ledger.add_run(key, self.kind, description)).description["probe"]
        ):
            key, _ = self.find(job)  # another process had the same key, at the same moment, for other code
        self._run = run
        return run

    def finish(self) -> None:
        """Note that all tiles are there."""
        if self._run is not None and self.ledger is not None:
            self.ledger.finish_run(self._run)

    def _key_of(self, job: Job) -> str:
        sites = [(s.name, s.call, s.unit_dim, s.select, s.parts, s.example_shape, s.basis) for s in job.sites]
        some = job.probe.inputs[: 1 + len(job.probe.inputs) // 2]
        model = digest_of_model(job.model, Digest, forward_pass=lambda: job.model(some.clone()))
        names = [metric_name(metric) for metric in job.metrics]
        family = job.root or job.family
        parts = (sites, family, job.clamps, job.metrics, names, job.outcomes, *self.determines)
        return Digest(KEY_FORMAT, model, *parts).hex


def _gives_these_logits(job: Job, probe: Mapping[str, Any]) -> bool:
    """Whether the first examples are those of a run, and the model gives what that run's gave; a batch may be short."""
    examples = _each(job.probe.inputs)
    both = min(len(examples), len(probe["examples"]))
    then = torch.tensor(probe["logits"], dtype=torch.float64)[:both].to(job.probe_logits)
    return examples[:both] == probe["examples"][:both] and is_close(job.probe_logits[:both], then)


def _each(inputs: Tensor) -> list[str]:
    return [Digest(example).hex for example in inputs]


def digest_of(job: Job, batch: Batch) -> bytes:
    """Of what scores depend on beside the call: the examples, and, of a call in stages, which configurations."""
    return Digest(batch.inputs, batch.labels, batch.ids, batch.donors, job.family if job.root is not None else None).raw


def cut(batches: Iterable[Batch], size_of: Callable[[int], int]) -> Iterator[Batch]:
    """The same examples, tile i having ``size_of(i)`` of them; fewer before a change of shape, and at the end."""
    waiting: list[Batch] = []
    have, tile = 0, 0
    for batch in batches:
        if waiting and batch.inputs.shape[1:] != waiting[0].inputs.shape[1:]:
            yield concatenate(waiting)
            have, tile = 0, tile + 1
        start = 0
        while start < len(batch.labels):
            part = batch.part(slice(start, start + size_of(tile) - have))
            start += len(part.labels)
            have += len(part.labels)
            waiting.append(part)
            if have >= size_of(tile):
                yield concatenate(waiting)
                have, tile = 0, tile + 1
    if waiting:
        yield concatenate(waiting)


def _columns(family: Family) -> dict[str, list[Any]]:
    """What tells the configurations apart, for tables: a value each, by column."""
    if isinstance(family, Cumulative):
        rows, points = len(family.orders), family.points.tolist()
        return {"order": [r for r in range(rows) for _ in points], "ablated": points * rows}
    if isinstance(family, Noise):
        return {"draw": family.draws.tolist(), "factor": family.factors.tolist()}
    if isinstance(family, Pairs):
        alone = family.units.tolist()
        return {
            "unit": alone + family.pairs[:, 0].tolist(),
            "other_unit": [None] * len(alone) + family.pairs[:, 1].tolist(),
        }
    return {"configuration": list(range(family.configurations))}
