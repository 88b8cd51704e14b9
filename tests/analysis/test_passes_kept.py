"""What passes over the data keep: in one file, in parts, not too large or too often, and told where it is damaged."""

import sqlite3
from functools import partial
from pathlib import Path

import pytest
import torch

import sdkernels as sd
from sdkernels.analysis import passes
from sdkernels.analysis.states import pack
from sdkernels.engine.ledger import Ledger, LedgerError
from tests.analysis.stopped import (
    CALLS,
    CLASSES,
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
def _is_kept_after_every_batch(monkeypatch):
    keep_after_every_batch(monkeypatch)


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
