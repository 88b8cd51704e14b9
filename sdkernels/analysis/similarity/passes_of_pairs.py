"""How all pairs of many networks are compared within a given memory: what is held, and in how many passes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from sdkernels.analysis.similarity.activations import Positions
from sdkernels.analysis.similarity.all_pairs import pairs_among
from sdkernels.analysis.similarity.comparisons import Block, Pair, blocks_of, name_of, numbers_of_moments, pair_of
from sdkernels.analysis.similarity.method import Method
from sdkernels.analysis.similarity.networks import Together

DOUBLE = 8  # bytes


@dataclass(frozen=True)
class PassOfPairs:
    """What one pass compares.

    Attributes:
        way: ``"hold"``, the data points until the pass is over; or ``"lockstep"``, their moments alone.
        pairs: of blocks, each of one layer.
    """

    way: str
    pairs: tuple[Pair, ...]

    @property
    def networks(self) -> int:
        """How many of them run."""
        return len({block.network for block in blocks_of(self.pairs)})

    @property
    def sites(self) -> set[int]:
        return {block.site for block in blocks_of(self.pairs)}


def plan_passes(
    together: Together, method: Method, positions: Positions, examples: int, limit: float
) -> list[PassOfPairs]:
    """Passes that together compare all pairs of networks at every layer.

    Where a layer's data points of all networks fit, they are held, as many layers at a time as fit; CKA, which whitens
    nothing, needs their moments alone. Else moments of all networks are summed, side by side; and where these do not
    fit, of two groups of networks at a time, each group with each other.

    Args:
        together: the networks, which have the same layers.
        method, positions: how they are compared.
        examples: how many the data has.
        limit: bytes.

    Raises:
        ValueError: the moments of two networks do not fit, or positions do not correspond.
    """
    layers = range(len(together.subjects[0].sites))
    pairs = [_pairs_at(together, site, method, positions) for site in layers]
    held: list[tuple[float, float, list[Pair]]] = []  # bytes that stay, bytes while it is compared
    rest: list[list[Pair]] = []
    for own in pairs:
        stays, works = _bytes_held(together, own, positions, examples)
        if method.is_whitened and stays + works <= limit:
            held.append((stays, works, own))
        else:
            rest.append(own)
    passes = [PassOfPairs("hold", tuple(own)) for own in _packed(held, limit)]
    whole: list[tuple[float, float, list[Pair]]] = []
    for own in rest:
        size = DOUBLE * float(numbers_of_moments(together, own))
        if size <= limit:
            whole.append((size, 0.0, own))
        else:
            passes += [PassOfPairs("lockstep", tuple(part)) for part in _in_groups(together, own, limit)]
    return passes + [PassOfPairs("lockstep", tuple(own)) for own in _packed(whole, limit)]


def describe(passes: Sequence[PassOfPairs], together: Together) -> dict[str, str]:
    """By layer, how it was done and in how many passes."""
    found: dict[str, str] = {}
    for place, site in enumerate(together.subjects[0].sites):
        own = [one for one in passes if place in one.sites]
        found[site.name] = f"{own[0].way}, {len(own)} {'pass' if len(own) == 1 else 'passes'}"
    return found


def _pairs_at(together: Together, site: int, method: Method, positions: Positions) -> list[Pair]:
    """All pairs of networks at a layer."""
    networks = [Block(number, site) for number in range(len(together.subjects))]
    return [
        pair_of(together, (a.network, site), (b.network, site), positions) for a, b in pairs_among(networks, method)
    ]


def _bytes_held(together: Together, pairs: Sequence[Pair], positions: Positions, examples: int) -> tuple[float, float]:
    """What a layer's data points take, and what comparing them takes beside that."""
    stays = works = 0.0
    for block in blocks_of(pairs):
        site = together.site(block.network, block.site)
        is_made = positions.kind != "each" and len(site.example_shape) > 1
        is_double = is_made or together.subjects[block.network].precision == "float64"
        numbers = float(examples * positions.each(block.size) * site.units)
        stays += numbers * (DOUBLE if is_double else DOUBLE // 2)
        works += DOUBLE * (numbers + 3 * site.units**2)
    return stays, works


def _packed(given: Sequence[tuple[float, float, list[Pair]]], limit: float) -> Iterator[list[Pair]]:
    """Layers together, as many as fit, in their order."""
    pairs: list[Pair] = []
    stays = works = 0.0
    for own_stays, own_works, own in given:
        if pairs and stays + own_stays + max(works, own_works) > limit:
            yield pairs
            pairs, stays, works = [], 0.0, 0.0
        pairs = pairs + own
        stays, works = stays + own_stays, max(works, own_works)
    if pairs:
        yield pairs


def _in_groups(together: Together, pairs: Sequence[Pair], limit: float) -> list[list[Pair]]:
    """The pairs of each two groups of networks, the groups being as few as may be.

    Raises:
        ValueError: not even two networks fit.
    """
    count = len(together.subjects)
    parts: list[list[Pair]] = []
    for groups in range(min(3, count), count + 1):  # two are all of them
        group_of = {number: number * groups // count for number in range(count)}
        parts = list(_between_groups(pairs, group_of, groups))
        if all(DOUBLE * numbers_of_moments(together, part) <= limit for part in parts):
            return parts
    worst = max(parts or [list(pairs)], key=lambda part: numbers_of_moments(together, part))
    a, b = worst[0]
    names = [f"{name_of(together, x)} [N, {together.site(x.network, x.site).units}]" for x in (a, b)]
    size = DOUBLE * numbers_of_moments(together, worst) / 2**30
    raise ValueError(
        f"the moments of {names[0]} and {names[1]} take {size:.2g} GiB, "
        f"and memory_fraction allows {limit / 2**30:.2g}: give a larger memory_fraction, or another layer"
    )


def _between_groups(pairs: Sequence[Pair], group_of: Mapping[int, int], groups: int) -> Iterator[list[Pair]]:
    """Each two groups with the pairs between them, and those within where a group comes first."""
    done: set[int] = set()
    for both in combinations(range(groups), 2):
        new = set(both) - done
        done |= new
        wanted = [set(both), *({one} for one in new)]
        found = [(a, b) for a, b in pairs if {group_of[a.network], group_of[b.network]} in wanted]
        if found:
            yield found
