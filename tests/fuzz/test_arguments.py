"""Public functions with hostile arguments: a right answer, or an error that names what was wrong.

``SDKERNELS_FUZZ=10000 pytest tests/fuzz/test_arguments.py`` tries that many; what is tried is the same each time.
"""

import fractions
import inspect
import os
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, settings
from hypothesis import given as tried_with
from hypothesis import strategies as st

import sdkernels as sd
from sdkernels.engine.ledger import LedgerError
from tests.engine.compare import assert_same_but_for_rounding
from tests.fuzz import hostile
from tests.fuzz.bounds import ROOM, within_bounds
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
def _in_a_place_of_its_own(tmp_path_factory):
    """A folder, where stores are made under whatever name, and so much memory, on whatever machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        patch.setattr("sdkernels.engine.memory.memory_limit", lambda _device, fraction: fraction * ROOM)
        yield


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


def right_or_refused(name: str, given: dict[str, str]) -> None:
    """Call it; what it gives is that of the hook loop, or its error names an argument that is not as it should be."""
    call = CALLS[name]
    words = {word for argument in given for word in CALLED.get(argument, (argument,))}
    with warnings.catch_warnings(record=True) as said, within_bounds():
        warnings.simplefilter("always")
        try:
            found = call.function(**made(name, given))
            if "sums" in dir(found) and "method" not in given and found.used is None and "loss" in found.sums:
                assert_same_but_for_rounding(found, call.function(**made(name, given), method="loop"))
        except (ValueError, TypeError, LedgerError) as error:
            if not any(word in str(error) for word in words):
                raise AssertionError(f"none of {words} is named") from error
        except MemoryError as error:
            if "memory_fraction" not in given or "memory_fraction" not in str(error):
                raise
        except (RuntimeError, ZeroDivisionError) as error:
            if Path(traceback.extract_tb(error.__traceback__)[-1].filename) != Path(hostile.__file__):
                raise  # else it is the caller's own, and passed on
    assert len(said) <= WARNINGS, [str(one.message) for one in said]


@settings(max_examples=NUMBER, deadline=None, derandomize=True, database=None)
@tried_with(st.sampled_from(sorted(CALLS)).flatmap(asked))
def test_any_arguments(tried):
    name, given = tried
    assume(not any(argument in MUCH and value == repr(10**6) for argument, value in given.items()))
    right_or_refused(name, given)


# What was found once.
FOUND = [
    ("ablate", "outcomes", "torch.empty(0)"),
    ("ablate", "outcomes", "NotImplemented"),
    ("ablate", "value", "-inf"),
    ("ablate", "value", "1e+300"),
    ("ablate", "value", "torch.ones(2, 7, meta)"),
    ("ablate", "baselines", "torch.arange(7)"),
    ("ablate", "value_data", "inputs of another width"),
    ("ablate", "configs_per_batch", repr(10**30)),
    ("ablate", "metrics", "nn.ReLU()"),
    ("ablate", "data", "inputs of another width"),
    ("ablate", "data", "torch.tensor(nan)"),
    ("ablate", "layers", "nn.ReLU()"),
    ("batch_norm_scale", "signed", "Stubborn()"),
    ("compare_layers", "data", "torch.ones(2, 7, sparse)"),
    ("compare_layers", "reduce", repr(np.int64(2))),
    ("compare_layers", "tolerance", repr(fractions.Fraction(1, 2))),
    ("cumulative_ablation", "orders", repr(2**31)),
    ("cumulative_ablation", "points", repr(2**31)),
    ("cumulative_ablation", "points", "[None]"),
    ("cumulative_ablation", "seed", repr(np.int64(2))),
    ("cumulative_ablation", "within", repr(10**30)),
    ("cumulative_ablation", "within", repr(np.float32(0.5))),
    ("noise_robustness", "common_random_numbers", "torch.empty(0)"),
    ("noise_robustness", "per_map", "'..'"),
    ("noise_robustness", "repeats", repr(2**31)),
    ("noise_robustness", "scales", repr(2**31)),
    ("noise_robustness", "sd_data", "inputs of int64"),
    ("pairwise_similarity", "groups", "torch.tensor(nan)"),
    ("pairwise_similarity", "groups", "-1"),
    ("random_directions", "channels", repr(10**6)),
    ("rank_correlation", "confidence", "torch.ones(2, 7, sparse)"),
    ("rank_correlation", "dead", "b'1'"),
    ("rank_correlation", "dead_value", "'..'"),
    ("rank_correlation", "resamples", repr(2**31)),
    ("similarity_over_steps", "data", "torch.arange(7)[None]"),
    ("unit_statistics", "mean_maps", "np.zeros(0)"),
    ("unit_statistics", "num_classes", "1"),
    ("unit_statistics", "show_progress", "np.zeros(0)"),
]


@pytest.mark.parametrize(("name", "argument", "value"), FOUND)
def test_what_was_found_once(name, argument, value):
    right_or_refused(name, {argument: value})


def test_the_calls_are_valid():
    for call in CALLS.values():
        call.function(**{argument: make() for argument, make in call.arguments.items()})


def test_every_public_function_is_called():
    functions = {name for name in sd.__all__ if inspect.isfunction(getattr(sd, name))}
    assert functions == CALLS.keys()
