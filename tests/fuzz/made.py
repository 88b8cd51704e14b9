"""A valid call of every public method, and of every constructor that users call, of the public classes."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

import sdkernels as sd
from tests.fuzz.calls import CALLS, LAYERS, data, inputs, network

Makes = Mapping[str, Callable[[], Any]]


class Use(NamedTuple):
    """A method or constructor, arguments that it takes as they are, and the names of all that it takes."""

    function: Callable[..., Any]
    arguments: Makes
    names: tuple[str, ...]


METRICS = ("accuracy", "loss", "class_accuracy")


@cache
def saved(kind: type) -> Path:
    """A result's file, in the folder where the process is."""
    path = Path(f"{kind.__name__}.npz").absolute()
    made(kind).save(path)
    return path


def _monitor() -> sd.AblationMonitor:
    monitor = sd.AblationMonitor(list(LAYERS), data(), points=3, orders=2)
    monitor(network())
    return monitor


def _regularizer(**changes: Any) -> sd.SelectivityRegularizer:
    """One that has just seen a batch."""
    model = network()
    with torch.no_grad():
        regularizer = sd.SelectivityRegularizer(**{"model": model, "layers": list(LAYERS), "weight": 0.1} | changes)
    model(inputs())
    return regularizer


def _result(function: str, **arguments: Any) -> Callable[[], Any]:
    call = CALLS[function]
    return lambda: call.function(**{name: make() for name, make in call.arguments.items()} | arguments)


_SCORES = {"layers": ("1", "3"), "unit_counts": (4, 3)}

# What has methods, by class. Results do not change, and are made once; the others anew for each call.
RESULTS: dict[type, Callable[[], Any]] = {
    sd.AblationCurve: _result("cumulative_ablation", metrics=METRICS, outcomes=True),
    sd.AblationScores: _result("ablate", metrics=METRICS, outcomes=True),
    sd.LayerSimilarity: _result("compare_layers", layers=["0", "2"]),
    sd.NoiseCurve: _result("noise_robustness", metrics=METRICS, outcomes=True),
    sd.PairImportance: _result("pair_importance", metrics=METRICS, outcomes=True),
    sd.PairwiseSimilarity: _result("pairwise_similarity", groups=["a", "a", "b"]),
    sd.PrincipalDirections: _result("principal_directions"),
    sd.RankCorrelation: lambda: sd.rank_correlation(made(sd.UnitImportance).score(), made(sd.UnitScore), resamples=5),
    sd.Similarity: _result("similarity", method="pwcca"),
    sd.SimilarityCurve: _result("similarity_over_training"),
    sd.UnitImportance: _result("unit_importance", metrics=METRICS, outcomes=True),
    sd.UnitScore: lambda: sd.UnitScore(name="size", values=torch.arange(7), **_SCORES, dead=torch.arange(7) == 3),
    sd.UnitStatistics: _result("unit_statistics", cells=8),
}
OTHERS: dict[type, Callable[[], Any]] = {
    sd.AblationMonitor: _monitor,
    sd.LayerUnitAblation: lambda: sd.LayerUnitAblation(network(), "1"),
    sd.SelectivityRegularizer: _regularizer,
}


@cache
def _kept(kind: type) -> Any:
    return RESULTS[kind]()


def made(kind: type) -> Any:
    """An instance."""
    return OTHERS[kind]() if kind in OTHERS else _kept(kind)


# Arguments that have no default, or whose default leaves nothing to be tried.
ARGUMENTS: dict[str, Makes] = {
    "AblationMonitor.__call__": {"model": network},
    "AblationMonitor.check": {"model": network},
    "AblationMonitor.load_state_dict": {"state": lambda: _monitor().state_dict()},
    "LayerUnitAblation.attribute": {"inputs": inputs, "target": lambda: 0},
    "PairImportance.matrix": {"layer": lambda: "1"},
    "PairImportance.plot": {"layer": lambda: "1"},
    "PairImportance.top": {"k": lambda: 2},
    "PairwiseSimilarity.clusters": {"count": lambda: 2},
    "PairwiseSimilarity.of": {"names": lambda: ["0", "1"]},
    "SelectivityRegularizer.__call__": {"labels": lambda: data()[1]},
    "UnitImportance.top": {"k": lambda: 2},
    "UnitScore.of": {"layers": lambda: ["3"]},
    "UnitStatistics.binned": {"bins": lambda: 4},
    "UnitStatistics.mutual_information": {"bins": lambda: 4},
    "UnitStatistics.score": {"name": lambda: "mean"},
    "UnitStatistics.selectivity": {"negative": lambda: "nan"},
}
_OF_ALL: dict[str, Makes] = {"metric": {"name": lambda: "loss"}, "named": {"unit": lambda: 1}}


def _monitor_of(**given: Any) -> Any:
    return sd.AblationMonitor(**given)(network())


def _attribution_of(**given: Any) -> Any:
    return sd.LayerUnitAblation(**given).attribute(inputs(), target=0)


def _term_of(model: Any, **given: Any) -> Any:
    with sd.SelectivityRegularizer(model, **given) as regularizer:
        model(inputs())
        return regularizer(data()[1])


# A constructor, and what its arguments are for: some are looked at when they are needed.
_DISTANCES: Makes = {"distance": lambda: torch.zeros(2, 2)}
CONSTRUCTED: dict[type, tuple[Callable[..., Any], Makes]] = {
    sd.AblationMonitor: (_monitor_of, {"layers": lambda: list(LAYERS), "data": data, "points": lambda: 3}),
    sd.LayerSimilarity: (
        sd.LayerSimilarity,
        _DISTANCES | {"layers_a": lambda: ("a", "b"), "layers_b": lambda: ("a", "b")},
    ),
    sd.LayerUnitAblation: (_attribution_of, {"model": network, "layer": lambda: "1"}),
    sd.PairwiseSimilarity: (
        sd.PairwiseSimilarity,
        {"distance": lambda: torch.zeros(1, 2, 2), "names": lambda: ("a", "b"), "layers": lambda: ("fc1",)},
    ),
    sd.SelectivityRegularizer: (
        _term_of,
        {"model": network, "layers": lambda: list(LAYERS), "weight": lambda: 0.1},
    ),
    sd.SimilarityCurve: (sd.SimilarityCurve, _DISTANCES | {"layers": lambda: ("a", "b"), "moments": lambda: (0, 1)}),
    sd.UnitScore: (
        sd.UnitScore,
        {"name": lambda: "size", "values": lambda: torch.arange(7), **{k: lambda v=v: v for k, v in _SCORES.items()}},
    ),
}


def _methods(kind: type) -> Iterator[str]:
    """All that users call, also what is inherited from a class of the package."""
    for name, member in inspect.getmembers(kind):
        function = getattr(member, "__func__", member)
        is_ours = inspect.isfunction(function) and function.__module__.startswith("sdkernels.")
        if is_ours and (name == "__call__" or not name.startswith("_")):
            yield name


def _call_of(kind: type, method: str) -> Use:
    known = inspect.signature(getattr(made(kind), method)).parameters
    makes = {**_OF_ALL.get(method, {}), **ARGUMENTS.get(f"{kind.__name__}.{method}", {})}
    if method in ("save", "load"):
        makes["path"] = lambda: saved(kind) if method == "load" else Path("written.npz")

    def call(**given: Any) -> Any:
        return getattr(made(kind), method)(**given)

    return Use(call, makes, tuple(known))


def uses() -> dict[str, Use]:
    """Every method and constructor by its name."""
    kinds = [kind for name in sd.__all__ if inspect.isclass(kind := getattr(sd, name))]
    found = {
        f"{kind.__name__}.{method}": _call_of(kind, method)
        for kind in kinds
        if kind in RESULTS or kind in OTHERS
        for method in _methods(kind)
    }
    for kind, (function, makes) in CONSTRUCTED.items():
        known = tuple(name for name in inspect.signature(kind).parameters if name != "options")
        found[kind.__name__] = Use(function, makes, known)
    return found
