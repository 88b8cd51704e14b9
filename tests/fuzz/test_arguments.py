"""Public functions with hostile arguments: a right answer, or an error that names what was wrong.

``SDKERNELS_FUZZ=10000 pytest tests/fuzz/test_arguments.py`` tries that many; what is tried is the same each time.
"""

import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as tried_with
from hypothesis import note, settings
from hypothesis import strategies as st

import sdkernels as sd
from sdkernels.engine.ledger import LedgerError
from tests.engine.compare import assert_same_but_for_rounding
from tests.fuzz.bounds import within_bounds
from tests.fuzz.calls import CALLS
from tests.fuzz.hostile import HOSTILE

NUMBER = int(os.environ.get("SDKERNELS_FUZZ", "500"))
WARNINGS = 4

# Which arguments are tried, of all functions that have them.
ARGUMENTS = {
    *("batch_size", "compat", "count", "debiased", "device", "kind", "matching", "method", "orthonormalize", "p"),
    *("positions", "precision", "reduce", "reference", "scale_kind", "seed", "side", "solver", "store", "subsample"),
    *("tolerance", "tolerance_of", "variance"),
}

# What messages may call an argument beside its name.
CALLED = {"store": ("store", "nonexistent")}


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory):
    """Where stores are made under whatever name."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    yield
    os.chdir(before)


TRIED = [(name, argument) for name in sorted(CALLS) for argument in CALLS[name].names if argument in ARGUMENTS]


def made(name: str, given: dict[str, str]) -> dict[str, Any]:
    """The arguments, new ones each time: an iterator is used up."""
    arguments = {argument: make() for argument, make in CALLS[name].arguments.items()}
    with torch.random.fork_rng(devices=[]):
        return arguments | {argument: HOSTILE[value]() for argument, value in given.items()}


@settings(max_examples=NUMBER, deadline=None, derandomize=True, database=None)
@tried_with(st.sampled_from(TRIED), st.sampled_from(sorted(HOSTILE)))
def test_any_argument(at, value):
    name, argument = at
    call, given = CALLS[name], {argument: value}
    with warnings.catch_warnings(record=True) as said, within_bounds():
        warnings.simplefilter("always")
        try:
            found = call.function(**made(name, given))
            if "sums" in dir(found) and "method" not in given and found.used is None:
                assert_same_but_for_rounding(found, call.function(**made(name, given), method="loop"))
        except (ValueError, TypeError, LedgerError) as error:
            message = str(error)
            words = CALLED.get(argument, (argument,))
            note(f"{type(error).__name__}: {message}")
            assert any(word in message for word in words), f"none of {words} is named"
    assert len(said) <= WARNINGS, [str(one.message) for one in said]


def test_the_calls_are_valid():
    for call in CALLS.values():
        call.function(**{argument: make() for argument, make in call.arguments.items()})


def test_every_public_function_is_called():
    functions = {name for name in sd.__all__ if inspect.isfunction(getattr(sd, name))}
    assert functions == CALLS.keys()
