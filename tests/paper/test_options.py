"""Options by name: which are meant, what fits, and that those which only go together are changed together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from sdkernels.lab.training import TrainingOptions
from sdkernels.paper.catalogue import RECIPES
from sdkernels.paper.options import change_options, option_values
from sdkernels.paper.recipe import PRESETS


@dataclass(frozen=True)
class Inner:
    epochs: int | None = 3
    rate: float = 0.1
    kind: Literal["a", "b"] | int = "a"
    seed: int = 0


@dataclass(frozen=True)
class Outer:
    one: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=Inner)
    levels: tuple[float, ...] = (0.0, 1.0)
    pairs: tuple[tuple[int, str], ...] | None = None
    shape: Mapping[str, Any] = field(default_factory=dict)
    flag: bool = False
    name: str = "x"
    anything: Any = None
    seed: int = 0


def test_values_stand_by_full_names():
    values = option_values(Outer(), "figure")
    assert list(values)[:4] == ["figure.one.epochs", "figure.one.rate", "figure.one.kind", "figure.one.seed"]
    assert values["figure.levels"] == (0.0, 1.0)
    assert "figure.one" not in values
    assert option_values(Inner()) == {"epochs": 3, "rate": 0.1, "kind": "a", "seed": 0}


def test_a_name_changes_every_option_that_ends_so():
    assert change_options(Outer(), {"epochs": 5}) == Outer(one=Inner(epochs=5), other=Inner(epochs=5))
    assert change_options(Outer(), {"other.epochs": 5}) == Outer(other=Inner(epochs=5))
    assert change_options(Outer(), {"seed": 7}) == Outer(Inner(seed=7), Inner(seed=7), seed=7)
    assert change_options(Outer(), {}) == Outer()


def test_an_end_is_of_whole_names():
    with pytest.raises(ValueError, match="there is no option 'eed'"):
        change_options(Outer(), {"eed": 1})
    with pytest.raises(ValueError, match=r"there is no option 'er\.epochs'"):
        change_options(Outer(), {"er.epochs": 1})


@pytest.mark.parametrize("names", [("epochs", "one.epochs"), ("one.epochs", "epochs")])
def test_the_longer_name_counts_whatever_the_order(names):
    values = {"epochs": 5, "one.epochs": 9}
    changed = change_options(Outer(), {name: values[name] for name in names})
    assert (changed.one.epochs, changed.other.epochs) == (9, 5)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("levels", [0, 0.5], (0, 0.5)),
        ("levels", [], ()),
        ("pairs", [[1, "a"], [2, "b"]], ((1, "a"), (2, "b"))),
        ("pairs", None, None),
        ("one.epochs", None, None),
        ("one.rate", 1, 1),
        ("one.kind", "b", "b"),
        ("one.kind", 4, 4),
        ("shape", {"hidden": [3, 3]}, {"hidden": [3, 3]}),
        ("flag", True, True),
        ("anything", [1], [1]),
    ],
)
def test_what_fits_is_taken(name, value, kept):
    found = option_values(change_options(Outer(), {name: value}))[name]
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("one.epochs", "many", "'many' must be a whole number or null"),
        ("one.epochs", 2.5, "a whole number or null"),
        ("one.epochs", True, "a whole number or null"),
        ("one.rate", None, "must be a number"),
        ("one.rate", True, "must be a number"),
        ("one.kind", "c", "must be 'a' or 'b' or a whole number"),
        ("one.kind", ["a"], "must be 'a' or 'b' or a whole number"),
        ("levels", 0.5, "must be a list of numbers"),
        ("levels", [0, "x"], r"levels=\[0, 'x'\] must be a list of numbers"),
        ("levels", [None], "must be a list of numbers"),
        ("pairs", [[1]], r"must be a list of \[a whole number, text\] or null"),
        ("pairs", [["a", 1]], "whole number, text"),
        ("pairs", [[1, "a", 2]], "whole number, text"),
        ("shape", [3, 3], "must be a table"),
        ("flag", 1, "must be true or false"),
        ("flag", "true", "must be true or false"),
        ("name", 1, "must be text"),
    ],
)
def test_what_does_not_fit_is_refused(name, value, says):
    with pytest.raises(ValueError, match=says):
        change_options(Outer(), {name: value})


def test_slips_are_answered_with_close_names():
    with pytest.raises(ValueError, match=r"close: epochs"):
        change_options(Outer(), {"epoch": 5})
    with pytest.raises(ValueError, match=r"there are anything, epochs, flag"):
        change_options(Outer(), {"zzzz": 5})


def test_options_that_only_go_together_are_changed_together():
    @dataclass(frozen=True)
    class Figure:
        training: TrainingOptions

    for changes in ({"steps": None, "epochs": 3}, {"epochs": 3, "steps": None}):
        changed = change_options(Figure(TrainingOptions(steps=100)), changes)
        assert (changed.training.epochs, changed.training.steps) == (3, None)
    with pytest.raises(ValueError, match="training needs a length"):
        change_options(Figure(TrainingOptions(steps=100)), {"epochs": 3})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_option_of_every_figure_takes_its_own_value(recipe, preset):
    options = recipe.presets[preset]
    assert change_options(options, option_values(options)) == options
