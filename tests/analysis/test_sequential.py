"""ConfidenceSequence: coverage by simulation, against a plain loop, at the end, in pieces, refusals."""

from math import comb, log

import pytest
import torch

from sdkernels.analysis.sequential import ConfidenceSequence

REPETITIONS = 400
ALPHA = 0.1
ROUNDING = 1e-12  # sums of some hundred terms, in another order of operations


def bernoulli(size, mean):
    return (torch.arange(size) < round(size * mean)).double()


def skewed(size):
    return torch.linspace(0, 1, size, dtype=torch.float64) ** 8


POPULATIONS = {
    "bernoulli-.02": bernoulli(500, 0.02),
    "bernoulli-.5": bernoulli(500, 0.5),
    "bernoulli-.97": bernoulli(500, 0.97),
    "skewed": skewed(500),
    "small": bernoulli(50, 0.3),
    "small-skewed": skewed(50),
}


def shuffled(population, repetitions, seed=0):
    """[repetitions, N]: the population in as many random orders."""
    generator = torch.Generator().manual_seed(seed)
    return population[torch.rand(repetitions, len(population), generator=generator).argsort(1)]


# In no random order: of 4000, nine tenths of the first 400 are 1 and nearly none of the others, so that their intervals
# contradict each other long before either is impossible.
CONTRADICTORY = torch.cat([shuffled(bernoulli(400, 0.9), 1)[0], shuffled(bernoulli(3600, 0.02), 1)[0]])


def most_misses(repetitions, probability, surely=1 - 1e-6):
    """The quantile of the binomial distribution: more misses than this have a probability below 1e-6."""
    total = 0.0
    for misses in range(repetitions + 1):
        total += comb(repetitions, misses) * probability**misses * (1 - probability) ** (repetitions - misses)
        if total >= surely:
            return misses
    return repetitions


def ever_missed(draws, intervals):
    """How many rows have their mean outside of the interval after some example."""
    mean = draws.mean(1)
    missed = torch.zeros(len(draws), dtype=torch.bool)
    for bounds in intervals:
        missed |= (mean < bounds[:, 0] - ROUNDING) | (mean > bounds[:, 1] + ROUNDING)
    return int(missed.sum())


def sequence_intervals(draws, confidence, tolerance):
    sequence = ConfidenceSequence(*draws.shape, confidence=confidence, tolerance=tolerance)
    for column in draws.split(1, dim=1):
        sequence.update(column)
        yield sequence.bounds


def central_limit_intervals(draws, tolerance):
    """90 % intervals for a fixed n, with the finite population correction, looked at after every n from 30 on."""
    N = draws.shape[1]
    for n in range(30, N + 1):
        seen = draws[:, :n]
        half = 1.645 * seen.std(1) * ((1 - n / N) / n) ** 0.5
        yield torch.stack([seen.mean(1) - half, seen.mean(1) + half], 1)


def plain_loop(values, population, confidence, tolerance):
    """Lower and upper bound after each of one series' values, number by number."""
    N = population
    total = spread = penalty = pull = weight = 0.0
    lower, upper, last = 0.0, 1.0, (0.0, 1.0)
    result = []
    for i, x in enumerate(values, start=1):
        guess = (1 + total) / (2 + (i - 1))
        variance = (2 * 0.25 + spread) / (2 + (i - 1))
        rate = min(0.75, tolerance / (tolerance + variance * (N - i) / N))
        spread += (x - guess) ** 2
        penalty += (x - guess) ** 2 * (-log(1 - rate) - rate)
        pull += rate * (x + total / (N - (i - 1)))
        weight += rate * (1 + (i - 1) / (N - (i - 1)))
        total += x
        half = (log(2 / (1 - confidence)) + penalty) / weight
        lower, upper = max(lower, pull / weight - half), min(upper, pull / weight + half)
        if lower <= upper:
            last = lower, upper
        least, most = total / N, (total + N - i) / N
        result.append([min(max(bound, least), most) for bound in last])
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("tolerance", [0.02, 0.1])
@pytest.mark.parametrize("name", POPULATIONS)
def test_all_of_the_sequence_covers_the_mean(name, tolerance):
    draws = shuffled(POPULATIONS[name], REPETITIONS)
    assert ever_missed(draws, sequence_intervals(draws, 1 - ALPHA, tolerance)) <= most_misses(REPETITIONS, ALPHA)


def test_this_simulation_finds_intervals_for_one_look_taken_at_every_n():
    draws = shuffled(POPULATIONS["bernoulli-.5"], REPETITIONS)
    assert ever_missed(draws, central_limit_intervals(draws, 0.1)) > most_misses(REPETITIONS, ALPHA)


def test_this_simulation_finds_intervals_without_the_price_of_confidence():
    """A sequence of confidence next to 0 has log 2 where others have log(2 / alpha)."""
    draws = shuffled(POPULATIONS["bernoulli-.5"], REPETITIONS)
    assert ever_missed(draws, sequence_intervals(draws, 1e-6, 0.1)) > most_misses(REPETITIONS, ALPHA)


@pytest.mark.parametrize(
    ("population", "tolerance"),
    [(bernoulli(2000, 0.5), 0.05), (bernoulli(2000, 0.97), 0.02), (skewed(2000), 0.03)],
    ids=["bernoulli-.5", "bernoulli-.97", "skewed"],
)
def test_the_interval_covers_where_one_stops(population, tolerance):
    N, batch = len(population), 25
    draws = shuffled(population, REPETITIONS)
    sequence = ConfidenceSequence(REPETITIONS, N, confidence=1 - ALPHA, tolerance=tolerance)
    while not sequence.is_narrow.all():
        (active,) = torch.where(~sequence.is_narrow)
        positions = sequence.count[active, None] + torch.arange(batch)
        sequence.update(draws[active[:, None], positions], active)
    mean, (lower, upper) = draws.mean(1), sequence.bounds.unbind(1)
    missed = (mean < lower) | (mean > upper)
    assert int(missed.sum()) <= most_misses(REPETITIONS, ALPHA)
    assert ((sequence.estimate - mean).abs() <= tolerance)[~missed].all()
    assert sequence.count.unique().numel() > 1  # each stops for itself


def test_it_stops_about_where_the_docstring_says():
    N, tolerance = 5000, 0.02
    draws = shuffled(bernoulli(N, 0.5), 50)
    sequence = ConfidenceSequence(50, N, confidence=1 - ALPHA, tolerance=tolerance)
    stops = torch.full((50,), N)
    for batch in draws.split(20, dim=1):
        sequence.update(batch)
        stops = torch.where(sequence.is_narrow, torch.minimum(stops, sequence.count), stops)
    needed = 2 * log(2 / ALPHA) * 0.25 / tolerance**2
    assert float(stops.double().mean()) == pytest.approx(N * needed / (N + needed), rel=0.05)


@pytest.mark.parametrize(
    "draws",
    [
        shuffled(POPULATIONS["bernoulli-.5"], 1)[0],
        shuffled(skewed(200), 1)[0],
        CONTRADICTORY[:800],
        torch.ones(100, dtype=torch.float64),
        torch.tensor([0.25], dtype=torch.float64),
    ],
    ids=["bernoulli", "skewed", "contradictory", "constant", "one"],
)
@pytest.mark.parametrize("tolerance", [0.005, 0.1])
def test_against_a_plain_loop(draws, tolerance):
    N = len(CONTRADICTORY) if len(draws) == 800 else len(draws)
    sequence = ConfidenceSequence(1, N, confidence=0.95, tolerance=tolerance)
    expected = plain_loop(draws.tolist(), N, 0.95, tolerance)
    for n, x in enumerate(draws):
        sequence.update(x[None, None])
        torch.testing.assert_close(sequence.bounds[0], expected[n], rtol=0, atol=ROUNDING)
        assert sequence.count.tolist() == [n + 1]
        torch.testing.assert_close(sequence.estimate[0], draws[: n + 1].mean(), rtol=0, atol=ROUNDING)
    assert (expected[:, 0] <= expected[:, 1]).all()


def test_contradictions_keep_the_last_interval_whatever_the_cuts():
    draws, N = CONTRADICTORY[None], len(CONTRADICTORY)
    pieces = ConfidenceSequence(1, N, confidence=0.95, tolerance=0.05)
    kept = []
    for start in range(0, 800, 20):
        pieces.update(draws[:, start : start + 20])
        whole = ConfidenceSequence(1, N, confidence=0.95, tolerance=0.05)
        whole.update(draws[:, : start + 20])
        torch.testing.assert_close(whole.bounds, pieces.bounds, rtol=0, atol=ROUNDING)
        lower, upper = pieces.bounds[0].tolist()
        assert lower <= upper
        kept.append((lower, upper))
    assert kept[-1] == kept[-10]  # from some point on, nothing more is said
    assert kept[-1][0] > 0.6  # of the first half's mean, .9, where the whole's is .1
    pieces.update(draws[:, 800:])
    assert pieces.bounds.flatten().tolist() == pieces.estimate.tolist() * 2


@pytest.mark.parametrize("seed", range(5))
def test_cuts_make_no_difference(seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.stack([shuffled(POPULATIONS[name], 1, seed)[0] for name in list(POPULATIONS)[:4]])
    whole, pieces, mixed = (ConfidenceSequence(4, 500, confidence=0.9, tolerance=0.05) for _ in range(3))
    whole.update(draws[:, :450])
    cuts = torch.randint(0, 450, (20,), generator=generator).sort().values.tolist()
    for start, stop in zip([0, *cuts], [*cuts, 450], strict=True):  # some are empty
        pieces.update(draws[:, start:stop])
    for start in range(0, 450, 90):  # series by series, in another order each time
        for row in torch.randperm(4, generator=generator).tolist():
            mixed.update(draws[[row], start : start + 90], torch.tensor([row]))
    for other in (pieces, mixed):
        torch.testing.assert_close(other.bounds, whole.bounds, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(other.estimate, whole.estimate, rtol=0, atol=ROUNDING)
        assert torch.equal(other.count, whole.count)
        assert torch.equal(other.is_narrow, whole.is_narrow)


@pytest.mark.parametrize("name", POPULATIONS)
def test_at_the_end_the_interval_is_the_mean(name):
    draws = shuffled(POPULATIONS[name], 30)
    N = draws.shape[1]
    sequence = ConfidenceSequence(30, N, confidence=0.99, tolerance=1e-9)
    sequence.update(draws[:, :-1])
    assert not sequence.is_narrow.any()
    sequence.update(draws[:, -1:])
    assert torch.equal(sequence.bounds, sequence.estimate[:, None].expand(30, 2))
    torch.testing.assert_close(sequence.estimate, draws.mean(1), rtol=0, atol=ROUNDING)
    assert sequence.is_narrow.all()


def test_nothing_sampled():
    sequence = ConfidenceSequence(2, 10, confidence=0.95, tolerance=5.0)
    sequence.update(torch.zeros(1, 3), torch.tensor([1]))
    assert sequence.count.tolist() == [0, 3]
    assert sequence.is_narrow.tolist() == [False, True]
    assert sequence.bounds[0].tolist() == [0, 1]
    assert sequence.estimate.isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    draws = shuffled(POPULATIONS["bernoulli-.5"], 3)[:, :200]
    wide, other = (ConfidenceSequence(3, 500, confidence=0.95, tolerance=0.05) for _ in range(2))
    wide.update(draws)
    other.update(draws.to(dtype))
    assert torch.equal(wide.bounds, other.bounds)
    assert other.bounds.dtype == other.estimate.dtype == torch.float64


def test_what_is_read_is_not_the_state():
    sequence = ConfidenceSequence(1, 10, confidence=0.95, tolerance=0.1)
    sequence.count.add_(5)
    sequence.bounds.zero_()
    assert sequence.count.tolist() == [0]
    assert sequence.bounds.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": 0.0}, r"confidence must be between 0 and 1, like 0\.95; got 0\.0"),
        ({"confidence": 1.0}, r"confidence must be between 0 and 1"),
        ({"confidence": float("nan")}, r"confidence must be between 0 and 1"),
        ({"tolerance": 0.0}, r"tolerance must be positive, like 0\.01; got 0\.0"),
        ({"tolerance": float("nan")}, r"tolerance must be positive"),
        ({"tolerance": float("inf")}, r"tolerance must be positive"),
        ({"population": 0}, r"population must be at least 1, got 0"),
        ({"series": 0}, r"series must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    arguments = {"series": 2, "population": 10, "confidence": 0.95, "tolerance": 0.1}
    with pytest.raises(ValueError, match=message):
        ConfidenceSequence(**(arguments | change))


@pytest.mark.parametrize(
    ("values", "series", "message"),
    [
        ([[0.5], [1.5]], [2, 1], r"within 0 to 1; series 1 has 1\.5 at 0"),
        ([[0.5, -0.1]], [2], r"series 2 has -0\.1 at 1"),
        ([[float("nan")]], [0], r"series 0 has nan at 0"),
        ([[float("inf")]], [0], r"series 0 has inf at 0"),
        ([[0.0] * 7, [0.0] * 7], [0, 2], r"series 2 has seen 4 of its population of 10, and 7 more are given"),
        ([[0.0], [0.0]], [1, 1], r"series 1 is given 2 times"),
        ([[0.0]], [3], r"series are numbered 0 to 2, got 3 to 3"),
        ([[0.0]], [-1], r"series are numbered 0 to 2, got -1 to -1"),
        ([[0.0]], [[0]], r"series is int64 \[k\], got torch\.int64 \[1, 1\]"),
        ([[0.0]], [0.0], r"series is int64 \[k\], got torch\.float32 \[1\]"),
        ([[0.0]], None, r"values for 3 series are \[3, n\], got \[1, 1\]"),
        ([0.0, 0.0, 0.0], None, r"values for 3 series are \[3, n\], got \[3\]"),
    ],
)
def test_updates_that_do_not_fit_are_refused_and_add_nothing(values, series, message):
    sequence = ConfidenceSequence(3, 10, confidence=0.95, tolerance=0.1)
    sequence.update(torch.ones(1, 4), torch.tensor([2]))
    before = sequence.bounds
    with pytest.raises(ValueError, match=message):
        sequence.update(torch.tensor(values, dtype=torch.float64), None if series is None else torch.tensor(series))
    assert sequence.count.tolist() == [0, 0, 4]
    assert torch.equal(sequence.bounds, before)


def test_integers_are_refused():
    sequence = ConfidenceSequence(1, 10, confidence=0.95, tolerance=0.1)
    with pytest.raises(TypeError, match=r"values are bool or floating, got torch\.int64"):
        sequence.update(torch.zeros(1, 2, dtype=torch.int64))
