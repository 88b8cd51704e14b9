"""Users' names in plots: as they are, and as large as there is room."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sdkernels.analysis.extras import require
from sdkernels.analysis.literal import LITERAL, legend_of

_LINE = 1.25  # the distance of lines of text, in sizes of the font
_MOST_LETTERS = 26


def shortened(names: Sequence[str]) -> list[str]:
    """Names with the middle of long ones left out; all as they are where two would become the same."""
    head = _MOST_LETTERS // 3
    tail = _MOST_LETTERS - head - 1
    short = [name if len(name) <= _MOST_LETTERS else f"{name[:head]}…{name[-tail:]}" for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def room(ax: Any) -> tuple[float, float]:
    """About how wide and high axes will be, in points, when names and a colour bar have taken their part."""
    box = ax.get_window_extent()
    return 0.8 * box.width * 72 / ax.figure.dpi, 0.85 * box.height * 72 / ax.figure.dpi


def name_down(ax: Any, names: Sequence[str]) -> float:
    """Name rows 0, 1, ... of axes; only every second, third, ... where there is no room for more.

    Returns:
        About how wide the names are, in points.
    """
    width, height = room(ax)
    places, size = _fitting(len(names), height)
    drawn = shortened(names)
    # Letters are about 0.55 of their size wide, and names are to leave most of the width to what they name.
    letters = 0.55 * max(len(name) for name in drawn)
    size = min(size, max(5.0, 0.4 * width / letters))
    ax.set_yticks(places, [drawn[place] for place in places], fontsize=size, **LITERAL)
    return size * letters


def name_across(ax: Any, names: Sequence[str], *, beside: float = 0.0) -> None:
    """Name columns 0, 1, ... of axes: level where there is room, else slanting, else upright.

    Args:
        beside: the width of the rows' names, in points.
    """
    width = max(room(ax)[0] - max(beside - 38, 0), 20)  # about 38 are outside of the axes anyway
    drawn = shortened(names)
    if 0.65 * 8 * max(len(name) for name in drawn) < width / len(names):
        ax.set_xticks(range(len(names)), drawn, fontsize=8, **LITERAL)
        return
    places, size = _fitting(len(names), width)
    slant = {"rotation": 35, "ha": "right"} if len(names) < 9 else {"rotation": 90, "ha": "center"}
    anchored = {"rotation_mode": "anchor"} if len(names) < 9 else {}
    ax.set_xticks(places, [drawn[place] for place in places], fontsize=size, **slant, **anchored, **LITERAL)


def name_runs(ax: Any, labels: Sequence[str], kinds: Sequence[str]) -> None:
    """Name runs of equal labels of rows 0, 1, ... beside their middles, and mark each row by its label's colour.

    Colours go from dark to light through ``kinds``, the different labels.

    Where runs are so short that names would touch, the longer ones are named, and those of each label first.
    """
    ends = [row for row in range(1, len(labels)) if labels[row] != labels[row - 1]]
    runs = sorted(pairwise([0, *ends, len(labels)]), key=lambda run: run[0] - run[1])
    longest = {labels[start]: (start, end) for start, end in reversed(runs)}
    width, height = room(ax)
    size = 8 if len(runs) < 9 else 6
    gap = len(labels) * _LINE * size / height
    named: dict[float, str] = {}
    for start, end in sorted(runs, key=lambda run: run not in longest.values()):
        middle = (start + end - 1) / 2
        if all(abs(middle - other) >= gap for other in named):
            named[middle] = labels[start]
    short = dict(zip(kinds, shortened(kinds), strict=True))
    colours = require("matplotlib", "a plot").colormaps["cividis"](np.linspace(0, 1, max(len(kinds), 2)))
    rectangle = require("matplotlib.patches", "a plot").Rectangle
    for start, end in runs:
        about = {"facecolor": colours[kinds.index(labels[start])], "linewidth": 0, "clip_on": False}
        place = (-0.045, start - 0.5), 0.03, end - start
        ax.add_patch(rectangle(*place, transform=ax.get_yaxis_transform(), **about))
    ax.set_yticks([*named], [short[label] for label in named.values()], fontsize=size, **LITERAL)
    ax.tick_params(axis="y", length=0, pad=0.06 * width)


def legend_apart(ax: Any, handles: Sequence[Any], names: Sequence[str], title: str) -> Any:
    """A legend that hides nothing: to the right of axes, or above them where there are few names and long ones."""
    drawn = shortened(names)
    if len(names) < 7 and max(len(name) for name in drawn) > 14:
        size, columns, title = 8.0, 1, ""
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0)}
    else:
        height = room(ax)[1] / _LINE
        columns = int(np.ceil(len(names) * 5 / height))
        size = float(np.clip(height / np.ceil(len(names) / columns), 5, 8))
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    small = {"fontsize": size, "title_fontsize": size, "labelspacing": 0.2, "handlelength": 2.4, "frameon": False}
    return legend_of(ax, handles, drawn, title=title, ncols=columns, borderaxespad=0.2, **small, **place)


def _fitting(count: int, points: float) -> tuple[range, float]:
    """Which of ``count`` evenly spaced names fit into so many points, and the size of their font."""
    step = int(np.ceil(count * _LINE * 4.5 / points))
    size = float(np.clip(points / (_LINE * np.ceil(count / step)), 4.5, 8))
    return range(0, count, step), size
