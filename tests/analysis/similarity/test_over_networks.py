"""All pairs of networks: against raw hooks and definitions, held and in lockstep, stopped and gone on with."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from sdkernels.analysis import passes
from sdkernels.analysis.similarity import over_networks
from sdkernels.analysis.similarity.activations import Positions
from sdkernels.analysis.similarity.all_pairs import ROUNDED_FROM, similarities_of
from sdkernels.analysis.similarity.method import Method
from sdkernels.analysis.similarity.networks import Way, together
from sdkernels.analysis.similarity.over_networks import pairwise_similarity
from sdkernels.analysis.similarity.passes_of_pairs import plan_passes
from sdkernels.analysis.similarity.threads import in_threads
from sdkernels.engine.checks import SdkernelsWarning
from tests.analysis.similarity.collected import (
    EXAMPLES,
    SIMILARITIES,
    Batches,
    Examples,
    StoppedError,
    activations,
    convolutions,
    counted,
    each,
    hooks_of,
    images,
    means,
    passes_in,
)
from tests.analysis.similarity.oracle import cca

SAME = 1e-9
WIDTHS = [5, 3, 5, 4]


@pytest.fixture
def networks() -> list[nn.Module]:
    return [convolutions(width, seed) for seed, width in enumerate(WIDTHS)]


@pytest.fixture
def limited(monkeypatch):
    """Gives a function that sets how many bytes there are."""
    return lambda limit: monkeypatch.setattr(over_networks, "memory_limit", lambda _device, _fraction: float(limit))


def expected(networks, layers, inputs, similarity, rows=means) -> torch.Tensor:
    table = torch.zeros(len(layers), len(networks), len(networks), dtype=torch.float64)
    for place, layer in enumerate(layers):
        found = [rows(activations(network, layer, inputs)) for network in networks]
        for i, a in enumerate(found):
            for j, b in enumerate(found):
                table[place, i, j] = 0 if i == j else 1 - similarity(a, b)
    return table


# Bytes: all is held; two layers at a time are; moments of all networks, of two groups at a time.
LIMITS = {"all": 1e9, "two layers": 70_000, "moments": 12_000, "groups": 1_300}
WAYS = {
    "all": ["hold, 1 pass"] * 3,
    "two layers": ["hold, 1 pass"] * 3,
    "moments": ["lockstep, 1 pass"] * 3,
    "groups": ["lockstep, 3 passes", "lockstep, 6 passes", "lockstep, 1 pass"],
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_pair_is_what_definitions_give(name, limit, networks, limited):
    limited(LIMITS[limit])
    options, similarity = SIMILARITIES[name]
    inputs, layers = images(), ["1", "4", "6"]
    with counted() as seen:
        result = pairwise_similarity(networks, layers, inputs, batch_size=16, **options)
    table = expected(networks, layers, inputs, similarity)
    assert torch.allclose(result.distance, table, rtol=0, atol=SAME)
    assert (result.names, result.layers, result.examples) == (("0", "1", "2", "3"), tuple(layers), EXAMPLES)
    if options["method"] != "cka":
        assert list(result.settings["ways"].values()) == WAYS[limit]
        if limit in ("all", "two layers"):
            assert passes_in(seen) == 4 * EXAMPLES * (1 if limit == "all" else 2)
    elif limit == "all":
        assert set(result.settings["ways"].values()) == {"lockstep, 1 pass"}
    if options["method"] == "cca":
        assert result.ranks.tolist() == [WIDTHS, [width + 2 for width in WIDTHS], [4] * 4]
    if options["method"] != "pwcca":
        assert torch.equal(result.distance, result.distance.mT)
    elif name == "pwcca":  # where the numbers of units are the same, the row weighs
        assert result.distance[0, 0, 1] == result.distance[0, 1, 0]
        assert abs(result.distance[0, 0, 2] - result.distance[0, 2, 0]) > 1e-6
    assert result.distance.diagonal(dim1=1, dim2=2).abs().max() == 0


@pytest.mark.parametrize("limit", ["all", "moments"])
@pytest.mark.parametrize("positions", ["each", "resample"])
def test_positions(positions, limit, networks, limited):
    limited({"all": 1e9, "moments": 10_000}[limit])
    inputs = images(20)
    result = pairwise_similarity(networks, ["0", "4"], inputs, positions=positions, batch_size=6)
    table = expected(networks, ["0", "4"], inputs, lambda a, b: cca(a, b).mean(), rows=each)
    assert torch.allclose(result.distance, table, rtol=0, atol=SAME)
    some = pairwise_similarity(networks, ["0"], inputs, positions=positions, subsample=9, batch_size=6)
    again = pairwise_similarity(networks, ["0"], inputs, positions=positions, subsample=9, batch_size=20)
    assert some.examples == 180
    assert torch.allclose(some.distance, again.distance, rtol=0, atol=1e-12)
    assert (some.distance[0] - table[0]).abs().max() > 1e-3


def test_float32_is_held_as_it_is(networks):
    networks = [network.float() for network in networks]
    inputs = images().float()
    result = pairwise_similarity(networks, ["6"], inputs)
    table = expected(networks, ["6"], inputs, lambda a, b: cca(a, b).mean())
    assert torch.allclose(result.distance, table, rtol=0, atol=1e-6)


def test_names_and_groups(networks):
    models = dict(zip("abcd", networks, strict=True))
    groups = {"d": "wide", "c": "wide", "b": "narrow", "a": "narrow"}
    result = pairwise_similarity(models, "4", Batches(images()), groups=groups)
    assert (result.names, result.groups) == (("a", "b", "c", "d"), ("narrow", "narrow", "wide", "wide"))
    listed = pairwise_similarity(nn.ModuleList(networks).eval(), "4", images(), groups=[0, 0, 1, 1])
    assert torch.equal(result.distance, listed.distance)
    assert listed.groups == (0, 0, 1, 1)


@pytest.mark.parametrize("limit", ["all", "moments"])
def test_a_stopped_call_goes_on(limit, networks, limited, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(passes, "SHARE", math.inf)
    limited(LIMITS[limit])
    inputs, store = images(), tmp_path / "work.sdk"
    options = {"layers": ["1", "4"], "method": "pwcca"}
    options |= {"batch_size": 16}
    unbroken = pairwise_similarity(networks, data=Examples(inputs), **options)
    for stop in (2 * 16, 5 * 16):
        with pytest.raises(StoppedError):
            pairwise_similarity(networks, data=Examples(inputs, stop), store=store, **options)
    with counted() as seen:
        found = pairwise_similarity(networks, data=Examples(inputs), store=store, **options)
    assert passes_in(seen) == 4 * (EXAMPLES - 5 * 16)
    assert torch.equal(found.distance, unbroken.distance)
    with counted() as seen:
        again = pairwise_similarity(networks, data=inputs, store=store, **{**options, "batch_size": 50})
    assert passes_in(seen) == 0
    assert torch.equal(again.distance, unbroken.distance)
    assert (again.settings, again.ranks.tolist()) == (unbroken.settings, unbroken.ranks.tolist())


def test_what_is_kept_of_other_weights_is_not_taken(networks, tmp_path):
    inputs, store = images(), tmp_path / "work.sdk"
    first = pairwise_similarity(networks, "4", inputs, store=store)
    networks[2][0].weight.data[0] += 1
    second = pairwise_similarity(networks, "4", inputs, store=store)
    assert not torch.equal(first.distance, second.distance)
    assert torch.equal(second.distance, pairwise_similarity(networks, "4", inputs).distance)


def test_a_warning_comes_again_from_the_store(networks, tmp_path):
    for _ in range(2):
        with pytest.warns(SdkernelsWarning, match="20 examples are few for .* And so for 4 of the other pairs"):
            pairwise_similarity(networks, "1", images(20), store=tmp_path / "work.sdk")


def test_nothing_stays_behind_an_error(networks):
    with pytest.raises(StoppedError):
        pairwise_similarity(networks, "1", Batches(images(), stop=0))
    with pytest.raises(StoppedError):
        pairwise_similarity(networks, "1", Batches(images(), stop=3))
    assert [hooks_of(network) for network in networks] == [0] * 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": convolutions(3, 0)}, TypeError, "models is a Sequential; give a sequence"),
        ({"models": [convolutions(3, 0)]}, ValueError, "models holds 1; give at least two"),
        ({"models": {1: convolutions(3, 0), 2: convolutions(3, 1)}}, TypeError, "models has the name 1"),
        ({"models": [convolutions(3, 0), "a"]}, TypeError, "1 is a str; give a torch.nn.Module"),
        (
            {"models": {"x": convolutions(3, 0), "y": convolutions(3, 1)[:1].eval()}},
            ValueError,
            "y: the model has no layer '4'",
        ),
        (
            {"models": {"x": convolutions(3, 0), "y": convolutions(3, 1).train()}},
            ValueError,
            "y: the model is in train",
        ),
        ({"groups": {"0": 1}}, ValueError, r"groups is a mapping of \['0'\]; it must name the models \['0', '1'\]"),
        ({"groups": [1]}, ValueError, "groups are 1 labels for 2 networks"),
        (
            {"memory_fraction": 1e-12},
            ValueError,
            r"moments of layer '4' of 0 \[N, 5\] and layer '4' of 1 .* larger memory",
        ),
        ({"solver": "svd"}, ValueError, "pairwise_similarity holds none"),
        ({"positions": "some"}, ValueError, "positions='some'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_slips_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        pairwise_similarity(
            **{"models": [convolutions(3, 0), convolutions(3, 1)], "layers": "4", "data": images(), **change}
        )


@pytest.mark.parametrize("lockstep", [False, True])
def test_activations_that_are_not_finite_are_told(lockstep, networks, limited):
    limited(LIMITS["moments" if lockstep else "all"])
    networks[2][3].bias.data[1] = math.nan
    with pytest.raises(ValueError, match=r"layer '4' of 2 \[\d+, 7\]: row 0, column 1 is nan"):
        pairwise_similarity(networks, "4", images())


class Changing:
    """The first two times, when it is looked at and counted, 50 examples; then others."""

    def __init__(self, then: int) -> None:
        self.then, self.times = then, 0

    def __iter__(self):
        self.times += 1
        return iter(images(50 if self.times < 3 else self.then).split(30))


def test_data_that_gives_more_than_it_said_is_told(networks):
    with pytest.raises(ValueError, match="data says that it has 50 examples, and gave 60"):
        pairwise_similarity(networks, "1", Changing(60))


def test_data_that_gives_less_than_it_said_is_told(networks):
    with pytest.raises(ValueError, match="data gave 50 examples when it was read first, and 40 when it was read again"):
        pairwise_similarity(networks, "1", Changing(40))


@pytest.mark.parametrize("limit", [70_000, 5_000, 3_000, 1_300, 1_200])
@pytest.mark.parametrize("method", ["cca", "pwcca"])
def test_each_pair_is_compared_once(method, limit, networks):
    how, positions = Method(method=method), Positions()
    with together({str(i): one for i, one in enumerate(networks)}, [["1", "4"]] * 4, images(), Way()) as all_of_them:
        planned = plan_passes(all_of_them, how, positions, EXAMPLES, limit)
    pairs = [(a.site, a.network, b.network) for one in planned for a, b in one.pairs]
    ordered = [(i, j) for i in range(4) for j in range(4) if i < j or (i != j and method == "pwcca")]
    assert sorted(pairs) == sorted((site, *both) for site in (0, 1) for both in ordered)


# Given matrices


def matrices(count: int = 400) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(count, 4, generator=generator).double()
    made = [
        common @ torch.randn(4, units, generator=generator).double()
        + torch.randn(count, units, generator=generator).double()
        for units in (6, 3, 6, 9)
    ]
    made[3][:, 2] = 5.0  # dead
    made[0][:, 5] = made[0][:, 0]  # twice
    return [x * 3 + 100 for x in made]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_matrices(name, threads, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        options, similarity = SIMILARITIES[name]
        given = matrices()
        found = similarities_of(given, Method(**options))
        for i, a in enumerate(given):
            for j, b in enumerate(given):
                one = 0 if i == j else 1 - similarity(a, b)
                assert float(found[i, j]) == pytest.approx(one, abs=SAME)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["cca", "pwcca"])
def test_many_float32_numbers_are_multiplied_in_float32(name):
    """To 1e-8, also of units of other scales; of a layer and itself, where correlations end at 1, to 1e-7. But for
    PWCCA, whose weights would be off by more."""
    options, similarity = SIMILARITIES[name]
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(ROUNDED_FROM // 64, 96, generator=generator)
    first = (common @ torch.randn(96, 64, generator=generator)).relu()
    second = (common @ torch.randn(96, 64, generator=generator)).relu() * torch.logspace(-3, 3, 64) + 10
    given = [first, second, first.clone()]
    found = similarities_of(given, Method(**options))
    exact = similarities_of([x.double() for x in given], Method(**options))
    expected = 1 - similarity(first, second)
    assert float(exact[0, 1]) == pytest.approx(expected, abs=1e-12)
    assert float(found[0, 1]) == pytest.approx(expected, abs=1e-8)
    assert (found[0, 1] == exact[0, 1]) == (name == "pwcca")
    assert float(found[0, 2]) == pytest.approx(0, abs=1e-7)


def test_ill_conditioned_matrices_are_whitened_by_svd():
    generator = np.random.default_rng(0)
    scales = np.logspace(0, -7, 6)
    bases = [np.linalg.qr(generator.standard_normal((6, 6)))[0] for _ in range(2)]
    common = generator.standard_normal((500, 6))
    a, b = common @ (scales[:, None] * bases[0]), (common + generator.standard_normal((500, 6))) @ bases[1]
    found = similarities_of([torch.from_numpy(a), torch.from_numpy(b)], Method(tolerance=1e-20))
    truth = np.linalg.svd(np.linalg.qr(common - common.mean(0))[0].T @ np.linalg.qr(b - b.mean(0))[0], compute_uv=False)
    assert float(found[0, 1]) == pytest.approx(1 - truth.mean(), abs=1e-7)


def test_matrices_of_other_examples_are_refused():
    with pytest.raises(ValueError, match=r"y \[9, 2\] must be \[8, C\]: .* examples as those of x"):
        similarities_of([torch.zeros(8, 2), torch.zeros(9, 2)], Method(), names=["x", "y"])


def test_threads_keep_the_order_and_raise():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cpu = torch.device("cpu")
        assert list(in_threads(lambda x: x * x, [3, 1, 2], cpu)) == [9, 1, 4]
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda x: 1 / x, [1, 0, 2], cpu)
        with ThreadPoolExecutor(1) as pool:  # a thread that is new takes what was set last
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
