"""Comparisons of layers by one pass of their networks over the data, which can be kept and gone on with."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor

from sdkernels.analysis.measure import versions
from sdkernels.analysis.passes import PASS_FORMAT, Pass
from sdkernels.analysis.saved import Path_, by_prefix, with_prefix
from sdkernels.analysis.similarity.activations import Positions
from sdkernels.analysis.similarity.comparisons import Block, Pair, PassMoments, name_of, numbers_of_moments
from sdkernels.analysis.similarity.found import Found, compare_pairs
from sdkernels.analysis.similarity.method import Method
from sdkernels.analysis.similarity.networks import Together
from sdkernels.analysis.states import State, WithoutRows
from sdkernels.engine.checks import check_default_device
from sdkernels.engine.digest import Digest
from sdkernels.engine.ledger import Ledger
from sdkernels.engine.memory import memory_limit

# Of the keys; goes up when the same call would mean something else.
FORMAT = 1


@dataclass(frozen=True)
class Options:
    """What all functions that compare layers over data are told.

    Attributes:
        method, positions: how layers are compared.
        store: where passes and what they found are kept; None: nowhere.
        called: the public function.
        advance: hears of examples that a network has seen, of a negative number where it is to see them again.
    """

    method: Method
    positions: Positions
    store: Path_ | None
    called: str
    advance: Callable[[int], Any] = lambda _done: None

    @classmethod
    def of(cls, arguments: Mapping[str, Any], called: str) -> "Options":
        """What a function's ``locals()`` say.

        Raises:
            ValueError, TypeError: an option that is out of range, or that the method does not use.
        """
        check_default_device()
        method = Method(**{field.name: arguments[field.name] for field in fields(Method)})
        if method.solver == "svd":
            raise ValueError(
                f"solver='svd' decomposes activations, and {called} holds none: give 'auto', 'eigh' or 'cholesky'; or "
                "collect activations and give them to sdkernels.similarity"
            )
        positions = Positions(arguments["positions"], arguments["subsample"], arguments["seed"])
        return cls(method, positions, arguments["store"], called)


class Comparison(WithoutRows):
    """Moments of pairs of blocks as long as the pass goes on, and then what comes of them."""

    def __init__(self, together: Together, pairs: Sequence[Pair], options: Options) -> None:
        self._pairs, self._method = pairs, options.method
        self._name_of = partial(name_of, together)
        self.moments: PassMoments | None = PassMoments(together, pairs, options.positions, options.method)
        self.found: Found | None = None

    def close(self) -> Found:
        """Compare, and let the moments go."""
        if self.found is None:
            assert self.moments is not None  # noqa: S101 - let go here alone
            self.found = compare_pairs(self._pairs, self._method, self.moments.of, self._name_of)
        self.moments = None
        return self.found

    def tensors(self) -> dict[str, Tensor]:
        if self.found is not None:
            return with_prefix("found", self.found.tensors(self._pairs))
        assert self.moments is not None  # noqa: S101 - nothing was found yet
        return with_prefix("moments", self.moments.tensors())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if found := by_prefix(tensors, "found"):
            self.found = Found.of(self._pairs, found)
        else:
            assert self.moments is not None  # noqa: S101 - has seen nothing
            self.moments.load(by_prefix(tensors, "moments"))


def compare_over(together: Together, pairs: Sequence[Pair], options: Options) -> Found:
    """Compare pairs of blocks by one pass.

    Args:
        together: the networks and the data; one of which no layer is compared does not run.
        pairs: of blocks at the same positions.
        options: how.

    Raises:
        ValueError: activations that are not finite, or that the method cannot compare; names layer and network.
    """
    state = Comparison(together, pairs, options)
    assert state.moments is not None  # noqa: S101 - it is new
    networks = state.moments.source.networks
    determines = (options.method, options.positions, pairs)
    with pass_of(together, state, options, networks, determines) as passing:
        for inputs, _ in passing:
            state.moments.see(inputs, passing.examples)
        found = state.close()
        passing.finish()
    return found


@contextmanager
def pass_of(
    together: Together, state: State, options: Options, networks: int, determines: tuple[Any, ...]
) -> Iterator[Pass]:
    """A pass of several networks over their data that a state is taken of.

    Args:
        together: the networks and the data.
        state: has seen nothing yet.
        options: say where it is kept.
        networks: how many of them run, of which progress hears.
        determines: what the state depends on beside networks, layers and data.
    """

    def advance(examples: int) -> None:
        options.advance(examples * networks)

    if options.store is None:
        yield Pass(together.inputs, state, advance)
        return
    sites = [
        [(s.name, s.call, s.unit_dim, s.select, s.parts, s.example_shape) for s in subject.sites]
        for subject in together.subjects
    ]
    precisions = [subject.precision for subject in together.subjects]
    data = together.subjects[0].inputs[:1], together.inputs.examples
    models = [Digest(subject.model).hex for subject in together.subjects]
    key = Digest(PASS_FORMAT, FORMAT, options.called, models, sites, precisions, *data, *determines).hex
    first = together.subjects[0]
    about = {
        "function": options.called,
        "model": ", ".join(dict.fromkeys(type(subject.model).__name__ for subject in together.subjects)),
        "networks": list(together.names),
        "layers": list(dict.fromkeys(site.name for subject in together.subjects for site in subject.sites)),
        "unit_counts": [site.units for site in first.sites],
        "of": together.inputs.examples,
        "precision": first.precision,
        "versions": versions(),
        "machine": platform.node(),
    }
    with Ledger(options.store) as ledger:
        yield Pass(
            *(together.inputs, state, advance),
            ledger=ledger,
            key=key,
            about=about,
            probe=_probe(together),
            reads_labels=False,
        )


def _probe(together: Together) -> dict[str, Tensor]:
    """Each layer's units for the first few examples, means over positions, [n, C]: a model's code may have changed
    where no digest sees it."""
    found: dict[str, Tensor] = {}

    def see(network: int, index: int, output: Tensor) -> None:
        site = together.site(network, index)
        units = output.movedim(site.unit_dim, 1).flatten(2) if output.ndim > 2 else output[:, :, None]
        found[f"network {network}, site {index}"] = units.double().mean(2)

    together.run(together.subjects[0].inputs, see)
    return found


def check_memory(together: Together, pairs: Sequence[Pair], memory_fraction: float) -> None:
    """Refuse moments that do not fit.

    Raises:
        ValueError: says how much they take, and which layer is the widest.
    """
    size = 8 * numbers_of_moments(together, pairs)
    limit = memory_limit(together.device, memory_fraction)
    if size > limit:
        widest: Block = max((b for pair in pairs for b in pair), key=lambda b: together.site(b.network, b.site).units)
        raise ValueError(
            f"the moments of {len(pairs)} pairs of layers take {size / 2**30:.2g} GiB, and "
            f"memory_fraction allows {limit / 2**30:.2g}; the widest layer is {name_of(together, widest)}, with "
            f"{together.site(widest.network, widest.site).units} units. Name fewer layers, or compare them by parts"
        )


def settings_of(precision: str, options: Options, found: Found) -> dict[str, Any]:
    """What a result says of how it was taken, in JSON's types."""
    method, positions = options.method, options.positions
    own: dict[str, Any] = {"method": method.method, **method.settings}
    if method.method == "pwcca":
        own |= {"side": method.side, "compat": method.compat}
    if method.is_whitened:
        own |= {"solvers": found.solvers(), "largest_condition": found.largest_condition}
    own |= {"positions": positions.kind}
    if positions.kind != "mean":
        own |= {"subsample": positions.subsample}
        own |= {} if positions.subsample is None else {"seed": positions.seed}
    return own | {"precision": precision}
