"""A job in parts, each of some examples and some configurations, which are kept in a ledger.

Sums of parts are added in order, so that a job that was stopped ends with the same bits as one that was not.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from sdkernels.engine.batches import Batch
from sdkernels.engine.elsewhere import layout_for, run_elsewhere
from sdkernels.engine.graph import UntraceableError
from sdkernels.engine.job import Job, Tally
from sdkernels.engine.keeping import FIRST_EXAMPLES, Keeping, Layout, cut, digest_of
from sdkernels.engine.ledger import Run
from sdkernels.engine.plan import Plan
from sdkernels.engine.runner import Runner, loop_instead
from sdkernels.engine.stopping import heed

LEAST_EXAMPLES = 32  # of a tile
TILE_SECONDS = 10.0  # as much work may be lost when a process is killed


def run_in_parts(job: Job, open_runner: Callable[[Job], Runner], keeping: Keeping) -> tuple[Tally, Plan]:
    """The job's tally; finished parts are taken from the ledger, and the others put there."""
    key, run = keeping.find(job) if keeping.ledger is not None else ("", None)
    if keeping.workers is None:
        while True:
            here = _Here(job, open_runner, keeping, key, run)
            try:
                for batch in cut(job.batches.numbered(), here.size_of):
                    here.score(batch)
                return here.total, here.plan()
            except _CutElsewhere:
                key, run = keeping.find(job)
    layout = Layout(**run.description["layout"]) if run is not None else layout_for(job, keeping.workers.count)
    if keeping.ledger is not None and run is None:
        run = keeping.add(job, key, layout)
        layout = Layout(**run.description["layout"])
    return run_elsewhere(job, open_runner, keeping, layout, run)


class _CutElsewhere(Exception):  # noqa: N818 - no error: work begins again, as the ledger has it
    """Another process began the same call while this one did its first tile, and cut it for its workers."""


class _Here:
    """Scores parts in this process, one after the other."""

    def __init__(
        self, job: Job, open_runner: Callable[[Job], Runner], keeping: Keeping, key: str, run: Run | None
    ) -> None:
        self._job, self._open_runner, self._keeping = job, open_runner, keeping
        self._key, self._run = key, run
        self._layout = Layout(**run.description["layout"]) if run is not None else None
        self._families = self._layout.families(job.family) if self._layout is not None else [(None, job.family)]
        self._runners: dict[int, Runner] = {}
        self._kept = 0
        self.total = Tally(job, job.batches.examples)

    def size_of(self, index: int) -> int:
        """Examples of a tile."""
        if index == 0:
            return FIRST_EXAMPLES if self._layout is None else self._layout.first
        assert self._layout is not None  # noqa: S101 - known since the first tile
        return self._layout.size

    def score(self, batch: Batch) -> None:
        """Add a tile to the total."""
        ledger = self._keeping.ledger
        assert ledger is not None  # noqa: S101 - else nothing would be cut
        data = digest_of(self._job, batch)
        for index, (configurations, family) in enumerate(self._families):
            job = self._job.part(configurations, family)
            start = int(batch.places[0])
            content = None if self._run is None else ledger.tile(self._run, index, start, data)
            if content is not None:
                self._kept += 1
                tally = Tally.from_bytes(job, content)
                job.advance(len(batch.labels) * family.configurations)
            else:
                tally = self._score_anew(job, index, batch, data)
            self.total.add(tally, configurations)
            heed(f"what is finished, up to example {start + len(batch.labels)}, is kept in {ledger.path}")

    def plan(self) -> Plan:
        """What was done in this call."""
        notes = (f"{self._kept} of the tiles were in {self._keeping.ledger.path}",) if self._keeping.ledger else ()
        if not self._runners:
            return Plan([], self._job.family.configurations, notes, is_elsewhere=True)
        plan = next(iter(self._runners.values())).plan()
        return replace(plan, notes=(*plan.notes, *notes)) if self._kept else plan

    def _score_anew(self, job: Job, index: int, batch: Batch, data: bytes) -> Tally:
        ledger = self._keeping.ledger
        assert ledger is not None  # noqa: S101 - as above
        if index not in self._runners:
            self._runners[index] = self._open_runner(job)
        begin = time.perf_counter()
        try:
            tally = self._runners[index].score(batch)
        except UntraceableError as error:  # inputs of another shape
            self._runners[index] = loop_instead(job, error)
            tally = self._runners[index].score(batch)
        if self._run is None:
            layout = self._choose_layout(time.perf_counter() - begin, len(batch.labels), self._runners[index].size)
            self._run = self._keeping.add(job, self._key, layout)
            found = Layout(**self._run.description["layout"])
            if found.first != layout.first or found.parts != layout.parts:
                job.advance(-len(batch.labels) * job.family.configurations)
                raise _CutElsewhere
            self._layout = found
        ledger.keep_tile(self._run, index, int(batch.places[0]), data, len(batch.labels), tally.to_bytes())
        return tally

    def _choose_layout(self, seconds: float, examples: int, most: int | None) -> Layout:
        size = max(LEAST_EXAMPLES, int(examples * TILE_SECONDS / max(seconds, 1e-9)))
        if (known := self._job.batches.examples) is not None and known > FIRST_EXAMPLES:
            tiles = -(-(known - FIRST_EXAMPLES) // size)
            size = -(-(known - FIRST_EXAMPLES) // tiles)  # all about alike
        return Layout(FIRST_EXAMPLES, min(size, most) if most else size)
