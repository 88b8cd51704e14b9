"""Matplotlib's axes, colours and labels as users give them."""

from typing import Any

from sdkernels.analysis.extras import require


def axes(given: Any, what_for: str, **layout: Any) -> Any:
    """Matplotlib's axes: those given, or, of None, of a new figure.

    Raises:
        TypeError: it is something else.
    """
    if given is None:
        return require("matplotlib.pyplot", what_for).subplots(**layout)[1]
    if not isinstance(given, require("matplotlib.axes", what_for).Axes):
        raise TypeError(f"ax is a {type(given).__name__}; give matplotlib's axes, or None for new ones")
    return given


def look(label: object, color: Any) -> dict[str, Any]:
    """How a line is called and coloured, as matplotlib's ``plot`` takes it.

    Raises:
        ValueError: no colour that matplotlib knows.
    """
    if color is not None and not _is_colour(color):
        raise ValueError(f"color={color!r} is no colour of matplotlib's, as 'red', '#1f77b4' or (0.1, 0.2, 0.5)")
    return {"label": None if label is None else str(label), "color": color}


def _is_colour(given: Any) -> bool:
    try:
        return bool(require("matplotlib.colors", "a plot").is_color_like(given))
    except Exception:  # matplotlib looks into whatever it is given
        return False
