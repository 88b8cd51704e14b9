"""Public classes with hostile arguments: every method and constructor is right, or its error names what was wrong.

``SDKERNELS_FUZZ=10000 pytest tests/fuzz/test_classes.py`` tries that many; what is tried is the same each time.
"""

import inspect
import os
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import given as tried_with
from hypothesis import note, settings
from hypothesis import strategies as st

import sdkernels as sd
from tests.fuzz import made
from tests.fuzz.bounds import within_bounds
from tests.fuzz.hostile import HOSTILE

NUMBER = int(os.environ.get("SDKERNELS_FUZZ", "500"))
WARNINGS = 4
LONGEST = 2000  # letters of a message

USES = made.uses()
TRIED = [(name, argument) for name in sorted(USES) for argument in USES[name].names]

# What messages may call an argument beside its name.
CALLED = {
    "data": ("data", "label", "input", "activations"),
    "layers": ("layer",),
    "model": ("model", "Sequential", "ReLU"),
    "name": ("name", "metric"),
}

# What is taken at its word, and is work for hours.
TAKES_HOURS = {("AblationMonitor", "orders", "1000000")}


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory):
    """Where files are written under whatever name."""
    before, backend = Path.cwd(), matplotlib.get_backend()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    matplotlib.use("agg")
    made.saved.cache_clear()
    yield
    matplotlib.use(backend)
    os.chdir(before)


@settings(max_examples=NUMBER, deadline=None, derandomize=True, database=None)
@tried_with(st.sampled_from(TRIED), st.sampled_from(sorted(HOSTILE)))
def test_any_argument(at, value):
    name, argument = at
    if (*at, value) in TAKES_HOURS:
        return
    arguments = {one: make() for one, make in USES[name].arguments.items()}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as said, within_bounds():
        warnings.simplefilter("always")
        given = HOSTILE[value]()
        try:
            USES[name].function(**arguments | {argument: given})
        except (ValueError, TypeError, KeyError, OSError) as error:
            message = str(error)
            note(f"{type(error).__name__}: {message}")
            words = (*CALLED.get(argument, (argument,)), *([str(given)] if argument == "path" else []))
            assert any(word in message for word in words), f"none of {words} is named"
            assert len(message) <= LONGEST
    matplotlib.pyplot.close("all")
    assert len(said) <= WARNINGS, [str(one.message) for one in said]
    assert not list(Path().glob("*.partial"))


@pytest.mark.parametrize("name", sorted(USES))
def test_the_uses_are_valid(name):
    USES[name].function(**{argument: make() for argument, make in USES[name].arguments.items()})
    matplotlib.pyplot.close("all")


def test_every_public_class_is_used():
    classes = {one for name in sd.__all__ if inspect.isclass(one := getattr(sd, name))}
    assert classes - {sd.SdkernelsWarning} == made.RESULTS.keys() | made.OTHERS.keys()
