"""What figures of recurrent language models share: layers, the text that is read, and curves as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

import sdkernels as sd
from sdkernels.lab.sweep import Comparison
from sdkernels.lab.sweep.results import Compared
from sdkernels.paper.measures import named
from sdkernels.paper.recipe import Family

CHOICES = {
    "networks": "three LSTM layers are published; 200 units each and a text unrolled in 20 steps are those of the "
    "usual program for the Penn Treebank (Zaremba, Sutskever, Vinyals 2014), all else is unpublished: Adam, 1e-3, 20 "
    "pieces of text side by side, 13 epochs, gradients of norm 1 at most, no dropout, five networks",
    "preset quick": "three layers of 32 units on scikit-learn's digits pixel by pixel",
    "preset small": "three layers of 64 units on the first 100,000 tokens of WikiText-2's validation text, so that its "
    "long training text is not needed, and compared on its test text; 5 pieces side by side, 3e-3. 8 epochs of 40,000 "
    "tokens, 10 pieces side by side, were tried first: two networks knew no more than words' frequencies after 4 of "
    "them, and then learned their text by heart (loss on the test text 6.6 throughout); of these two the bottom layer "
    "settled last by PWCCA, and first by mean CCA",
    "what is compared": "what a layer gives to the next, h; PWCCA weighs by the neurons of the earlier moment",
}

# Of windows that a network reads at once, so that their logits, a number for each word, fit into memory.
_TOKENS_AT_ONCE = 1000


@dataclass(frozen=True)
class Windows:
    """The text that networks read when they are compared.

    Attributes:
        count: windows, spread evenly over the text; None: all.
        steps: tokens of a window; a network's state starts at zero with each.
        on: ``"test"``, ``"validation"`` or ``"train"``.
    """

    count: int | None
    steps: int
    on: str = "test"

    def comparison(
        self, name: str, function: str, networks: Sequence[int], layers: Sequence[str], **arguments: Any
    ) -> Comparison:
        """Of these networks, read on these windows; ``arguments`` are the function's."""
        own = {"batch_size": max(1, _TOKENS_AT_ONCE // self.steps), **arguments}
        return Comparison(name, function, networks, layers, self.on, self.count, self.steps, own)


def by_text(networks: Family, also: Family | None) -> dict[str, Family]:
    """The networks, by the text that they read.

    Raises:
        ValueError: both read the same text.
    """
    families = [networks] if also is None else [networks, also]
    found = {family.data: family for family in families}
    if len(found) < len(families):
        raise ValueError(f"networks and also both read {networks.data}: give them two texts, or leave also out")
    return found


def layers_of(family: Family) -> tuple[str, ...]:
    """Its LSTM layers, from the bottom to the top."""
    return named("lstm", range(1, family.shape.get("layers", 3) + 1))


def on_other_text(family: Family, data: str) -> Family:
    """The same networks on another text."""
    return replace(family, data=data)


def curve_frame(curve: Compared, **columns: Any) -> pd.DataFrame:
    """One row a layer and moment: ``layer``, ``depth`` from 1, ``moment`` and ``distance``, behind these columns.

    Raises:
        TypeError: what was found is no curve.
    """
    if not isinstance(curve, sd.SimilarityCurve):
        raise TypeError(f"a {type(curve).__name__} has no moments; compare over training or over steps")
    table: pd.DataFrame = curve.to_pandas()[["layer", "moment", "distance"]]
    depths = {layer: place for place, layer in enumerate(curve.layers, start=1)}
    table.insert(1, "depth", table.layer.map(depths))
    for place, (name, value) in enumerate(columns.items()):
        table.insert(place, name, value)
    return table
