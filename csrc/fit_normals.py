"""Fits the polynomials of the normal draws and writes them, for C++ and for Python: ``python csrc/fit_normals.py``.

Box-Muller needs -2 ln(u), sin and cos; those of libraries differ from one to the next in their last bits. So each is
reduced exactly, by integer arithmetic, to a short interval, and there to a polynomial: the best one in the greatest
relative error, found by iteratively reweighted least squares, its coefficients rounded to float32 one by one from the
constant term up, and those that remain fitted again after each.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
DESTINATIONS = (ROOT / "csrc/core/normal_coefficients.h", ROOT / "sdkernels/ops/normal_coefficients.py")

ROOT_HALF = float(np.uint32(0x3F3504F3).view(np.float32))  # where a mantissa is split: f in [sqrt(1/2), sqrt(2))


def minus_two_log(t: np.ndarray) -> np.ndarray:
    """-2 ln(1 + t) / t, and its limit at 0."""
    return -2 * np.log1p(t) / np.where(t == 0, 1, t) - 2 * (t == 0)


def sine(y2: np.ndarray) -> np.ndarray:
    """sin(pi/2 y) / y over y squared."""
    y = np.sqrt(y2)
    return np.sin(np.pi / 2 * y) / y


def cosine(y2: np.ndarray) -> np.ndarray:
    """cos(pi/2 y) over y squared."""
    return np.cos(np.pi / 2 * np.sqrt(y2))


# name: function, interval, degree, coefficients that are known
POLYNOMIALS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, float, int, list[float]]] = {
    "LOG": (minus_two_log, ROOT_HALF - 1, 2 * ROOT_HALF - 1, 8, [-2.0, 1.0]),
    "SIN": (sine, 1e-12, 0.25, 3, []),
    "COS": (cosine, 1e-12, 0.25, 4, [1.0]),
}


def fit(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int, known: list[float]
) -> list[float]:
    """Coefficients, the constant term first, each a float32."""
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(0, np.pi, 4001))
    exact = function(x)
    powers = x[:, None] ** np.arange(degree + 1)
    done = list(known)
    while len(done) <= degree:
        rest = exact - powers[:, : len(done)] @ np.array(done)
        best = _least_greatest_error(powers[:, len(done) :], rest, exact)
        done.append(float(np.float32(best[0])))
    return done


def _least_greatest_error(powers: np.ndarray, rest: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Lawson's algorithm on relative errors: weights grow where the error is great."""
    a, b = powers / exact[:, None], rest / exact
    scale = np.abs(a).max(0)
    weights = np.ones(len(b)) / len(b)
    best, least = np.zeros(a.shape[1]), np.inf
    for _ in range(200):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(root * a / scale, root[:, 0] * b, rcond=None)[0] / scale
        error = np.abs(a @ solution - b)
        if error.max() < least:
            best, least = solution, error.max()
        if error.max() < 1e-14:  # rounding in float64: nothing is left to fit
            break
        weights = weights * error / (weights * error).sum()
    return best


def files() -> tuple[str, str]:
    """The C++ header and the Python module."""
    head = "Made by csrc/fit_normals.py, which says how; the constant term comes first, each number is a float32."
    cpp = [f"// {head}", "// clang-format off", "#pragma once", "", "namespace sdkernels {", ""]
    python = [f'"""{head}"""', ""]
    for name, polynomial in POLYNOMIALS.items():
        coefficients = fit(*polynomial)
        words = name.capitalize()
        listed = ",\n".join(f"    {c.hex()}f" for c in coefficients)
        cpp += [f"constexpr float k{words}[] = {{", f"{listed}}};"]
        python += [f"{name} = (", *(f'    float.fromhex("{c.hex()}"),' for c in coefficients), ")"]
    return "\n".join([*cpp, "", "}  // namespace sdkernels", ""]), "\n".join([*python, ""])


if __name__ == "__main__":
    for path, text in zip(DESTINATIONS, files(), strict=True):
        path.write_text(text)
