"""Users' names in plots as they stand."""

from collections.abc import Sequence
from typing import Any

# Dollars set no formula, which would drop letters, or fail where it is none.
LITERAL = {"parse_math": False}


def legend_of(ax: Any, handles: Sequence[Any], names: Sequence[str], **look: Any) -> Any:
    """A legend that shows every name as it stands; matplotlib's own leaves out those with an underscore in front."""
    legend = ax.legend(handles, ["."] * len(handles), **look)  # such a label is refused here too before matplotlib 3.10
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.update({"text": name, **LITERAL})
    return legend
