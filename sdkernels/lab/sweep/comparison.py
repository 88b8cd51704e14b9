"""How networks of a sweep are compared with one another, and what is kept of it."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.engine.digest import Digest
from sdkernels.engine.ledger import Ledger
from sdkernels.engine.stopping import heed
from sdkernels.lab.models import layer_names
from sdkernels.lab.sweep.data import for_analysis, measured_data
from sdkernels.lab.sweep.results import Compared, from_bytes, to_bytes
from sdkernels.lab.sweep.run import Networks
from sdkernels.lab.sweep.settings import FORMAT, NetworkSettings, canonical, is_whole
from sdkernels.lab.tokens import token_windows

COMPARISON = "comparison"  # the ledger's kind

# How many networks each takes: so many, or from so many on.
FUNCTIONS = {
    "compare_layers": (2, 2),
    "pairwise_similarity": (2, None),
    "similarity_over_training": (2, None),
    "similarity_over_steps": (1, 1),
}

# Of every call, which has the networks, says where work is kept, and shows progress.
_OWN = (
    *("model", "models", "model_a", "model_b", "checkpoints", "groups", "select"),
    *("data", "device", "store", "show_progress"),
)


@dataclass(frozen=True)
class Comparison:
    """Which networks are compared, in what, on what.

    Attributes:
        name: of the comparison, in messages and for who asks for its result.
        function: ``"compare_layers"``, ``"pairwise_similarity"``, ``"similarity_over_training"`` (networks are moments
            of one training, the last one the final state) or ``"similarity_over_steps"`` (of one language model).
        networks: their places in the sweep.
        layers: as people name them (``"conv9"``, ``"lstm1"``), or modules' names.
        on: ``"train"`` or ``"test"``; of language models ``"validation"`` too.
        examples: so many of them, the first; of language models so many windows of text, spread evenly. None: all.
        steps: of language models alone: tokens of a window.
        arguments: further keyword arguments of the function, as ``method``.
    """

    name: str
    function: str
    networks: Sequence[int]
    layers: Sequence[str]
    on: str = "train"
    examples: int | None = None
    steps: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise ValueError(f"{self}: function={self.function!r}: choose one of {', '.join(FUNCTIONS)}")
        least, most = FUNCTIONS[self.function]
        if len(self.networks) < least or (most is not None and len(self.networks) > most):
            wanted = f"{least}" if least == most else f"at least {least}"
            raise ValueError(f"{self}: {self.function} compares {wanted} networks, and {len(self.networks)} are given")
        if not self.layers or isinstance(self.layers, str):
            raise ValueError(f"{self}: layers={self.layers!r} must be a list of names")
        for name in ("examples", "steps"):
            value = getattr(self, name)
            if value is not None and not is_whole(value, at_least=1):
                raise ValueError(f"{self}: {name}={value!r} must be a whole number, at least 1")
        known = {*inspect.signature(getattr(sd, self.function)).parameters} - {"layers", *_OWN}
        for name in sorted({*self.arguments} - known):
            close = ", ".join(get_close_matches(name, sorted(known), n=3) or sorted(known))
            raise ValueError(f"{self}: {self.function} has no argument {name!r} that a sweep gives; it has {close}")

    def __str__(self) -> str:
        return f"comparison {self.name!r}"


class Comparing(NamedTuple):
    """What a comparison gave, and what it took."""

    result: Compared
    seconds: float


def compare_networks(
    networks: Networks, comparison: Comparison, *, device: str = "auto", show_progress: bool = False
) -> Comparing:
    """Compare networks of a finished sweep, unless the ledger has it; a call that was killed goes on where it was.

    Args:
        networks: that :func:`run_sweep` gave.
        comparison: of which. Networks whose training diverged are left out; those that are compared are called by their
            places (or, over training, by their epochs).
        device: ``"auto"``: CUDA where it is; or ``"cpu"``, ``"cuda"``.
        show_progress: a bar.

    Raises:
        ValueError: networks on different inputs, layers or arguments that there are not, too few networks that are
            left; names the comparison.
    """
    places = [place for place in comparison.networks if place not in networks.failed]
    if len(places) < FUNCTIONS[comparison.function][0]:
        raise ValueError(f"{comparison}: the training of too many of its networks diverged: {sorted(networks.failed)}")
    key = Digest(
        FORMAT,
        *(comparison.function, [networks.keys[place] for place in places], tuple(comparison.layers)),
        *(comparison.on, comparison.examples, comparison.steps, canonical(comparison.arguments)),
    ).hex
    with Ledger(networks.store, must_exist=True) as ledger:
        item = ledger.item(COMPARISON, key)
    if item is not None:
        return Comparing(from_bytes(comparison.function, item.content), item.description["seconds"])
    heed(f"networks and comparisons that are finished are in {networks.store}")
    begin = time.perf_counter()
    try:
        result = _compare(networks, comparison, places, device_called(device), show_progress)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{comparison}: {error}") from error
    seconds = time.perf_counter() - begin
    about = {"function": comparison.function, "layers": list(comparison.layers), "networks": len(places)}
    with Ledger(networks.store, must_exist=True) as ledger:
        ledger.keep_item(COMPARISON, key, {**about, "seconds": seconds}, to_bytes(result))
    return Comparing(result, seconds)


def _compare(
    networks: Networks, comparison: Comparison, places: Sequence[int], device: torch.device, show_progress: bool
) -> Compared:
    settings = [networks.sweep.networks[place] for place in places]
    data = _data(networks, comparison, places, settings)
    layers = layer_names(networks.model(places[0]), comparison.layers)
    how = {
        **comparison.arguments,
        **({"select": 0} if settings[0].is_text else {}),  # an LSTM's outputs stand before its state
        "store": networks.store,
        "show_progress": show_progress,
    }

    def model(place: int) -> nn.Module:
        return networks.model(place).to(device)

    if comparison.function == "similarity_over_training":
        moments = [one.until or networks.record(place)["epochs"] for one, place in zip(settings, places, strict=True)]
        states: Mapping[Any, Callable[[], nn.Module]] = {
            moment: partial(model, place) for moment, place in zip(moments, places, strict=True)
        }
        return sd.similarity_over_training(states, layers, data, **how)
    if comparison.function == "pairwise_similarity":
        return sd.pairwise_similarity({str(place): model(place) for place in places}, layers, data, **how)
    function: Callable[..., Compared] = getattr(sd, comparison.function)
    return function(*map(model, places), layers, data, **how)


def _data(
    networks: Networks, comparison: Comparison, places: Sequence[int], settings: Sequence[NetworkSettings]
) -> Any:
    """Inputs that all of these networks take."""
    alike = {(one.data, one.split, one.examples, one.standardise, one.image_size, one.is_text) for one in settings}
    if len(alike) > 1:
        raise ValueError(
            "networks are compared on the same inputs, and these differ in data, split, examples, standardise or "
            f"image_size: {sorted(map(str, alike))}"
        )
    if settings[0].is_text:
        if comparison.steps is None:
            raise ValueError("language models read windows of text: give steps=, the tokens of one")
        return token_windows(networks.text(places[0], comparison.on).tokens, comparison.steps, comparison.examples)
    if comparison.steps is not None:
        raise ValueError(f"steps={comparison.steps} is of language models; these are classifiers")
    chosen = measured_data(settings[0], comparison.on, comparison.examples, networks.data_dir)
    found: tuple[Tensor, Tensor] | Any = for_analysis(chosen, comparison.arguments.get("batch_size", 256))
    return found


def device_called(device: str) -> torch.device:
    """``"auto"``: CUDA where it is."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
