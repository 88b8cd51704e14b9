"""Parts of a job done by workers; what they send is added, and kept, by the process that asked."""

from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from sdkernels.engine.batches import Batch
from sdkernels.engine.graph import UntraceableError
from sdkernels.engine.job import Job, Tally
from sdkernels.engine.keeping import FIRST_EXAMPLES, Keeping, Layout, cut, digest_of, indivisible
from sdkernels.engine.ledger import Run
from sdkernels.engine.plan import Plan
from sdkernels.engine.runner import LoopRunner, Runner
from sdkernels.engine.stopping import heed

PARTS_A_WORKER = 4  # about, so that all of them are busy to the end


class _Part(NamedTuple):
    """Some configurations on the examples of a tile."""

    number: int  # of the configurations' part
    start: int
    data: bytes  # the digest of what they are scored on
    batch: Batch


@dataclass(frozen=True)
class Scorer:
    """What a worker is sent: a job without its data, and how to run it; scores (part, batch) as a tally's bytes."""

    job: Job
    layout: Layout
    open_runner: Callable[[Job], Runner]

    def __call__(self) -> Callable[[tuple[int, Batch]], Iterator[bytes]]:
        """Within the worker."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.job.tf32
        job = self.job.on(device)
        families = self.layout.families(job.family)
        runners: dict[int, Runner] = {}

        def score(task: tuple[int, Batch]) -> Iterator[bytes]:
            part, batch = task
            own = job.part(*families[part])
            with torch.no_grad():
                if part not in runners:
                    runners[part] = self.open_runner(own)
                try:
                    tally = runners[part].score(batch.to(device))
                except UntraceableError as error:
                    runners[part] = LoopRunner(own, str(error))
                    tally = runners[part].score(batch.to(device))
            yield tally.to_bytes()

        return score


def _argument(part: _Part) -> tuple[int, Batch]:
    """What is sent: copies, as with a view the whole of what it shows a part of would go."""
    batch = part.batch.to(torch.device("cpu"))
    return part.number, Batch._make(None if tensor is None else tensor.clone() for tensor in batch)


def run_elsewhere(
    job: Job, open_runner: Callable[[Job], Runner], keeping: Keeping, layout: Layout, run: Run | None
) -> tuple[Tally, Plan]:
    """By workers. What they send is added in order, whenever it comes; this process alone writes the ledger."""
    ledger, workers = keeping.ledger, keeping.workers
    assert workers is not None  # noqa: S101 - asked for by those who have some
    families = layout.families(job.family)
    jobs = [job.part(*family) for family in families]
    total, plan = Tally(job, job.batches.examples), Plan([], job.family.configurations, is_elsewhere=True)
    waiting: dict[int, Tally | None] = {}  # by the part's place in the order; None: not there yet
    parts: dict[int, _Part] = {}
    kept = 0

    def take(place: int, content: bytes) -> None:
        part = parts.pop(place)
        tally = Tally.from_bytes(jobs[part.number], content)
        waiting[place] = tally
        job.advance(tally.examples * jobs[part.number].family.configurations)
        while (first := min(waiting, default=None)) is not None and (ready := waiting[first]) is not None:
            total.add(ready, families[first % len(families)][0])
            del waiting[first]

    def missing() -> Iterator[tuple[Hashable, Callable[[], Any]]]:
        nonlocal kept
        place = 0
        for batch in cut(job.batches.numbered(), lambda tile: layout.size if tile else layout.first):
            data = digest_of(job, batch)
            for index in range(len(families)):
                parts[place] = _Part(index, int(batch.places[0]), data, batch)
                waiting[place] = None
                content = None
                if ledger is not None and run is not None:
                    content = ledger.tile(run, index, parts[place].start, data)
                if content is not None:
                    kept += 1
                    take(place, content)
                else:
                    yield place, partial(_argument, parts[place])
                place += 1

    scorer = Scorer(job.on(torch.device("cpu")), layout, open_runner)
    messages = workers.run(scorer, missing())
    try:
        for place, content in messages:
            if not isinstance(place, int) or place not in parts:
                continue  # done twice
            if ledger is not None and run is not None:
                part = parts[place]
                ledger.keep_tile(run, part.number, part.start, part.data, len(part.batch.labels), content)
            take(place, content)
            heed("nothing of this call is kept" if ledger is None else f"what is finished is kept in {ledger.path}")
    finally:
        if isinstance(messages, Generator):
            messages.close()  # now, not when the error that ends this is forgotten
    if parts:
        raise RuntimeError(f"{type(workers).__name__} ended, and {len(parts)} of its tasks were not done")
    notes = [f"by {workers.count} workers, in tiles of {layout.size} examples and {len(families)} parts"]
    if kept:
        notes.append(f"{kept} of the tiles were there already")
    return total, replace(plan, notes=tuple(notes))


def layout_for(job: Job, workers: int) -> Layout:
    """Examples first, as they share nothing; then configurations, if that does not keep all workers busy."""
    examples = job.batches.examples
    if examples is None:
        return Layout(4 * FIRST_EXAMPLES, 4 * FIRST_EXAMPLES)
    wanted = PARTS_A_WORKER * workers
    size = max(min(examples, FIRST_EXAMPLES), -(-examples // wanted))
    if size > FIRST_EXAMPLES:
        return Layout(size, size)  # one tile less than wanted, at times: not worth the intact network's work twice
    tiles = -(-examples // size)
    divisible = job.family.configurations // indivisible(job.family)
    return Layout(size, size, min(divisible, -(-wanted // tiles)))
