"""One pass over the data whose state is kept in a ledger from time to time, so that a call that was stopped goes on.

What is kept is the state after so many examples, and a digest of exactly these examples. When the call is made again,
the data is read from the start; where as many examples have the same digest, the state is taken over, and the model
runs on those behind alone. Else the pass starts over, and the old state is not used.

A state has two parts: tensors that are kept anew each time, in one item; and rows of examples that were held, which
never change once they are there, and so are added, an item or more each time.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor

from sdkernels.analysis.measure import versions
from sdkernels.analysis.saved import Path_
from sdkernels.analysis.states import State, pack, unpack
from sdkernels.analysis.subject import Subject
from sdkernels.engine.batches import Batches
from sdkernels.engine.digest import Digest
from sdkernels.engine.examples import ExamplesDigest
from sdkernels.engine.graph import is_close
from sdkernels.engine.ledger import Ledger
from sdkernels.engine.sites import watch
from sdkernels.engine.stopping import heed, is_asked

# Of the keys and of what is kept; goes up when either would mean something else.
PASS_FORMAT = 1

KIND, ROWS_KIND = "pass", "pass rows"

LEAST_SECONDS = 10.0  # of work between two times that a state is kept; as much may be lost
SHARE = 0.03  # of the time may go into keeping
LARGEST_STATE = 900_000_000  # bytes; SQLite's rows hold 10⁹
LARGEST_ROWS = 8 * 2**30  # bytes of all rows
ROWS_AT_ONCE = 2**28  # bytes of an item of rows


class Pass:
    """The batches that a state has not seen yet; iterate once, and let the state see each before the next.

    Attributes:
        examples: how many the state has seen.
        labels: of all examples that were read, in their batches, those that the state had seen before included.
        is_finished: whether the state was taken over as the last call left it, with nothing more to do.
    """

    def __init__(
        self,
        batches: Batches,
        state: State,
        advance: Callable[[int], Any],
        *,
        ledger: Ledger | None = None,
        key: str = "",
        about: Mapping[str, Any] | None = None,
        probe: Mapping[str, Tensor] | None = None,
        reads_labels: bool = True,
    ) -> None:
        self.examples = 0
        self.labels: list[Tensor] = []
        self.is_finished = False
        self.key = key
        self._batches, self._state, self._advance = batches, state, advance
        self._ledger, self._about, self._probe = ledger, about or {}, probe or {}
        self._reads_labels = reads_labels
        self._seen = ExamplesDigest()
        self._rows: list[list[Any]] = []  # of each item of rows: from, to, and the digest of all examples before it
        self._is_too_large = False
        self._kept_at, self._cost = 0.0, 0.0  # seconds

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        reading = iter(self._batches)
        rest = self._take_over(reading)
        if rest is None:
            self._advance(-self._seen.count)
            self._seen, self.labels = ExamplesDigest(), []
            reading, rest = iter(self._batches), []
        self._kept_at = time.perf_counter()
        for inputs, labels in chain(rest, reading):
            self._see(inputs, labels)
            yield inputs, labels
            self.examples += len(labels)
            self._advance(len(labels))
            is_due = time.perf_counter() - self._kept_at >= max(LEAST_SECONDS, self._cost / SHARE)
            if (is_due or is_asked()) and not self._is_too_large:
                self.keep()
            heed(self._kept())

    def keep(self) -> None:
        """Keep the state as it is."""
        self._keep(is_finished=False)

    def finish(self) -> None:
        """Keep the state as one with which nothing is left to be done."""
        if not self.is_finished:
            self._keep(is_finished=True)

    def drop(self) -> None:
        """Keep nothing any longer."""
        if self._ledger is not None:
            self._ledger.drop_item(KIND, self.key)
            self._drop_rows()

    def _kept(self) -> str:
        if self._ledger is None:
            return "nothing of this call is kept: store= was not given"
        if self._is_too_large:
            return f"its state was too large to be kept in {self._ledger.path}, but for an earlier one"
        return f"its state after {self.examples} examples is kept in {self._ledger.path}"

    def _see(self, inputs: Tensor, labels: Tensor) -> None:
        self.labels.append(labels)
        if self._ledger is not None:
            self._seen.add(inputs, labels if self._reads_labels else None)

    def _take_over(self, reading: Iterator[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]] | None:
        """Read what the kept state has seen, and load it; what else was read. None if there is none of this data."""
        item = None if self._ledger is None else self._ledger.item(KIND, self.key)
        if item is None:
            return None
        header, tensors = unpack(item.content)
        probe = {name.removeprefix("probe/"): tensors.pop(name) for name in list(tensors) if name.startswith("probe/")}
        if not self._is_of_this_model(probe):
            return None
        rest: list[tuple[Tensor, Tensor]] = []
        while self._seen.count < header["examples"]:
            batch = next(reading, None)
            if batch is None:
                return None
            inputs, labels = batch
            missing = header["examples"] - self._seen.count
            self._see(inputs[:missing], labels[:missing])
            self._advance(len(labels[:missing]))
            if missing < len(labels):
                rest.append((inputs[missing:], labels[missing:]))
        if self._seen.hex != header["data"]:
            return None
        if header["finished"] and not rest:
            rest += [batch for batch in [next(reading, None)] if batch is not None]
        if header["finished"] and rest:  # a finished state may have let go what more examples would need
            return None
        if not all(self._row_item(index, row) for index, row in enumerate(header["rows"])):
            return None
        self._state.load(tensors)
        for index, row in enumerate(header["rows"]):
            self._state.add_rows(self._row_item(index, row))
        self.examples, self._rows, self.is_finished = self._seen.count, header["rows"], header["finished"]
        return rest

    def _is_of_this_model(self, probe: Mapping[str, Tensor]) -> bool:
        """Whether the model does what it did: its code may have changed where no digest sees it."""
        for name, now in self._probe.items():
            shared = min(len(now), len(probe[name]))  # batches may have been shorter
            if not is_close(now[:shared], probe[name][:shared].to(now)):
                return False
        return True

    def _keep(self, *, is_finished: bool) -> None:
        if self._ledger is None:
            return
        begin = time.perf_counter()
        tensors, row_bytes = self._state.tensors(), self._state.row_bytes
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size > LARGEST_STATE or row_bytes * self.examples > LARGEST_ROWS:
            self._is_too_large = True  # what was kept before stays, and is what another call goes on from
            return
        if row_bytes:
            self._keep_rows(max(1, ROWS_AT_ONCE // row_bytes))
        else:
            self._rows = []
        header = {
            "examples": self.examples,
            "data": self._seen.hex,
            "rows": self._rows,
            "finished": is_finished,
        }
        probe = {f"probe/{name}": values.double() for name, values in self._probe.items()}
        content = pack(header, {**tensors, **probe})
        about = {**self._about, "examples": self.examples, "finished": is_finished}
        self._ledger.keep_item(KIND, self.key, about, content)
        if not row_bytes:
            self._drop_rows()
        self.is_finished = is_finished
        self._kept_at = time.perf_counter()
        self._cost = self._kept_at - begin

    def _keep_rows(self, step: int) -> None:
        """Add the rows that are not kept yet, so many examples an item."""
        assert self._ledger is not None  # noqa: S101 - asked before
        first = self._rows[-1][1] if self._rows else 0
        for start in range(first, self.examples, step):
            stop = min(start + step, self.examples)
            row: list[Any] = [start, stop, self._seen.hex]
            about = {name: self._about[name] for name in ("function", "layers")}
            about.update({"examples": stop - start, "from": start, "to": stop})
            content = pack({"row": row}, self._state.rows(start, stop))
            self._ledger.keep_item(ROWS_KIND, f"{self.key}/{len(self._rows)}", about, content)
            self._rows.append(row)

    def _row_item(self, index: int, row: list[Any]) -> dict[str, Tensor]:
        """The rows of an item; empty if another call, of other data or at another place, has put its own there."""
        assert self._ledger is not None  # noqa: S101 - asked before
        item = self._ledger.item(ROWS_KIND, f"{self.key}/{index}")
        header, tensors = ({}, {}) if item is None else unpack(item.content)
        return tensors if header.get("row") == row else {}

    def _drop_rows(self) -> None:
        """Take all rows out, the last first, so that they are found by counting whenever this is stopped."""
        assert self._ledger is not None  # noqa: S101 - asked before
        kept = next(index for index in count() if not self._ledger.has_item(ROWS_KIND, f"{self.key}/{index}"))
        for index in reversed(range(kept)):
            self._ledger.drop_item(ROWS_KIND, f"{self.key}/{index}")


@contextmanager
def pass_over(
    subject: Subject,
    state: State,
    store: Path_ | None,
    advance: Callable[[int], Any] = lambda _done: None,
    *,
    called: str,
    determines: tuple[Any, ...] = (),
    scores: Tensor | None = None,
    reads_labels: bool = True,
) -> Iterator[Pass]:
    """A pass over a subject's data that a state is taken of.

    Args:
        subject: the model, its sites and the data.
        state: has seen nothing yet.
        store: the ledger's file; None: nothing is kept.
        advance: hears of examples done; of a negative number where they are to be done again.
        called: the public function.
        determines: what the state depends on beside the model, its sites, the precision and the data.
        scores: what the model gives for ``subject.inputs``, if the state depends on that too.
        reads_labels: whether the state depends on labels.
    """
    if store is None:
        yield Pass(subject.batches, state, advance)
        return
    sites = [(s.name, s.call, s.unit_dim, s.select, s.parts, s.example_shape, s.basis) for s in subject.sites]
    # The first example, so that one file holds what was taken of several data sets.
    data = subject.inputs[:1], subject.batches.examples
    key = Digest(PASS_FORMAT, called, subject.model, sites, subject.precision, *data, *determines).hex
    about = {
        "function": called,
        "model": type(subject.model).__name__,
        "layers": [site.name for site in subject.sites],
        "unit_counts": [site.units for site in subject.sites],
        "of": subject.batches.examples,
        "precision": subject.precision,
        "versions": versions(),
        "machine": platform.node(),
    }
    probe = _probe(subject)
    if scores is not None:
        probe["scores"] = scores
    with Ledger(store) as ledger:
        yield Pass(
            *(subject.batches, state, advance),
            ledger=ledger,
            key=key,
            about=about,
            probe=probe,
            reads_labels=reads_labels,
        )


def _probe(subject: Subject) -> dict[str, Tensor]:
    """Each site's units for the first few examples, means over positions, [n, C]."""
    found: dict[str, Tensor] = {}

    def see(index: int, output: Tensor) -> None:
        site = subject.sites[index]
        values = site.read(output.detach()).movedim(site.unit_dim, 1).flatten(1).unflatten(1, (site.units, -1))
        found[f"site {index}"] = values.mean(2)

    with torch.no_grad(), watch(subject.model, subject.sites, see):
        subject.model(subject.inputs.clone())  # a model may write into its inputs
    return found
