"""Memory: the plan announces what a run takes, the limit holds, and running out of it costs time and nothing else."""

import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.analysis.pairs import pair_importance
from sdkernels.engine import fused, memory, products, runner, tiles, walk
from sdkernels.engine.batches import Batch, gather
from sdkernels.engine.tiles import TileRun
from sdkernels.lab.models import convnet, mlp
from tests.engine import resident
from tests.engine.compare import tensors_of
from tests.engine.networks import image_networks
from tests.engine.parse import read_plan

MEBIBYTE = 2**20
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
MEASURED = [name for name in resident.CASES if name != "whole-convnet"]


@pytest.fixture(scope="module")
def taken() -> dict[str, resident.Measured]:
    return resident.measure(*MEASURED)


@ON_LINUX
@pytest.mark.parametrize("name", MEASURED)
def test_a_run_takes_what_the_plan_announced(taken, name):
    found = taken[name]
    assert found.taken <= 1.2 * found.announced
    assert found.announced <= 5 * found.taken


@ON_LINUX
@pytest.mark.slow
def test_ten_thousand_images_stay_below_the_limit():
    found = resident.measure("whole-convnet", limit=2**31)["whole-convnet"]
    assert found.taken <= min(2**31, 1.2 * found.announced)


def _curve(**options: Any) -> Any:
    torch.manual_seed(0)
    model, layers = image_networks()["convnet-relu"]
    data = torch.randn(50, 2, 6, 6).double(), torch.randint(0, 5, (50,))
    return sd.cumulative_ablation(model, layers, data, orders=2, points="all", **options)


def _singles(**options: Any) -> Any:
    torch.manual_seed(0)
    model, layers = image_networks()["convnet-relu"]
    data = torch.randn(50, 2, 6, 6).double(), torch.randint(0, 5, (50,))
    return sd.unit_importance(model, layers, data, **options)


def _kernel(**options: Any) -> Any:
    torch.manual_seed(0)
    model = mlp(8, (12, 9), 5, seed=0).double().eval()
    data = torch.randn(50, 8).double(), torch.randint(0, 5, (50,))
    return sd.cumulative_ablation(model, ["relu1", "relu2"], data, orders=2, points="all", **options)


def _normed(**options: Any) -> Any:
    """What reads the units is no product: it is given them whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.LayerNorm(12), nn.Linear(12, 5)).double().eval()
    data = torch.randn(50, 8).double(), torch.randint(0, 5, (50,))
    return sd.cumulative_ablation(model, "1", data, orders=2, points="all", **options)


def _pairs(**options: Any) -> Any:
    torch.manual_seed(0)
    model = mlp(8, (12, 9, 9), 5, seed=0).double().eval()
    data = torch.randn(50, 8).double(), torch.randint(0, 5, (50,))
    return pair_importance(model, "relu1", data, pairs=[[0, 1], [0, 7], [2, 0], [7, 8], [7, 9]], value=-1.0, **options)


RUNS = {"curve": _curve, "singles": _singles, "kernel": _kernel, "normed": _normed, "pairs": _pairs}


def assert_equal(given: Any, expected: Any) -> None:
    """All integers are equal, and sums to 1e-12."""
    theirs = tensors_of(expected)
    for name, tensor in tensors_of(given).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", list(RUNS))
def test_a_low_limit_makes_small_tiles(monkeypatch, seeds_torch, name):
    expected = RUNS[name]()
    whole = read_plan(expected.plan)
    assert whole.tile == 50
    found: dict[int, Any] = {}
    for limit in (2.0 ** (12 + step / 2) for step in range(30)):
        monkeypatch.setattr(runner, "memory_limit", lambda _device, _fraction, limit=limit: limit)
        try:
            result = RUNS[name]()
        except MemoryError as error:
            assert not found, "more memory is no worse"
            assert "on cpu, too much for the limit of" in str(error)  # noqa: PT017
            assert "raise memory_fraction" in str(error)  # noqa: PT017
            continue
        plan = read_plan(result.plan)
        assert plan.peak <= plan.limit
        if plan.tile not in found:
            found[plan.tile] = result
        if plan.tile == 50:
            break
    assert len(found) > 1
    assert list(found) == sorted(found)
    for result in found.values():
        assert_equal(result, expected)


def test_the_limit_is_a_fraction_of_the_memory(seeds_torch):
    device = torch.device("cpu")
    whole = memory.memory_limit(device, 1.0)
    assert memory.memory_limit(device, 0.25) == whole / 4
    assert read_plan(_kernel(memory_fraction=0.25).plan).limit == pytest.approx(whole / 4, abs=MEBIBYTE)


def test_not_even_one_example_fits(monkeypatch, seeds_torch):
    monkeypatch.setattr(runner, "memory_limit", lambda _device, _fraction: 1024.0)
    with pytest.raises(MemoryError, match=r"one example takes .* MiB on cpu, .* limit of 0.0 MiB; raise memory_frac"):
        _curve()


class Bar:
    """Stands in for tqdm's."""

    def __init__(self, total: int | None, **_options: Any) -> None:
        self.total, self.done, self.steps = total, 0, 0

    def update(self, count: int) -> None:
        self.done += count
        self.steps += 1
        assert self.total is not None
        assert 0 <= self.done <= self.total

    def close(self) -> None:
        assert self.done == self.total


def _fails(
    monkeypatch: pytest.MonkeyPatch, owner: ModuleType | type, name: str, when: Callable[..., bool]
) -> list[int]:
    """Let a function of the engine run out of memory, once the run itself has begun; the list counts how often."""
    function, budget = getattr(owner, name), TileRun.budget
    begun: list[int] = []
    failed: list[int] = []

    def measured(*args: Any) -> Any:
        result = budget(*args)
        begun.append(1)
        return result

    def failing(*args: Any, **options: Any) -> Any:
        if begun and (error := when(*args)):
            failed.append(1)
            raise error
        return function(*args, **options)

    monkeypatch.setattr(TileRun, "budget", measured)
    monkeypatch.setattr(owner, name, failing)
    return failed


ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory"),
    "python": MemoryError(),
    "allocator": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"
    ),
}
# Where it fails, and which argument has the examples.
PLACES = {
    "curve": (products.Product, "__call__", 1),
    "singles": (products.Product, "__call__", 1),
    "kernel": (fused, "nested_linear_score", 0),
    "normed": (walk, "perturb", 0),
    "pairs": (products.Product, "__call__", 1),
}


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Nothing runs side by side, so that what the engine's functions are given is a tile."""
    for module in (memory, tiles):
        monkeypatch.setattr(module, "WORKING_SET", {"cpu": 1})


@pytest.mark.parametrize("error", list(ERRORS))
@pytest.mark.parametrize("name", list(PLACES))
def test_running_out_of_memory_halves_the_tiles(monkeypatch, seeds_torch, one_at_a_time, name, error):
    expected = RUNS[name]()
    assert 10 < read_plan(expected.plan).tile <= memory.FEWEST == 16
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    owner, function, at = PLACES[name]
    failed = _fails(monkeypatch, owner, function, lambda *args: ERRORS[error] if len(args[at]) > 5 else None)
    result = RUNS[name](show_progress=True)
    assert len(failed) == 2  # 16, 8, and then all are 4
    assert read_plan(result.plan).tile == 4
    assert_equal(result, expected)
    assert read_plan(result.plan).notes == read_plan(expected.plan).notes


def test_a_tile_that_fails_late_leaves_no_trace(monkeypatch, seeds_torch, one_at_a_time):
    """At the last points of a tile, with scores and progress of many others behind it."""
    expected = _kernel()
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    calls: list[int] = []

    def third(a: torch.Tensor, *_: Any) -> Exception | None:
        calls.append(len(a))
        return ERRORS["torch"] if len(calls) == 4 else None  # the second order of the second tile

    failed = _fails(monkeypatch, fused, "nested_linear_score", third)
    result = _kernel(show_progress=True)
    assert len(failed) == 1
    assert calls[:6] == [13, 13, 13, 13, 7, 7]
    assert_equal(result, expected)


def test_what_did_not_fit_is_let_go(monkeypatch, seeds_torch, one_at_a_time):
    """Before smaller tiles run: else they would have even less memory."""
    score = TileRun.score
    failed: list[weakref.ref] = []

    def failing(self: TileRun, tile: Any, *args: Any) -> None:
        assert all(ref() is None for ref in failed)
        if len(tile.batch.labels) > 5:
            failed.append(weakref.ref(tile.logits))
            raise torch.OutOfMemoryError("CUDA out of memory")
        score(self, tile, *args)

    monkeypatch.setattr(TileRun, "score", failing)
    _curve()
    assert len(failed) == 2


def test_fewer_run_side_by_side_after_memory_ran_out(monkeypatch, seeds_torch):
    """Small tiles of a curve run many points at once: as much memory as large ones of few."""
    expected = _curve()
    rows: list[int] = []

    def too_many(_self: Any, x: torch.Tensor, *_: Any) -> Exception | None:
        rows.append(len(x))
        return ERRORS["torch"] if len(x) > 40 else None

    for module in (memory, tiles):
        monkeypatch.setattr(module, "WORKING_SET", {"cpu": 2**18})
    failed = _fails(monkeypatch, products.Product, "__call__", too_many)
    result = _curve()
    assert failed
    assert 20 < rows[-1] <= 40 or max(rows[-20:]) <= 40
    assert_equal(result, expected)


def test_an_example_that_does_not_fit(monkeypatch, seeds_torch, one_at_a_time):
    model = mlp(8, (12, 9), 5, seed=0).double().eval()
    data = torch.randn(50, 8).double(), torch.randint(0, 5, (50,))
    failed = _fails(monkeypatch, fused, "nested_linear_score", lambda *_: ERRORS["allocator"])
    with pytest.raises(MemoryError, match=r"memory ran out on one example .*can't allocate memory.*configs_per_batch"):
        sd.cumulative_ablation(model, ["relu1", "relu2"], data)
    assert len(failed) == 5  # 16, 8, 4, 2, 1
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_other_errors_pass_through(monkeypatch, seeds_torch, one_at_a_time):
    model = mlp(8, (12, 9), 5, seed=0).double().eval()
    data = torch.randn(50, 8).double(), torch.randint(0, 5, (50,))
    failed = _fails(monkeypatch, fused, "nested_linear_score", lambda *_: RuntimeError("out of patience"))
    with pytest.raises(RuntimeError, match="out of patience"):
        sd.cumulative_ablation(model, ["relu1", "relu2"], data)
    assert len(failed) == 1
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_longer_examples_get_tiles_of_their_own(monkeypatch, seeds_torch):
    """Texts of several lengths: what the first of them takes says nothing of the others."""
    model = nn.Sequential(nn.Embedding(9, 64), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1)

    model = nn.Sequential(*model, Mean()).double().eval()
    lengths = (2, 400, 2, 400)
    data = [(torch.randint(0, 9, (20, length)), torch.randint(0, 4, (20,))) for length in lengths]
    expected = sd.cumulative_ablation(model, "2", data, orders=1, points=3)
    budget = TileRun.budget
    found: list[memory.Budget] = []
    monkeypatch.setattr(TileRun, "budget", lambda *args: found.append(budget(*args)) or found[-1])
    intact = TileRun.intact
    sizes: dict[int, set[int]] = {length: set() for length in lengths}
    monkeypatch.setattr(
        TileRun,
        "intact",
        lambda self, batch, *args: sizes[batch.inputs.shape[1]].add(len(batch.labels)) or intact(self, batch, *args),
    )
    monkeypatch.setattr(runner, "memory_limit", lambda _device, _fraction: 8.0 * MEBIBYTE)
    assert_equal(sd.cumulative_ablation(model, "2", data, orders=1, points=3), expected)
    short, long = found
    assert long.by_example > 50 * short.by_example
    assert short.peak(20) < 8 * MEBIBYTE < long.peak(20)
    assert max(sizes[400] - {8}) <= long.tile(torch.device("cpu")) < 20


def test_the_meter_counts_what_lives_at_once():
    x = torch.zeros(1000)  # 4000 bytes, there before

    def work() -> None:
        a = x + 1  # 4000
        b = a.view(10, 100)[2:]  # the same memory
        del a
        c = b * 2  # 7200 with b's
        c.add_(1)
        del b
        torch.cat([c, c])

    assert memory._peak(work) == max(4000 + 3200, 3200 + 6400)


def test_convolutions_take_memory_that_no_tensor_shows():
    model = convnet(width=1 / 8, seed=0).eval().conv1
    x = torch.zeros(10, 3, 32, 32)
    y = model(x)
    with torch.no_grad():
        assert memory._peak(lambda: model(x)) == y.nbytes + (x.nbytes + y.nbytes)
        assert memory._peak(lambda: model.double()(x.double())) >= 2 * y.nbytes + 9 * 2 * x.nbytes


def test_gathered_parts_are_let_go():
    """A tile made of many batches takes its memory once."""
    living: list[weakref.ref] = []

    def parts():
        for _ in range(6):
            part = torch.zeros(5, 2)
            living.append(weakref.ref(part))
            yield Batch(part, *[torch.zeros(5, dtype=torch.int64)] * 3)
            del part

    for whole in gather(parts(), 10):
        assert len(whole.inputs) == 10
        assert sum(ref() is not None for ref in living) <= 1  # the last of them is the loop's own
        del whole
