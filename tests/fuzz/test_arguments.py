"""Public functions with hostile arguments: a right answer, or an error that names what was wrong.

``SDKERNELS_FUZZ=10000 pytest tests/fuzz/test_arguments.py`` tries that many; what is tried is the same each time.
"""

import inspect
import os
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, note, settings
from hypothesis import given as tried_with
from hypothesis import strategies as st

import sdkernels as sd
from sdkernels.engine.ledger import LedgerError
from tests.engine.compare import assert_same_but_for_rounding
from tests.fuzz import hostile
from tests.fuzz.bounds import within_bounds
from tests.fuzz.calls import CALLS
from tests.fuzz.hostile import HOSTILE

NUMBER = int(os.environ.get("SDKERNELS_FUZZ", "500"))
WARNINGS = 4

# What messages may call an argument beside its name.
CALLED = {
    "store": ("store", "nonexistent"),
    "layers": ("layer",),
    "layers_b": ("layer",),
    "layer": ("layer",),
    "data": ("data", "layer"),
    "checkpoints": ("checkpoint",),
    "select": ("select", "layer"),
}
# Counts of what is to be done: a million are much work, which is done.
MUCH = {"orders", "repeats", "scales", "num_classes", "resamples"}


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory):
    """Where stores are made under whatever name."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    yield
    os.chdir(before)


def asked(name: str) -> st.SearchStrategy[tuple[str, dict[str, str]]]:
    """A function, and hostile values for one or two of its arguments."""
    arguments = st.lists(st.sampled_from(CALLS[name].names), min_size=1, max_size=2, unique=True)
    values = st.sampled_from(sorted(HOSTILE))
    return arguments.flatmap(
        lambda chosen: st.tuples(st.just(name), st.fixed_dictionaries(dict.fromkeys(chosen, values)))
    )


def made(name: str, given: dict[str, str]) -> dict[str, Any]:
    """The arguments, new ones each time: an iterator is used up."""
    arguments = {argument: make() for argument, make in CALLS[name].arguments.items()}
    with torch.random.fork_rng(devices=[]):
        return arguments | {argument: HOSTILE[value]() for argument, value in given.items()}


@settings(max_examples=NUMBER, deadline=None, derandomize=True, database=None)
@tried_with(st.sampled_from(sorted(CALLS)).flatmap(asked))
def test_any_arguments(tried):
    name, given = tried
    assume(not any(argument in MUCH and value == repr(10**6) for argument, value in given.items()))
    call = CALLS[name]
    words = {word for argument in given for word in CALLED.get(argument, (argument,))}
    with warnings.catch_warnings(record=True) as said, within_bounds():
        warnings.simplefilter("always")
        try:
            found = call.function(**made(name, given))
            if "sums" in dir(found) and "method" not in given and found.used is None and "loss" in found.sums:
                assert_same_but_for_rounding(found, call.function(**made(name, given), method="loop"))
        except (ValueError, TypeError, LedgerError) as error:
            note(f"{type(error).__name__}: {error}")
            if not any(word in str(error) for word in words):
                raise AssertionError(f"none of {words} is named") from error
        except MemoryError as error:
            if "memory_fraction" not in given or "memory_fraction" not in str(error):
                raise
        except (RuntimeError, ZeroDivisionError) as error:
            if Path(traceback.extract_tb(error.__traceback__)[-1].filename) != Path(hostile.__file__):
                raise  # else it is the caller's own, and passed on
    assert len(said) <= WARNINGS, [str(one.message) for one in said]


def test_the_calls_are_valid():
    for call in CALLS.values():
        call.function(**{argument: make() for argument, make in call.arguments.items()})


def test_every_public_function_is_called():
    functions = {name for name in sd.__all__ if inspect.isfunction(getattr(sd, name))}
    assert functions == CALLS.keys()
