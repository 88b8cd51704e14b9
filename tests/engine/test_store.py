"""store=: a call that is stopped and made again gives what it gives at once, and does little twice."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from sdkernels.analysis.ablation import ablate, cumulative_ablation, unit_importance
from sdkernels.analysis.directions import ablate_directions
from sdkernels.analysis.noise import noise_robustness
from sdkernels.analysis.pairs import pair_importance
from sdkernels.engine.job import Tally
from sdkernels.engine.ledger import Ledger
from sdkernels.engine.parts import _Here
from tests.engine.stored import (
    EXAMPLES,
    FIRST,
    SIZE,
    Reads,
    StoppedError,
    differences,
    examples,
    network,
    set_small_tiles,
    tiles_scored,
)

BOTH = ["1", "3"]
HALF = torch.tensor([0.5, 0.25, 0.0, -1.0, 2.0], dtype=torch.float64)


def squared(logits, labels):
    return logits.gather(1, labels[:, None])[:, 0].square()


def basis(count):
    generator = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(count, count, generator=generator, dtype=torch.float64)).Q


CALLS = {
    "curves": partial(cumulative_ablation, layers=BOTH, orders=3, points=5),
    "curves-outcomes": partial(cumulative_ablation, layers=BOTH, orders=2, points=4, outcomes=True),
    "curves-metrics": partial(
        cumulative_ablation,
        layers="1",
        orders=2,
        points="all",
        metrics=["top5", "class_accuracy", "agreement", squared],
    ),
    "curves-loop": partial(cumulative_ablation, layers="3", orders=2, points=3, method="loop", outcomes=True),
    "units": partial(unit_importance, layers=BOTH, metrics=["loss", "class_accuracy"]),
    "units-mean": partial(unit_importance, layers=BOTH, value="mean"),
    "units-class-mean": partial(unit_importance, layers="3", value="class_mean"),
    "units-resample": partial(unit_importance, layers=BOTH, value="resample", seed=5),
    "units-tensor": partial(unit_importance, layers="3", value=HALF, precision="float32"),
    "units-within": partial(unit_importance, layers="3", within=1.5, outcomes=True),
    "sets": partial(ablate, layers=BOTH, units=[[], [0], [1, 7], range(11)], outcomes=True),
    "directions": partial(ablate_directions, layers="3", directions=basis(5), orders=2, points=4),
    "noise": partial(noise_robustness, layers=BOTH, scales=[0, 0.5, 2], repeats=2),
    "noise-common": partial(noise_robustness, layers=BOTH, scales=[0.5, 2], repeats=3, common_random_numbers=True),
    "pairs": partial(pair_importance, layers="3", outcomes=True),
}
PASS_BEFORE = ("units-mean", "units-class-mean", "units-within", "noise", "noise-common")  # which would be stopped
SAMPLED = {
    "curves": partial(cumulative_ablation, layers="1", orders=3, points=4, tolerance=0.05, tolerance_of="accuracy"),
    "units": partial(unit_importance, layers="1", tolerance=0.05, value="resample"),
    "noise-common": partial(
        noise_robustness, layers="1", scales=[0.1, 3], repeats=2, common_random_numbers=True, tolerance=0.04
    ),
}


@pytest.fixture(autouse=True)
def _tiles_are_small(monkeypatch):
    set_small_tiles(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "work.sdk"


@pytest.mark.parametrize("name", CALLS)
def test_stopped_anywhere_it_ends_bit_for_bit_as_at_once_and_repeats_one_tile(name, store):
    call, (inputs, labels) = partial(CALLS[name], network()), examples()
    own = {"value_data": (inputs, labels)} if name == "units-resample" else {}  # else donors would be read as well
    own["batch_size"] = SIZE  # as means, and sums by hooks, are rounded by it
    plain = call(data=(inputs, labels), **own)
    with tiles_scored() as whole:
        at_once = call(data=Reads(inputs, labels), store=store.with_name("at once.sdk"), **own)
    assert not differences(at_once, plain, sums_within=1e-10)
    assert whole == [(0, FIRST), *((start, min(SIZE, EXAMPLES - start)) for start in range(FIRST, EXAMPLES, SIZE))]
    done: list[tuple[int, int]] = []
    if name not in PASS_BEFORE:
        for stop in (2 * SIZE - 1, 5 * SIZE):  # in the first tile, and in the fourth
            with tiles_scored() as scored, pytest.raises(StoppedError):
                call(data=Reads(inputs, labels, stop), store=store, **own)
            assert not set(scored) & set(done)  # none of those that were finished
            done += scored
        assert done == whole[: 1 + (5 * SIZE - FIRST) // SIZE]
    with tiles_scored() as scored:
        assert not differences(call(data=(inputs, labels), store=store, **own), at_once)
    assert done + scored == whole
    with tiles_scored() as scored:
        again = call(data=(inputs, labels), store=store, **own)
    assert not scored
    assert not differences(again, at_once)
    with Ledger(store) as ledger:
        (run,) = ledger.runs()
        assert run.finished is not None
        assert ledger.check() == 1 + len(whole)
    assert "of the tiles were in" in again.plan


@pytest.mark.parametrize("name", ["curves-loop", "units-class-mean", "noise", "pairs"])
def test_stopped_between_scoring_and_keeping_it_repeats_that_tile_alone(name, store, monkeypatch):
    call, data = partial(CALLS[name], network()), examples()
    keep, kept = Ledger.keep_tile, []

    def keeping_some(self, *tile):
        if len(kept) == 3:
            raise StoppedError
        kept.append(tile)
        keep(self, *tile)

    with monkeypatch.context() as patch, tiles_scored() as first:
        patch.setattr(Ledger, "keep_tile", keeping_some)
        with pytest.raises(StoppedError):
            call(data=data, store=store)
    with tiles_scored() as second:
        continued = call(data=data, store=store)
    assert len(set(first) & set(second)) == 1
    assert len(first) == 4
    assert not differences(continued, call(data=data, store=store.with_name("at once.sdk")))


@pytest.mark.parametrize("name", SAMPLED)
def test_a_call_in_stages_goes_on_at_the_tile_it_was_at(name, store, monkeypatch):
    inputs, _ = examples(700)
    call, data = partial(SAMPLED[name], network()), (inputs, network()(inputs).argmax(1))
    plain = call(data=data)
    with tiles_scored() as whole:
        at_once = call(data=data, store=store.with_name("at once.sdk"))
    assert not differences(at_once, plain, sums_within=1e-10)
    assert len(plain.used.unique()) > 1, "all stop at once: a poor test"
    score = _Here._score_anew
    counted = []

    def scoring(self, *args):
        if len(counted) == len(whole) // 2:
            raise StoppedError
        counted.append(1)
        return score(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_Here, "_score_anew", scoring)
        with pytest.raises(StoppedError):
            call(data=data, store=store)
    with tiles_scored() as scored:
        assert not differences(call(data=data, store=store), at_once)
    assert len(scored) == len(whole) - len(whole) // 2
    with Ledger(store) as ledger:
        assert len(ledger.runs()) == 1


def test_another_tolerance_takes_what_is_of_the_same_configurations_alone(store):
    inputs, _ = examples(500)
    data = inputs, network()(inputs).argmax(1)
    call = partial(ablate, network(), "1", data, units=[[0], [1], [], [2, 3, 4, 5]])
    for tolerance in (0.06, 0.1, 0.08):
        found = call(tolerance=tolerance, store=store)
        assert not differences(found, call(tolerance=tolerance), sums_within=1e-10)
    with Ledger(store) as ledger:
        assert len(ledger.runs()) == 1


def test_data_changed_in_the_middle_is_scored_anew_there_and_nowhere_else(store):
    call, (inputs, labels) = partial(CALLS["curves-outcomes"], network()), examples()
    call(data=(inputs, labels), store=store)
    for change in ("inputs", "labels"):
        other, their = inputs.clone(), labels.clone()
        if change == "inputs":
            other[30, 2] = torch.nextafter(other[30, 2], torch.tensor(9.0, dtype=torch.float64))
        else:
            their[30] = (their[30] + 1) % 5
        with tiles_scored() as scored:
            found = call(data=(other, their), store=store)
        assert scored == [(24, SIZE)]
        assert not differences(found, call(data=(other, their)), sums_within=1e-10)


@pytest.mark.parametrize("count", [40, 61, 96])
def test_examples_that_came_or_went_at_the_end_leave_the_others_work(count, store):
    call = partial(CALLS["curves-outcomes"], network())
    inputs, labels = examples(96)
    call(data=(inputs[:61], labels[:61]), store=store)
    data = inputs[:count], labels[:count]
    with tiles_scored() as scored:
        found = call(data=data, store=store)
    assert not differences(found, call(data=data), sums_within=1e-10)
    assert {start for start, _ in scored} == set(range(56, count, SIZE) if count > 61 else ())


def test_a_loader_that_shuffles_gives_right_results_and_mixes_nothing(store, seeds_torch):
    call, (inputs, labels) = partial(CALLS["units"], network()), examples()
    whole = call(data=(inputs, labels))
    for _ in range(3):
        loader = DataLoader(TensorDataset(inputs, labels), batch_size=5, shuffle=True)
        torch.rand(1)  # a loader's order is drawn by the global state, which the call leaves as it was
        assert not differences(call(data=loader, store=store), whole, sums_within=1e-10)


def test_the_same_examples_in_another_order_are_other_work(store):
    call, (inputs, labels) = partial(CALLS["noise"], network(), sd={"1": torch.ones(6), "3": torch.ones(5)}), examples()
    call(data=(inputs, labels), store=store)
    order = torch.arange(EXAMPLES).flip(0)
    data = inputs[order], labels[order]
    assert not differences(call(data=data, store=store), call(data=data), sums_within=1e-10)


class Reader(nn.Module):
    """The mean of tokens' vectors, then three logits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.embed = nn.Embedding.from_pretrained(torch.randn(9, 5, generator=generator, dtype=torch.float64))
        self.act, self.out = nn.Tanh(), nn.utils.skip_init(nn.Linear, 5, 5, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.out.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens):
        return self.out(self.act(self.embed(tokens).mean(1)))


def test_texts_of_several_lengths(store, tmp_path):
    generator = torch.Generator().manual_seed(5)
    batches = [
        (torch.randint(0, 9, (count, length), generator=generator), torch.randint(0, 5, (count,), generator=generator))
        for count, length in ((6, 3), (20, 4), (20, 4), (3, 7), (9, 4))
    ]
    call = partial(unit_importance, Reader().eval(), "act")
    plain = call(batches)
    with tiles_scored() as whole:
        at_once = call(batches, store=tmp_path / "at once.sdk")
    assert not differences(at_once, plain, sums_within=1e-10)
    assert [count for _, count in whole] == [6, 8, 8, 8, 8, 8, 3, 8, 1]

    def stopping():
        yield from batches[:2]
        raise StoppedError

    class Stopping:
        def __iter__(self):
            return stopping()

    with tiles_scored() as first, pytest.raises(StoppedError):
        call(Stopping(), store=store)
    with tiles_scored() as second:
        assert not differences(call(batches, store=store), at_once)
    assert first + second == whole


def test_a_loader_with_worker_processes(store):
    call, (inputs, labels) = partial(CALLS["curves"], network()), examples()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=9, num_workers=2)
    found = call(data=loader, store=store)
    assert not differences(found, call(data=(inputs, labels)), sums_within=1e-10)
    with Ledger(store) as ledger, tiles_scored() as scored:
        assert ledger.check() == 8
        assert not differences(call(data=(inputs, labels), store=store), found)
        assert not scored


def test_another_process_may_have_cut_the_call_otherwise(store, monkeypatch):
    """It began while this one scored its first tile, with workers, in two parts."""
    call, data = partial(CALLS["curves-outcomes"], network()), examples()
    plain = call(data=data)
    add = Ledger.add_run

    def adding(self, key, kind, description):
        monkeypatch.setattr(Ledger, "add_run", add)
        theirs = {**description, "layout": {"first": 20, "size": 20, "parts": 2}}
        return add(self, key, kind, theirs)

    monkeypatch.setattr(Ledger, "add_run", adding)
    with tiles_scored() as scored:
        found = call(data=data, store=store)
    assert scored == [
        (0, FIRST),
        *((start, n) for start, n in ((0, 20), (20, 20), (40, 20), (60, 1)) for _ in range(2)),
    ]
    assert not differences(found, plain, sums_within=1e-10)


def test_a_run_in_parts_goes_on_with_noise_of_which_some_is_finished():
    from sdkernels.engine.families import Noise
    from sdkernels.engine.keeping import Layout

    draws = torch.arange(4).repeat_interleave(3)
    family = Noise(torch.rand(12, generator=torch.Generator().manual_seed(0)), draws, (torch.ones(2),), False, 0)
    left = family.only(torch.tensor([0, 1, 3, 6, 7, 8, 11]))
    parts = Layout(8, 8, 3).families(left)
    assert torch.cat([chosen for chosen, _ in parts]).tolist() == list(range(7))
    assert [part.draws.tolist() for _, part in parts] == [[0, 0, 1], [2, 2, 2], [3]]


def test_hooks_take_no_more_examples_at_once_than_a_batch(store, monkeypatch):
    monkeypatch.setattr("sdkernels.engine.parts.TILE_SECONDS", 1e6)
    sizes = []

    class Seen(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x

    inputs, labels = examples()
    labels[50] = 9
    model = nn.Sequential(*network(), Seen()).eval()
    with pytest.raises(ValueError, match="label 9 of example 50 is out"):
        unit_importance(model, "1", (inputs, labels), method="loop", batch_size=4, store=store)
    assert max(sizes) <= 8


def test_a_kept_tile_of_other_shapes_is_refused(store):
    seen = []
    keep = Ledger.keep_tile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "keep_tile", lambda self, *tile: (seen.append(tile), keep(self, *tile)))
        ablate(network(), "1", examples(9), units=[[0]], store=store)
        original = Tally.from_bytes.__func__
        patch.setattr(Tally, "from_bytes", classmethod(lambda cls, job, _: original(cls, job, seen[0][-1])))
        patch.setattr(Ledger, "tile", lambda *_: b"")
        # The first call begins a run, the second one looks into it; shapes are not made to fit by broadcasting.
        ablate(network(), "1", examples(9), units=[[0], [1]], store=store)
        with pytest.raises(ValueError, match=r"a tile's 'sums/accuracy' is torch.int64 \[1\], and this call's"):
            ablate(network(), "1", examples(9), units=[[0], [1]], store=store)


def test_results_say_nothing_of_how_they_were_come_by(store):
    data = examples()
    plain, stored = (sd.unit_importance(network(), "1", data, store=path) for path in (None, store))
    assert plain.versions == stored.versions
    assert plain.seed == stored.seed
