"""Which combinations of several parameters always run: so few that every two values meet. The others are slow."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(**values: Iterable[Any]) -> tuple[tuple[str, ...], list[Any]]:
    """Arguments for ``pytest.mark.parametrize`` (with ``ids=str``): all combinations, most of them marked ``slow``.

    Every two values of two parameters meet in a row without that mark, and those that no mark leaves out of the
    interpreter's lane meet in one that none does. Values may be ``pytest.param`` with marks, and need not be hashable.

    >>> names, rows = pairwise(a="xyz", b=(1, 2), c=(True, False))
    >>> names
    ('a', 'b', 'c')
    >>> [row.values for row in rows if not row.marks]
    [('x', 1, True), ('x', 2, False), ('y', 1, False), ('y', 2, True), ('z', 1, True), ('z', 2, False)]
    >>> len(rows)
    12
    """
    given = [[_as_param(value) for value in several] for several in values.values()]
    everything = list(product(*(range(len(several)) for several in given)))
    unmarked = [row for row in everything if not any(given[i][k].marks for i, k in enumerate(row))]
    chosen = set(covering(everything, first=unmarked))
    rows = []
    for row in everything:
        params = [given[i][k] for i, k in enumerate(row)]
        marks = [mark for param in params for mark in param.marks] + [pytest.mark.slow] * (row not in chosen)
        rows.append(pytest.param(*(param.values[0] for param in params), marks=marks))
    return tuple(values), rows


def covering(rows: Sequence[tuple], first: Sequence[tuple] = ()) -> Iterator[tuple]:
    """Rows in which every two entries that meet in ``rows`` meet, those that meet in ``first`` by rows of that.

    Greedily: again and again the first of the rows with the most pairs that none yet has.
    """
    met: set[tuple] = set()
    for some in (first, rows):
        left = list(some)
        while left:
            new = [_pairs(row) - met for row in left]
            most = max(map(len, new))
            if most == 0:
                break
            best = next(i for i, pairs in enumerate(new) if len(pairs) == most)
            met |= new[best]
            yield left.pop(best)


def _pairs(row: tuple) -> set[tuple]:
    return set(combinations(enumerate(row), 2))


def _as_param(value: Any) -> Any:
    """A ``pytest.param`` of one value."""
    if not (hasattr(value, "marks") and isinstance(getattr(value, "values", None), tuple)):
        return pytest.param(value)
    (_,) = value.values
    return value
