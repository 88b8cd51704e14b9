"""Passes over the data that were stopped go on, bit for bit, and only where nothing has changed."""

import contextlib
import math
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.analysis import passes
from sdkernels.analysis.states import pack
from sdkernels.engine.examples import ExamplesDigest
from sdkernels.engine.ledger import Ledger, LedgerError

EXAMPLES, SIZE, CLASSES = 101, 16, 4

CALLS = {
    "statistics": partial(sd.unit_statistics, layers=["1", "4"], mean_maps=True),
    "sketch": partial(sd.unit_statistics, layers=["1", "4"], mean_maps=True),  # with the fixture of few blocks
    "moments": partial(sd.unit_statistics, layers=["1", "4"], cells=0),
    "signed": partial(sd.taylor_importance, layers=["1", "4"]),
    "squared": partial(sd.taylor_importance, layers=["1", "4"], kind="squared"),
    "directions": partial(sd.principal_directions, layer="1"),
}


class StoppedError(Exception):
    pass


class Reads:
    """Batches of given examples, which break off before one of them, and may say how many there are."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor, size: int = SIZE, stop: int | None = None) -> None:
        self.inputs, self.labels, self.size, self.stop = inputs, labels, size, stop

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, start in enumerate(range(0, len(self.labels), self.size)):
            if index == self.stop:
                raise StoppedError
            yield self.inputs[start : start + self.size], self.labels[start : start + self.size]


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        convolution, *linear = nn.Conv2d(2, 5, 3), nn.Linear(80, 7), nn.Linear(7, CLASSES)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), linear[0], nn.ReLU(), linear[1])
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model.eval()


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    """Of which none is of class 2."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (EXAMPLES,), generator=generator)
    return torch.randn(EXAMPLES, 2, 6, 6, generator=generator), labels + (labels == 2)


def same(one: object, other: object) -> bool:
    """Whether two results have the same bits, whatever else they say."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(math.pi), other.nan_to_num(math.pi))
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """How many examples each forward pass was of; not by hooks, which are part of the model."""
    seen: list[int] = []
    convolved = nn.functional.conv2d

    def counting(x: torch.Tensor, *rest) -> torch.Tensor:
        seen.append(len(x))
        return convolved(x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "conv2d", counting)
        yield seen


def batches_in(seen: list[int]) -> int:
    """How many examples were passed on, beside the few that layers and the model are looked at with."""
    return sum(count for count in seen if count > 8)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "work.sdk"


@pytest.fixture(autouse=True)
def _is_kept_after_every_batch(monkeypatch, request):
    monkeypatch.setattr(passes, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(passes, "SHARE", math.inf)
    monkeypatch.setattr("sdkernels.analysis.gathered.BLOCK", 6)  # of which no batch is a multiple
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


def test_one_file_holds_what_several_functions_and_data_sets_left(store):
    model, (inputs, labels) = network(), examples()
    sets = [(inputs, labels), (inputs.flip(0), labels.flip(0))]
    names = ["statistics", "moments", "signed", "squared", "directions"]
    for data in sets:
        for name in names:
            with pytest.raises(StoppedError):
                CALLS[name](model, data=Reads(*data, stop=4), store=store)
    sd.unit_importance(model, "4", sets[0], store=store)
    for data in sets:
        for name in names:
            with counted() as seen:
                found = CALLS[name](model, data=Reads(*data), store=store)
            assert batches_in(seen) == 2 * SIZE
            assert same(found, CALLS[name](model, data=Reads(*data)))
    with Ledger(store) as ledger:
        assert ledger.kinds() == {"pass": 10}
        assert len(ledger.runs()) == 1
        about = [item.description for item in ledger.items("pass")]
        assert {one["function"] for one in about} == {*("unit_statistics", "taylor_importance", "principal_directions")}
        assert all(one["layers"] == ["1", "4"] for one in about if one["function"] != "principal_directions")
        assert about[0]["versions"]["torch"] == str(torch.__version__)


@pytest.mark.parametrize("kind", ["pass", "pass rows"])
def test_damage_is_told(kind, store):
    inputs, labels = examples()
    with pytest.raises(StoppedError):
        CALLS["statistics"](network(), data=Reads(inputs, labels, stop=3), store=store)
    file = sqlite3.connect(store)
    with file:
        ((content,),) = file.execute("SELECT content FROM items WHERE kind = ? LIMIT 1", (kind,)).fetchall()
        spoiled = bytes(content[:-30]) + bytes([content[-30] ^ 1]) + bytes(content[-29:])
        file.execute("UPDATE items SET content = ? WHERE kind = ? AND content = ?", (spoiled, kind, content))
    file.close()
    with pytest.raises(LedgerError, match=rf"work\.sdk is damaged: {kind} [0-9a-f]{{12}} is not what was written"):
        CALLS["statistics"](network(), data=Reads(inputs, labels), store=store)


@pytest.mark.parametrize("is_there", [True, False])
def test_rows_that_another_call_has_put_there_are_not_taken(is_there, store):
    inputs, labels = examples()
    call = partial(CALLS["statistics"], network())
    with pytest.raises(StoppedError):
        call(data=Reads(inputs, labels, stop=3), store=store)
    with Ledger(store) as ledger:
        (item,) = ledger.items("pass")
        if is_there:
            rows = {"0": torch.ones(SIZE, 5), "1": torch.ones(SIZE, 7)}
            ledger.keep_item("pass rows", f"{item.key}/1", {}, pack({"row": [16, 32, "0" * 64]}, rows))
        else:
            ledger.drop_item("pass rows", f"{item.key}/1")
    assert same(call(data=Reads(inputs, labels), store=store), call(data=Reads(inputs, labels)))


def test_rows_are_written_once_each_and_in_parts(store, monkeypatch):
    monkeypatch.setattr(passes, "ROWS_AT_ONCE", 5 * (5 + 7) * 4)  # bytes of 5 examples
    inputs, labels = examples()
    call = partial(CALLS["statistics"], network())
    for stop in (2, 3):
        with pytest.raises(StoppedError):
            call(data=Reads(inputs, labels, stop=stop), store=store)
    with Ledger(store) as ledger:
        about = [item.description for item in ledger.items("pass rows")]
        assert [one["from"] for one in about] == [0, 5, 10, 15, 16, 21, 26, 31, 32, 37, 42, 47]
    assert same(call(data=Reads(inputs, labels), store=store), call(data=Reads(inputs, labels)))
    with Ledger(store) as ledger:
        assert ledger.kinds() == {"pass": 1}


def test_what_is_too_large_is_done_again_from_where_it_became_so(store, monkeypatch):
    monkeypatch.setattr(passes, "LARGEST_ROWS", 40 * (5 + 7) * 4)
    inputs, labels = examples()
    call = partial(CALLS["statistics"], network())
    with pytest.raises(StoppedError):
        call(data=Reads(inputs, labels, stop=5), store=store)
    with counted() as seen:
        assert same(call(data=Reads(inputs, labels), store=store), call(data=Reads(inputs, labels)))
    assert batches_in(seen) == (96 - 32) + 96  # and the call without a store
    monkeypatch.setattr(passes, "LARGEST_STATE", 100)
    assert same(CALLS["directions"](network(), data=Reads(inputs, labels), store=store),
                CALLS["directions"](network(), data=Reads(inputs, labels)))  # fmt: skip
    with Ledger(store) as ledger:
        assert ledger.kinds() == {"pass": 1}


def test_activations_stay_where_their_histograms_are_larger(store, monkeypatch):
    limit = 8 * CLASSES * 12 * 61 - 1
    monkeypatch.setattr(passes, "LARGEST_STATE", limit)
    monkeypatch.setattr("sdkernels.analysis.unit_statistics.LARGEST_STATE", limit)
    inputs, labels = examples()
    call = partial(CALLS["statistics"], network(), data=Reads(inputs, labels))
    plain = call()
    for _ in range(2):
        assert same(call(store=store), plain)
    with counted() as seen:
        assert same(call(store=store), plain)
    assert batches_in(seen) == 0
    with Ledger(store) as ledger:
        assert [item.description["finished"] for item in ledger.items("pass")] == [False]


def test_keeping_takes_little_of_the_time(store, monkeypatch):
    monkeypatch.setattr(passes, "LEAST_SECONDS", 10.0)
    monkeypatch.setattr(passes, "SHARE", 0.03)
    now, kept = [0.0], []

    class Clock:
        perf_counter = staticmethod(lambda: now[0])

    def keep(_ledger, _kind, _key, description, _content):
        kept.append(description["examples"])
        now[0] += 1.0  # so that 33 s must lie between two

    class Slow(Reads):
        def __iter__(self):
            for batch in super().__iter__():
                now[0] += 4.0
                yield batch

    monkeypatch.setattr(passes, "time", Clock)
    monkeypatch.setattr(Ledger, "keep_item", keep)
    inputs, labels = examples()
    sd.principal_directions(network(), "1", Slow(inputs, labels, size=4), store=store)
    assert kept == [12, 48, 84, 101]  # after 12 s, 36 s, 36 s, and at the end


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
