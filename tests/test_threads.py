"""Calls from several threads at once: they take turns and are right, on models of their own, on one, with one ledger;
what other threads do meanwhile is left alone; the native core is let run beside them."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import sdkernels as sd
from sdkernels.engine import turns
from sdkernels.engine.ledger import Ledger
from sdkernels.ops import ClassMoments, nested_linear_score, perturb, random_stream, rank_one
from sdkernels.ops.backend import native_library
from tests.engine.compare import tensors_of
from tests.engine.stored import differences, examples, network
from tests.engine.zoo import ZOO, build

THREADS, CALLS = 4, 2
CHOSEN = ("mlp", "convnet-bn", "vit", "lstm")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cumulative_ablation": lambda m, layers, d: sd.cumulative_ablation(m, layers, d, orders=2, points=5),
    "loop": lambda m, layers, d: sd.cumulative_ablation(m, layers, d, orders=1, points=5, method="loop"),
    "noise_robustness": lambda m, layers, d: sd.noise_robustness(m, layers, d, scales=[0.5], repeats=2),
    "unit_statistics": sd.unit_statistics,
    "taylor_importance": sd.taylor_importance,
    "another precision": lambda m, layers, d: sd.unit_importance(m, layers, d, precision="float32"),
}


@pytest.fixture(autouse=True)
def _threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each gives, all begun together, in threads of their own."""
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], Any]) -> Any:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))


def given(name: str) -> tuple[nn.Module, list[str], Any]:
    model, data = build(ZOO[name], 20)
    return model, list(ZOO[name].sites[0]), data


def same(one: Any, other: Any) -> bool:
    one, other = tensors_of(one), tensors_of(other)
    return one.keys() == other.keys() and all(torch.equal(one[k].nan_to_num(7), other[k].nan_to_num(7)) for k in one)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_calls_on_models_of_their_own(function):
    everything = [given(name) for name in CHOSEN]
    expected = [FUNCTIONS[function](*one) for one in everything]
    found = at_once(*(lambda one=one: [FUNCTIONS[function](*one) for _ in range(CALLS)] for one in everything))
    assert all(same(result, wanted) for results, wanted in zip(found, expected, strict=True) for result in results)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_calls_on_one_model(function, name):
    model, layers, data = given(name)
    expected = FUNCTIONS[function](model, layers, data)
    found = at_once(*[lambda: [FUNCTIONS[function](model, layers, data) for _ in range(CALLS)]] * THREADS)
    assert all(same(result, expected) for results in found for result in results)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_attribution_object():
    model, layers, (inputs, labels) = given("mlp")
    attribution = sd.LayerUnitAblation(model, layers[0])
    expected = attribution.attribute(inputs, target=labels)
    found = at_once(*[lambda: attribution.attribute(inputs, target=labels)] * THREADS)
    assert all(torch.equal(one, expected) for one in found)


def test_monitors_of_one_network_in_training():
    """Each switches it to evaluation mode, and back."""
    model, layers, data = given("mlp")
    expected = sd.AblationMonitor(layers, data, points=5).check(model)
    model.train()
    monitors = [sd.AblationMonitor(layers, data, points=5) for _ in range(THREADS)]
    found = at_once(*(lambda m=monitor: [m.check(model) for _ in range(CALLS)] for monitor in monitors))
    assert all(same(result, expected) for results in found for result in results)
    assert all(module.training for module in model.modules())


def test_one_ledger(tmp_path):
    """The same call twice, and another: every tile is there once, and all results are right."""
    store, data = tmp_path / "kept.sdk", examples()
    models = [network(seed=seed) for seed in (0, 0, 5)]
    expected = [sd.unit_importance(model, ["1", "3"], data) for model in models]
    found = at_once(
        *(lambda m=model: sd.unit_importance(m, ["1", "3"], data, store=store) for model in models),
    )
    for result, wanted in zip(found, expected, strict=True):
        assert not differences(result, wanted, sums_within=1e-12)
    with Ledger(store) as ledger:
        assert len(list(ledger.runs())) == 2


def test_other_threads_run_their_own_networks_meanwhile():
    """fx takes over ``nn.Module.__call__`` while it traces, of all threads; what they run is none of the graph."""
    model, layers, data = given("mlp")
    other, _, (inputs, _) = given("convnet-bn")
    expected, wanted = FUNCTIONS["cumulative_ablation"](model, layers, data), other(inputs)
    done = threading.Event()

    def runs() -> int:
        count = 0
        while not done.is_set() or not count:
            with torch.no_grad():
                assert torch.equal(other(inputs), wanted)
            count += 1
        return count

    def traces() -> list[Any]:
        try:
            return [FUNCTIONS["cumulative_ablation"](model, layers, data) for _ in range(10)]
        finally:
            done.set()

    count, results = at_once(runs, traces)
    assert count > 1
    assert all(same(result, expected) for result in results)


def test_a_turn_is_taken_again_by_who_has_it():
    order: list[str] = []
    within = threading.Event()

    def waits() -> None:
        within.wait()
        with turns.one_at_a_time():
            order.append("second")

    def holds() -> None:
        with turns.one_at_a_time(), turns.one_at_a_time():
            within.set()
            order.append("first")

    at_once(waits, holds)
    assert order == ["first", "second"]


def _moments(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    moments = ClassMoments.empty(5, 7)
    moments.update(x, labels)
    return moments.variance()


def _ops() -> dict[str, Callable[[], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((300, 7), (6, 7), (5, 6), (1, 6), (1, 5), (7,))
    x, weight, head, bias, head_bias, value = (torch.randn(*size, generator=generator) for size in sizes)
    labels, ids, units = torch.arange(300) % 5, torch.arange(300), torch.arange(7)
    living_in, living_out = torch.tensor([7, 4, 0]), torch.tensor([6, 6, 6])
    masks = torch.rand(3, 7, generator=generator) < 0.5
    walk = (x, units, weight, bias, living_in, living_out, labels)
    return {
        "random_stream": lambda: random_stream("normal", 3, torch.arange(4), ids, 50),
        "perturb": lambda: perturb(x, masks, value),
        "class_moments": lambda: _moments(x, labels),
        "nested_linear": lambda: nested_linear_score(*walk, head=head, head_bias=head_bias).loss,
        "rank_one": lambda: rank_one(x @ weight.T, weight, x, units),
    }


@pytest.mark.parametrize("name", list(_ops()))
def test_ops_keep_no_state(name):
    """Many threads, each with two of OpenMP's own, give the bits of one."""
    run = _ops()[name]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = run()
        found = at_once(*[lambda: [run() for _ in range(30)]] * 8)
        assert all(torch.equal(one, expected) for several in found for one in several)
    finally:
        torch.set_num_threads(before)


def test_the_core_releases_python_s_lock():
    """While one thread calls it, and Python never asks a thread to stop, another one gets its turn."""
    native = native_library()
    out, ids = torch.empty(4, 64, 1000), torch.arange(64)
    began, ended = threading.Event(), threading.Event()
    sys.setswitchinterval(1000)

    def calls() -> None:
        seed = torch.zeros(1, dtype=torch.int64)
        addresses = [tensor.data_ptr() for tensor in (seed, ids, ids, out)]
        began.set()
        for _ in range(50):
            native.random_stream(*addresses, 4, 64, 1000, 0, 2, 1)
        ended.set()

    thread = threading.Thread(target=calls)
    thread.start()
    began.wait()
    was_alone = ended.is_set()
    thread.join()
    assert not was_alone
