"""Passes over the data that were stopped go on, bit for bit, and only where nothing has changed."""

import contextlib
import math
import multiprocessing
import os
import time
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sdkernels.analysis import passes
from sdkernels.engine.examples import ExamplesDigest
from sdkernels.engine.ledger import Ledger, LedgerError
from tests.analysis.stopped import (
    CALLS,
    EXAMPLES,
    SIZE,
    Reads,
    StoppedError,
    batches_in,
    counted,
    examples,
    keep_after_every_batch,
    network,
    same,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "work.sdk"


@pytest.fixture(autouse=True)
def _is_kept_after_every_batch(monkeypatch, request):
    keep_after_every_batch(monkeypatch)
    if "sketch" in request.node.name:
        monkeypatch.setattr("sdkernels.analysis.unit_statistics._blocks", lambda *_: 3)


@pytest.mark.parametrize("name", CALLS)
def test_it_goes_on_bit_for_bit_wherever_it_was_stopped(name, store):
    call, (inputs, labels) = partial(CALLS[name], network()), examples()
    whole = Reads(inputs, labels)
    plain = call(data=whole)
    assert same(call(data=whole, store=store.with_name("at once.sdk")), plain)
    for stop in range(1, 7):
        with counted() as seen, pytest.raises(StoppedError):
            call(data=Reads(inputs, labels, stop=stop), store=store)
        assert batches_in(seen) == SIZE
        with Ledger(store) as ledger:
            (item,) = ledger.items("pass")
            assert (item.description["examples"], item.description["finished"]) == (stop * SIZE, False)
    with counted() as seen:
        assert same(call(data=whole, store=store), plain)
    assert batches_in(seen) == (96 if name == "sketch" else 0)  # to count; the last batch is as small as a look
    with counted() as seen:
        assert same(call(data=whole, store=store), plain)
    assert batches_in(seen) == 0
    with Ledger(store) as ledger:
        (item,) = ledger.items("pass")
        assert (item.description["examples"], item.description["finished"]) == (EXAMPLES, True)
        assert ledger.kinds() == {"pass": 1}


def test_the_second_pass_of_a_sketch_goes_on_too(store):
    call, (inputs, labels) = partial(CALLS["sketch"], network()), examples()
    plain = call(data=Reads(inputs, labels))
    assert plain.rank_error > 0
    reading = iter(range(100))

    class OnceThenStops(Reads):
        def __iter__(self):
            self.stop = {0: None, 1: None, 2: 4}[next(reading)]  # the first look, the first pass, the second
            return super().__iter__()

    with pytest.raises(StoppedError):
        call(data=OnceThenStops(inputs, labels), store=store)
    with counted() as seen:
        assert same(call(data=Reads(inputs, labels), store=store), plain)
    assert batches_in(seen) == 2 * SIZE  # of 101; the last 5 are not counted
    with Ledger(store) as ledger:
        assert ledger.kinds() == {"pass": 1}


@pytest.mark.parametrize("name", CALLS)
def test_batches_may_be_of_another_size(name, store):
    call, (inputs, labels) = partial(CALLS[name], network().double()), examples()
    inputs = inputs.double()
    with pytest.raises(StoppedError):
        call(data=Reads(inputs, labels, stop=3), store=store)
    with counted() as seen:
        found = call(data=Reads(inputs, labels, size=20), store=store)
    if name != "sketch":
        assert [count for count in seen if count > 8] == [12, 20, 20]  # of 48, the last 1 after 100
    plain = call(data=Reads(inputs, labels, size=20))
    for field in fields(plain) if is_dataclass(plain) else [None, None]:
        one, other = (getattr(each, field.name) if field else each[0] for each in (found, plain))
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, equal_nan=True)


def test_the_digest_of_examples_tells_what_they_are():
    inputs, labels = examples()
    digests = set()
    for x, y in [
        (inputs, labels),
        (inputs[:100], labels[:100]),
        (inputs.flip(0), labels),
        (inputs, labels.flip(0)),
        (inputs, None),
        (inputs.double(), labels),
        (inputs.flatten(1), labels),
        (inputs.view(torch.int32), labels),
    ]:
        whole, parts = ExamplesDigest(), ExamplesDigest()
        whole.add(x, y)
        for start in range(0, len(x), 7):
            parts.add(x[start : start + 7], None if y is None else y[start : start + 7])
        assert whole.hex == parts.hex
        digests.add(whole.hex)
    assert len(digests) == 8
    reshaped = ExamplesDigest()
    reshaped.add(inputs[:50], labels[:50])
    reshaped.add(inputs[50:].flatten(1), labels[50:])
    assert reshaped.hex not in digests


@pytest.mark.parametrize("name", CALLS)
def test_other_examples_are_not_mixed_with_those_before(name, store):
    call, (inputs, labels) = partial(CALLS[name], network()), examples()
    changed, other_labels = inputs.clone(), labels.clone()
    changed[40] += 1
    other_labels[40] = 2
    for data, is_other in [
        ((changed, labels), True),
        ((inputs, other_labels), name != "directions"),  # which reads no labels
        ((inputs.roll(3, 0), labels.roll(3, 0)), True),
        ((inputs[:40], labels[:40]), True),
        ((inputs[:48], labels[:48]), False),
        ((torch.cat([inputs[:48], changed[:60]]), torch.cat([labels[:48], labels[:60]])), False),
    ]:
        store.unlink(missing_ok=True)
        with pytest.raises(StoppedError):
            call(data=Reads(inputs, labels, stop=3), store=store)
        with counted() as seen:
            found = call(data=Reads(*data), store=store)
        assert same(found, call(data=Reads(*data)))
        last = len(data[1]) % SIZE
        every = len(data[1]) - (last if last <= 8 else 0)
        if name != "sketch":
            assert batches_in(seen) == every - (0 if is_other else 48)


def test_what_has_started_over_goes_on(store):
    call, (inputs, labels) = partial(CALLS["statistics"], network()), examples()
    changed = inputs.clone()
    changed[40] += 1
    for data, stop in [(inputs, 3), (changed, 5)]:
        with pytest.raises(StoppedError):
            call(data=Reads(data, labels, stop=stop), store=store)
    with counted() as seen:
        found = call(data=Reads(changed, labels), store=store)
    assert batches_in(seen) == SIZE
    assert same(found, call(data=Reads(changed, labels)))


@pytest.mark.parametrize("is_other", [True, False])
@pytest.mark.parametrize("stop", [2, 6, None])
def test_calls_at_the_same_time_are_not_mixed(is_other, stop, store):
    call, other = (partial(CALLS["statistics"], network()) for _ in range(2))
    inputs, labels = examples()
    changed = inputs.clone()
    changed[20] += is_other
    reading = iter(range(100))

    class Interrupted(Reads):
        def __iter__(self):
            is_the_pass = next(reading) == 1
            for index, batch in enumerate(super().__iter__()):
                if is_the_pass and index == 4:
                    with contextlib.suppress(StoppedError):
                        other(data=Reads(changed, labels, size=10, stop=stop), store=store)
                yield batch

    plain = call(data=Reads(inputs, labels))
    with pytest.raises(StoppedError):
        call(data=Interrupted(inputs, labels, stop=5), store=store)
    assert same(call(data=Reads(inputs, labels), store=store), plain)


def test_a_finished_state_takes_no_more_examples(store):
    call, (inputs, labels) = partial(CALLS["statistics"], network()), examples()
    call(data=Reads(inputs[:48], labels[:48]), store=store)
    assert same(call(data=Reads(inputs, labels), store=store), call(data=Reads(inputs, labels)))
    with Ledger(store) as ledger:  # they were given as iterables, which do not say how many there are
        assert [item.description["examples"] for item in ledger.items("pass")] == [EXAMPLES]


CHANGES = {
    "weights": ("statistics", {}, lambda model: model[0].weight.data[0, 0, 0, 0].add_(1e-4)),
    "cells": ("statistics", {"cells": 20}, None),
    "no maps": ("statistics", {"mean_maps": False}, None),
    "classes": ("statistics", {"num_classes": 5}, None),
    "memory": ("statistics", {"memory_fraction": 0.4}, None),
    "precision": ("statistics", {"precision": "float64"}, None),
    "layers": ("statistics", {"layers": ["1"]}, None),
    "unit_dim": ("statistics", {"unit_dim": {"1": 2}}, None),
    "kind": ("signed", {"kind": "absolute"}, None),
    "layer": ("directions", {"layer": "4"}, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_called_otherwise_is_kept_beside(change, store):
    name, options, of_model = CHANGES[change]
    model, (inputs, labels) = network(), examples()
    first = Reads(inputs, labels, stop=3)
    with pytest.raises(StoppedError):
        CALLS[name](model, data=first, store=store)
    if of_model is not None:
        of_model(model)
    with counted() as seen:
        found = CALLS[name](model, data=Reads(inputs, labels), **options, store=store)
    assert batches_in(seen) == 96
    assert same(found, CALLS[name](model, data=Reads(inputs, labels), **options))
    with Ledger(store) as ledger:
        assert [item.description["finished"] for item in ledger.items("pass")] == [False, True]


class Scaled(nn.Module):
    """Reads a number where no digest sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x * float(os.environ["SDKERNELS_TEST_SCALE"]))


@pytest.mark.parametrize("name", ["statistics", "signed", "directions"])
def test_a_model_that_gives_something_else_starts_over(name, store, monkeypatch):
    inputs, labels = examples()
    at = {"layer": "inner.1"} if name == "directions" else {"layers": "inner.1"}
    monkeypatch.setenv("SDKERNELS_TEST_SCALE", "1.0")
    model = Scaled().eval()
    with pytest.raises(StoppedError):
        CALLS[name](model, data=Reads(inputs, labels, stop=3), store=store, **at)
    monkeypatch.setenv("SDKERNELS_TEST_SCALE", "1.1")
    with counted() as seen:
        found = CALLS[name](model, data=Reads(inputs, labels), store=store, **at)
    assert batches_in(seen) == 96
    assert same(found, CALLS[name](model, data=Reads(inputs, labels), **at))


class Dawdling(Reads):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.01)
            yield batch


def run_slowly(name: str, store: Path) -> None:
    passes.LEAST_SECONDS, passes.SHARE = 0.0, math.inf
    torch.set_num_threads(1)
    CALLS[name](network(), data=Dawdling(*examples(), size=4), store=store)


def test_a_killed_process_goes_on(store):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    inputs, labels = examples()
    done = [0]
    for kill in range(5):
        process = context.Process(target=run_slowly, args=("statistics", store))
        process.start()
        while (now := reached(store)) < (kill + 1) * 12 and process.is_alive():
            time.sleep(0.003)
        process.kill()
        process.join()
        assert process.exitcode < 0
        done.append(reached(store))
        assert now <= done[-1] < EXAMPLES
        assert done[-1] > done[-2]
    call = partial(CALLS["statistics"], network())
    with counted() as seen:
        found = call(data=Reads(inputs, labels, size=4), store=store)
    assert sum(count for count in seen[2:]) == EXAMPLES - done[-1]  # after two looks at the first few
    assert same(found, call(data=Reads(inputs, labels, size=4)))


def reached(store: Path) -> int:
    """Of how many examples the state is that was kept last."""
    if not store.exists():
        return 0
    try:
        with Ledger(store) as ledger:
            return max((item.description["examples"] for item in ledger.items("pass")), default=0)
    except LedgerError:  # which is being made
        return 0
