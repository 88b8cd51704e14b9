"""random_stream: ten million draws are distributed as they should be, and nothing in their ids shows.

Bounds are five standard errors, by the variances written beside them: a right generator exceeds one of them about once
in two million. The draws are always the same, so a test that passes stays so.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor

from sdkernels.ops import random_stream

pytestmark = pytest.mark.usefixtures("native")

SIGMAS = 5
SHAPE = (10, 1000, 1000)  # K, N, elements
DRAWS = math.prod(SHAPE)


def draws(kind: str, seed: int = 2024, site: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    configurations, examples, elements = shape
    return random_stream(kind, seed, torch.arange(configurations), torch.arange(examples), elements, site=site)


@pytest.fixture(scope="module")
def normals():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDKERNELS_BACKEND", "native")
        return draws("normal")


@pytest.fixture(scope="module")
def uniforms():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDKERNELS_BACKEND", "native")
        return draws("uniform")


@pytest.mark.parametrize(("power", "moment", "variance"), [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)])
def test_moments_of_normals(normals, power, moment, variance):
    """E x^p of a standard normal, and Var x^p = E x^2p - (E x^p)^2."""
    found = float((normals.double() ** power).mean())
    assert abs(found - moment) < SIGMAS * math.sqrt(variance / DRAWS)


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_moments_of_uniforms(uniforms, power):
    """E u^p = 1 / (p + 1); the grid of 2**-24 moves it by less than p 2**-25."""
    variance = 1 / (2 * power + 1) - 1 / (power + 1) ** 2
    found = float((uniforms.double() ** power).mean())
    assert abs(found - 1 / (power + 1)) < SIGMAS * math.sqrt(variance / DRAWS) + power * 2.0**-25


def test_uniforms_lie_in_zero_to_one(uniforms):
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert torch.equal((uniforms.double() * 2**24) % 1, torch.zeros(SHAPE, dtype=torch.float64)), "24 bits each"


def kolmogorov_smirnov(x: Tensor, distribution: Callable[[np.ndarray], np.ndarray]) -> float:
    """sqrt(n) times the greatest distance of the empirical distribution function from the true one."""
    ordered = torch.from_numpy(distribution(x.flatten().sort().values.double().numpy()))
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max())


# P(statistic > d) = 2 exp(-2 d^2) for many draws: 6e-7, as five standard errors.
GREATEST_DISTANCE = math.sqrt(math.log(2 / 6e-7) / 2)


def test_normals_are_distributed_so(normals):
    assert kolmogorov_smirnov(normals, ndtr) < GREATEST_DISTANCE


def test_uniforms_are_distributed_so(uniforms):
    assert kolmogorov_smirnov(uniforms, np.asarray) < GREATEST_DISTANCE


def test_tails_are_as_heavy_as_they_should_be(normals):
    """How many exceed t, which no polynomial moment shows; the count is Poisson."""
    for t in (3.0, 4.0, 4.5, 5.0):
        expected = 2 * DRAWS * float(ndtr(-t))
        assert abs(int((normals.abs() > t).sum()) - expected) < SIGMAS * math.sqrt(expected) + SIGMAS


def test_every_bit_of_the_words_is_fair():
    words = draws("bits", shape=(10, 1000, 100))
    for bit in range(32):
        ones = int(((words >> bit) & 1).sum())
        assert abs(ones - words.numel() / 2) < SIGMAS * math.sqrt(words.numel()) / 2


def correlation(x: Tensor, y: Tensor) -> float:
    """In standard errors, 1 / sqrt(n) for independent standard normals."""
    x, y = x.double().flatten(), y.double().flatten()
    return float((x * y).mean()) * math.sqrt(len(x))


def unrelated(x: Tensor, y: Tensor) -> None:
    """Neither the numbers nor their squares (as of one radius used twice) go together."""
    assert abs(correlation(x, y)) < SIGMAS
    assert abs(correlation((x**2 - 1) / math.sqrt(2), (y**2 - 1) / math.sqrt(2))) < SIGMAS


@pytest.mark.parametrize("lag", [1, 2, 3, 4])
def test_neighbouring_elements_are_unrelated(normals, lag):
    unrelated(normals[..., lag:], normals[..., :-lag])


@pytest.mark.parametrize("word", [0, 1, 2, 3])
def test_each_word_of_a_quad_is_unrelated_to_the_next(normals, word):
    """The pairs of Box and Muller share a radius and an angle; one by one, since others would hide a fault."""
    flat = normals.flatten(0, 1)
    unrelated(flat[:, word:-4:4], flat[:, word + 1 : flat.shape[1] - 3 : 4])


def test_neighbouring_examples_are_unrelated(normals):
    unrelated(normals[:, 1:], normals[:, :-1])


def test_neighbouring_configurations_are_unrelated(normals):
    unrelated(normals[1:], normals[:-1])


@pytest.mark.parametrize(
    "other",
    [{"site": 4}, {"site": 2**31 + 3}, {"seed": 2025}, {"seed": 2024 + 2**32}, {"seed": 2024 - 2**63}],
    ids=["next-site", "far-site", "next-seed", "high-word", "sign"],
)
def test_other_sites_and_seeds_are_unrelated(normals, other):
    unrelated(normals[:2], draws("normal", shape=(2, 1000, 1000), **other))


def test_exchanged_ids_are_unrelated(normals):
    """Configuration 2 of example 5 is not configuration 5 of example 2."""
    square = draws("normal", shape=(100, 100, 100))
    upper = torch.ones(100, 100, dtype=torch.bool).triu(1)
    unrelated(square[upper], square.transpose(0, 1)[upper])
