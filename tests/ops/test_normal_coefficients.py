"""The polynomials of normal draws: as good as a fresh fit, the same numbers in C++ and in Python."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from sdkernels.ops import normal_coefficients

CSRC = Path(__file__).parents[2] / "csrc"


@pytest.fixture(scope="module")
def fit_normals():
    spec = importlib.util.spec_from_file_location("fit_normals", CSRC / "fit_normals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_cpp(name: str) -> list[float]:
    header = (CSRC / "core/normal_coefficients.h").read_text()
    (listed,) = re.findall(rf"constexpr float k{name.capitalize()}\[\] = \{{(.*?)\}};", header, re.DOTALL)
    return [float.fromhex(number.strip().removesuffix("f")) for number in listed.split(",")]


@pytest.mark.parametrize("name", ["LOG", "SIN", "COS"])
def test_cpp_and_python_have_the_same(name):
    kept = list(getattr(normal_coefficients, name))
    assert in_cpp(name) == kept
    assert [float(np.float32(c)) for c in kept] == kept, "each is a float32"


# What is approximated, where, written out here again: argument -> value, over the interval of the argument.
FUNCTIONS = {
    "LOG": (lambda t: -2 * np.log1p(t) / t, np.sqrt(0.5) - 1, np.sqrt(2) - 1),
    "SIN": (lambda y2: np.sin(np.pi / 2 * np.sqrt(y2)) / np.sqrt(y2), 0, 0.25),
    "COS": (lambda y2: np.cos(np.pi / 2 * np.sqrt(y2)), 0, 0.25),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_a_fresh_fit_is_not_better(fit_normals, name):
    """By at most 5%, what other versions of LAPACK may make of it."""
    function, low, high = FUNCTIONS[name]
    x = np.linspace(low, high, 200_002)[1:]
    x = x[x != 0]
    exact = function(x)
    kept, fresh = (
        np.abs(np.polynomial.polynomial.polyval(x, np.array(coefficients)) / exact - 1).max()
        for coefficients in (getattr(normal_coefficients, name), fit_normals.fit(*fit_normals.POLYNOMIALS[name]))
    )
    assert kept <= 1.05 * fresh
    assert kept < 1e-7, "about a rounding of float32"
