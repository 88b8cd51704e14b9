"""What does not show in results, and how exactly: function by function, whatever is varied.

===================================================== ==================================================
varied                                                promised
===================================================== ==================================================
nothing; the process; the seed of hashes              every bit (CPU, as many threads)
threads, batches, tiles, ``memory_fraction``, memory, every whole number and outcome, but for ambiguous
``configs_per_batch``, ``store``, ``workers``         examples; other numbers to rounding, ``ROUNDING``
all of these                                          every bit of the noise, and of who is drawn
===================================================== ==================================================

The networks have no ambiguous example; ``test_ties_are_ambiguous`` says what holds of those that have.
"""

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from sdkernels.engine import elsewhere, memory, tiles
from sdkernels.lab.models import mlp
from sdkernels.lab.training import TrainingOptions, train
from tests.engine.compare import tensors_of
from tests.engine.parse import read_plan
from tests.engine.stored import set_small_tiles
from tests.engine.zoo import ZOO, build
from tests.pairwise import pairwise

ROOT = Path(__file__).parents[1]
EXAMPLES = 30
METRICS = ("accuracy", "loss", "top5", "class_accuracy", "agreement")
NETWORKS = ("mlp", "convnet-bn", "vit")
DTYPES = (torch.float32, torch.float64)
SETS = [[0], [1, 2], [0, 3], range(4), []]

# Of the largest number of a tensor: what one pass in another order may change. Directions of little variance turn by
# more than the covariance changes, and what is measured along them with them.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
ALONG_MEASURED_DIRECTIONS = {torch.float32: 1e-4, torch.float64: 1e-9}


def _ablating(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """With all that can be kept, of the last layer alone where there is to be one."""
    is_of_one = function in (sd.pair_importance, sd.ablate_directions)
    return lambda model, layers, data, **others: function(
        model, layers[-1] if is_of_one else layers, data, metrics=METRICS, outcomes=True, **options, **others
    )


ABLATIONS: dict[str, Callable[..., Any]] = {
    "cumulative_ablation": _ablating(sd.cumulative_ablation, orders=2, points=5),
    "unit_importance": _ablating(sd.unit_importance),
    "pair_importance": _ablating(sd.pair_importance, pairs=[(0, 1), (2, 3)]),
    "ablate": _ablating(sd.ablate, units=SETS),
    "ablate to means": _ablating(sd.ablate, units=SETS, value="mean"),
    "ablate to others": _ablating(sd.ablate, units=SETS, value="resample"),
    "ablate_directions": _ablating(sd.ablate_directions, directions="random", orders=2, points=4),
    "ablate_directions, principal": _ablating(sd.ablate_directions, directions="principal", orders=2, points=4),
    "noise_robustness": _ablating(sd.noise_robustness, scales=[0.0, 1.0], repeats=2),
}
PASSES: dict[str, Callable[..., Any]] = {
    "unit_statistics": lambda m, layers, d, **o: sd.unit_statistics(m, layers, d, mean_maps=True, **o),
    "taylor_importance": sd.taylor_importance,
    "principal_directions": lambda m, layers, d, **o: sd.principal_directions(m, layers[-1], d, **o),
    "compare_layers": lambda m, layers, d, **o: sd.compare_layers(
        m, copy.deepcopy(m), list(layers), d, method="cka", **o
    ),
}
# Functions of the data as it is: (model, layers, (inputs, labels)) -> result.
OF_TENSORS: dict[str, Callable[..., Any]] = {
    "AblationMonitor": lambda m, layers, d: _watched(m, layers, d),
    "LayerUnitAblation": lambda m, layers, d: sd.LayerUnitAblation(m, layers[-1]).attribute(d[0], target=d[1]),
    "SelectivityRegularizer": lambda m, layers, d: _penalised(m, layers[-1], d),
    "weight_norm": sd.weight_norm,
    "random_directions": lambda *_: sd.random_directions(48, seed=3),
    "rank_correlation": lambda *_: _correlated(_matrix(0)[:, 0], _matrix(1)[:, 0]),
    "similarity": lambda *_: sd.similarity(_matrix(0), _matrix(1), method="pwcca"),
    "pairwise_similarity": lambda m, layers, d: sd.pairwise_similarity([m, _like(m)], list(layers), d, method="cka"),
}
FUNCTIONS = ABLATIONS | PASSES | OF_TENSORS


def _like(model: nn.Module) -> nn.Module:
    """A network of the same kind, with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= torch.linspace(-1, 2, parameter.numel(), dtype=parameter.dtype).reshape_as(parameter)
    return other


def _matrix(seed: int) -> Tensor:
    return torch.randn(200, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _correlated(x: Tensor, y: Tensor) -> Tensor:
    return torch.tensor(astuple(sd.rank_correlation(x, y).pooled), dtype=torch.float64)


def _watched(model: nn.Module, layers: tuple[str, ...], data: tuple[Tensor, Tensor]) -> Any:
    return sd.AblationMonitor(layers, data, orders=2, points=5).check(model)


def _penalised(model: nn.Module, layer: str, data: tuple[Tensor, Tensor]) -> Any:
    """The penalty, and its gradients."""
    model = copy.deepcopy(model)
    with sd.SelectivityRegularizer(model, layer, 0.5, negative="ignore") as penalty:
        model(data[0])
        total = penalty(data[1])
    total.backward()
    return total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# What a call may stand in; each as it was after it.
AROUND: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
}


def _settings() -> tuple[Any, ...]:
    return (
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        *(torch.get_autocast_dtype("cpu"), torch.get_default_dtype(), torch.get_default_device()),
        *(torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()),
    )


class TwoWorkers:
    """Workers in this process, who do of every two tasks the second first."""

    count, sharing = 2, 1

    def run(self, start, tasks):
        score, waiting = start(), []
        for task in tasks:
            waiting.insert(0, task)
            if len(waiting) == 2:
                yield from _done(score, waiting)
        yield from _done(score, waiting)


def _done(score: Callable[[Any], Iterator[Any]], tasks: list[Any]) -> Iterator[Any]:
    while tasks:
        name, argument = tasks.pop(0)
        for message in score(argument()):
            yield name, message


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_threads(count: int) -> Callable[..., Any]:
    def way(run, given, patch, folder):
        with threads(count):
            return run(*given)

    return way


def _with(**options: Any) -> Callable[..., Any]:
    return lambda run, given, patch, folder: run(*given, **options)


def _by_a_loader(run, given, patch, folder):
    model, layers, data = given
    return run(model, layers, DataLoader(TensorDataset(*data), batch_size=13))


def _in_uneven_batches(run, given, patch, folder):
    model, layers, (inputs, labels) = given
    cuts = [slice(0, 1), slice(1, 20), slice(20, 21), slice(21, None)]
    return run(model, layers, [(inputs[cut], labels[cut]) for cut in cuts])


def _in_tiles(most: int) -> Callable[..., Any]:
    def way(run, given, patch, folder):
        patch.setattr(memory, "FEWEST", 1)
        patch.setattr(memory, "MOST", most)
        result = run(*given)
        assert read_plan(result.plan).tile <= most
        return result

    return way


def _in_little_room(run, given, patch, folder):
    """Few configurations side by side, and few examples."""
    for module in (memory, tiles):
        patch.setattr(module, "WORKING_SET", {"cpu": 2**14})
    return run(*given)


def _by_workers(run, given, patch, folder):
    patch.setattr(elsewhere, "FIRST_EXAMPLES", 16)
    result = run(*given, workers=TwoWorkers())
    assert "by 2 workers, in tiles of 16 examples" in result.plan
    return result


def _stored(run, given, patch, folder):
    set_small_tiles(patch)
    return run(*given, store=folder / "kept.sdk")


# What is varied, and what of it is promised.
THREADS = {f"{count} threads": _in_threads(count) for count in (2, 3, 5)}
# More threads than processors wait for each other, seconds a call where other work is done too.
THREADS_ASKED = ["2 threads", *(pytest.param(f"{count} threads", marks=pytest.mark.slow) for count in (3, 5))]
BATCHES = {
    **{f"batches of {size}": _with(batch_size=size) for size in (1, 1000)},
    "a loader": _by_a_loader,
    "uneven batches": _in_uneven_batches,
}
TILES = {
    **{f"tiles of {most}": _in_tiles(most) for most in (1, 7)},
    "little room": _in_little_room,
    "two workers": _by_workers,
    "a store": _stored,
}


@cache
def network(name: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[str, ...], tuple[Tensor, Tensor]]:
    model, (inputs, labels) = build(ZOO[name], EXAMPLES)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    return model.to(dtype), tuple(ZOO[name].sites[0]), (inputs, labels)


@cache
def usual(function: str, name: str, dtype: torch.dtype) -> Any:
    """What comes of a call that is left to itself, on one thread."""
    with threads(1):
        return FUNCTIONS[function](*network(name, dtype))


def numbers_of(result: Any) -> dict[str, Tensor]:
    if isinstance(result, (tuple, Tensor)):
        return {str(i): tensor for i, tensor in enumerate(result if isinstance(result, tuple) else [result])}
    return tensors_of(result)


def assert_counts(found: Any, expected: Any, function: str, dtype: torch.dtype) -> None:
    """Whole numbers are the same, and others to rounding."""
    within = (ALONG_MEASURED_DIRECTIONS if "principal" in function else ROUNDING)[dtype]
    found, expected = numbers_of(found), numbers_of(expected)
    assert found.keys() == expected.keys()
    assert expected
    for field, wanted in expected.items():
        given, wanted = found[field].nan_to_num(7.0), wanted.nan_to_num(7.0)
        if given.is_floating_point():
            torch.testing.assert_close(
                given, wanted, rtol=0, atol=within * float(wanted.abs().max()), msg=lambda m, f=field: f"{f}: {m}"
            )
        else:
            assert torch.equal(given, wanted), field


@pytest.mark.parametrize(
    *pairwise(function=ABLATIONS, name=NETWORKS, dtype=DTYPES, varied=[*THREADS_ASKED, *BATCHES, *TILES]), ids=str
)
def test_ablations_give_the_same_counts(monkeypatch, tmp_path, function, name, dtype, varied):
    if varied == "uneven batches" and function == "ablate to others":
        pytest.skip("others are drawn from data that can be read in any order, which a list of batches cannot")
    expected = usual(function, name, dtype)
    assert not expected.ambiguous.any()
    way = (THREADS | BATCHES | TILES)[varied]
    assert_counts(way(FUNCTIONS[function], network(name, dtype), monkeypatch, tmp_path), expected, function, dtype)


@pytest.mark.parametrize(
    *pairwise(function=["unit_importance", "pair_importance"], name=NETWORKS, dtype=DTYPES, count=[1, 3]), ids=str
)
def test_configurations_a_batch_do_not_show(function, name, dtype, count):
    found = FUNCTIONS[function](*network(name, dtype), configs_per_batch=count)
    assert_counts(found, usual(function, name, dtype), function, dtype)


@pytest.mark.parametrize(
    *pairwise(function=PASSES, name=NETWORKS, dtype=DTYPES, varied=[*THREADS_ASKED, *BATCHES]), ids=str
)
def test_passes_agree_to_rounding(monkeypatch, tmp_path, function, name, dtype, varied):
    found = (THREADS | BATCHES)[varied](FUNCTIONS[function], network(name, dtype), monkeypatch, tmp_path)
    assert_counts(found, usual(function, name, dtype), function, dtype)


@pytest.mark.filterwarnings("ignore::sdkernels.SdkernelsWarning")  # few examples a direction
@pytest.mark.parametrize(*pairwise(function=OF_TENSORS, name=NETWORKS, dtype=DTYPES, varied=THREADS_ASKED), ids=str)
def test_threads_agree_to_rounding(monkeypatch, tmp_path, function, name, dtype, varied):
    found = THREADS[varied](FUNCTIONS[function], network(name, dtype), monkeypatch, tmp_path)
    assert_counts(found, usual(function, name, dtype), function, dtype)


def digests(run: Callable[..., Any], cases: str) -> dict[str, list[str]]:
    """Of every call two: of all numbers, and of whole numbers alone; ``cases`` is a step, ``"1"`` for all of them."""
    every, found = [(f, name, dtype) for f in FUNCTIONS for name in NETWORKS for dtype in DTYPES], {}
    for case in every[:: int(cases)]:
        tensors = numbers_of(run(*case))
        whole = {field: tensor for field, tensor in tensors.items() if not tensor.is_floating_point()}
        found[" ".join(map(str, case))] = [_digest(tensors), _digest(whole)]
    return found


def _digest(tensors: dict[str, Tensor]) -> str:
    content = [field.encode() + tensors[field].contiguous().numpy().tobytes() for field in sorted(tensors)]
    return hashlib.sha256(b"".join(content)).hexdigest()


def in_another_process(cases: str, hash_seed: int, count: int) -> dict[str, list[str]]:
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(count)}
    environment["OMP_WAIT_POLICY"] = "passive"  # threads that wait leave the processors to others
    command = [sys.executable, "-W", "ignore", "-m", "tests.test_determinism", cases]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.filterwarnings("ignore::sdkernels.SdkernelsWarning")  # few examples a direction
@pytest.mark.parametrize("cases", ["5", pytest.param("1", marks=pytest.mark.slow)])  # every function at least once
def test_another_process_gives_the_same_bits_and_with_other_threads_the_same_counts(cases):
    expected = digests(usual, cases)
    assert in_another_process(cases, 2, 1) == expected
    on_three = in_another_process(cases, 3, 3)
    assert {case: whole for case, (_, whole) in on_three.items()} == {case: w for case, (_, w) in expected.items()}


@pytest.mark.filterwarnings("ignore::sdkernels.SdkernelsWarning")  # few examples a direction
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    "function", sorted(FUNCTIONS.keys() - {"SelectivityRegularizer"})
)  # a part of the caller's own pass
def test_what_a_call_stands_in_does_not_show(function, around):
    expected = usual(function, "mlp", torch.float32)
    with AROUND[around](), threads(1):
        before = _settings()
        found = FUNCTIONS[function](*network("mlp", torch.float32))
        assert _settings() == before
    assert _digest(numbers_of(found)) == _digest(numbers_of(expected))


def test_memory_fraction_does_not_show():
    """Down to what is too little for one example."""
    run, seen, fraction = FUNCTIONS["unit_importance"], set(), 1e-5
    while True:
        try:
            found = run(*network("mlp", torch.float64), memory_fraction=fraction)
        except MemoryError:
            break
        assert_counts(found, usual("unit_importance", "mlp", torch.float64), "unit_importance", torch.float64)
        seen.add(read_plan(found.plan).tile)
        fraction /= 1.5
    assert {EXAMPLES, 1} < seen


def tied(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Two logits that are one sum in two orders, so that rounding alone says which is larger; and inputs."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, read = (torch.randn(*shape, generator=generator) for shape in ((64, 8), (64,), (64,)))
    order, none = torch.randperm(64, generator=generator), torch.zeros(64)
    first, last = nn.utils.skip_init(nn.Linear, 8, 128), nn.utils.skip_init(nn.Linear, 128, 3)
    with torch.no_grad():
        first.weight.copy_(torch.cat([weight, weight[order]]))
        first.bias.copy_(torch.cat([bias, bias[order]]))
        last.weight.copy_(torch.stack([torch.cat([read, none]), torch.cat([none, read[order]]), torch.zeros(128)]))
        last.bias.copy_(torch.tensor([0.0, 0.0, -1e3]))
    inputs = torch.randn(100, 8, generator=generator)
    return nn.Sequential(first, nn.ReLU(), last).to(dtype).eval(), inputs.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "run",
    [
        lambda m, d: sd.cumulative_ablation(m, "1", d, orders=2, points=5, outcomes=True),
        lambda m, d: sd.unit_importance(m, "1", d, outcomes=True),
    ],
    ids=["curve", "singles"],
)
def test_ties_are_ambiguous(monkeypatch, dtype, run):
    """Of examples whose two largest logits are one number but for rounding, tiles may say another class; no others."""
    model, inputs = tied(dtype)
    data = inputs, torch.zeros(len(inputs), dtype=torch.int64)
    results = []
    for most in (1, 3, 100):
        monkeypatch.setattr(memory, "FEWEST", 1)
        monkeypatch.setattr(memory, "MOST", most)
        results.append(run(model, data))
    differ = [(results[0].outcome_matrix() != other.outcome_matrix()).sum(-1) for other in results[1:]]
    assert any(count.any() for count in differ), "the ties are none"
    for count, other in zip(differ, results[1:], strict=True):
        assert (count <= torch.maximum(results[0].ambiguous, other.ambiguous)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("common", [False, True], ids=["", "common"])
@pytest.mark.parametrize("per_map", [False, True], ids=["", "per map"])
def test_noise_is_the_same_bits(monkeypatch, dtype, common, per_map):
    """What is added to each example in each configuration, read off logits that are the noisy units themselves."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(20, 5, 3, generator=generator, dtype=dtype), torch.zeros(20, dtype=torch.int64)
    model = nn.Sequential(nn.Identity(), nn.Flatten()).eval()

    def run(way: Callable[..., Any]) -> set[tuple[float, ...]]:
        rows: list[Tensor] = []

        def kept(logits: Tensor, labels: Tensor) -> Tensor:
            rows.extend(logits.clone())
            return logits[:, 0]

        options = {"scales": [0.5, 1.0], "repeats": 2, "sd": torch.linspace(0.5, 1, 5), "unit_dim": 1, "seed": 4}
        way(
            lambda m, layers, d, **o: sd.noise_robustness(
                m, layers, d, metrics=kept, per_map=per_map, common_random_numbers=common, **options, **o
            ),
            (model, "0", data),
            monkeypatch,
            None,
        )
        return {tuple(row.tolist()) for row in rows}

    expected = run(_with())
    assert len(expected) == 20 * (1 + 4)  # of every example the intact units, and those with noise
    for way in (_in_tiles(1), _in_tiles(7), _in_threads(2), _by_a_loader, _by_workers):
        assert run(way) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_gives_the_same_bits_on_as_many_threads(dtype):
    inputs, labels = torch.randn(90, 12, generator=torch.Generator().manual_seed(0), dtype=dtype), torch.arange(90) % 4
    options = TrainingOptions(epochs=4, learning_rate=1e-2, batch_size=16)
    for count in (1, 2):
        weights = []
        for _ in range(2):
            model = mlp(12, (24, 24), 4, seed=0).to(dtype)
            with threads(count):
                train(model, (inputs, labels), options, seed=0)
            weights.append([*model.state_dict().values()])
        assert all(map(torch.equal, *weights))


if __name__ == "__main__":
    print(json.dumps(digests(lambda function, *case: FUNCTIONS[function](*network(*case)), sys.argv[1])))
