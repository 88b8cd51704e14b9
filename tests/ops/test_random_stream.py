"""random_stream: known answers, the same bits everywhere, one value for one purpose however the work is split."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdkernels.ops import random_stream
from sdkernels.ops.random_stream import IMPLEMENTATIONS, KINDS, normals_of, philox
from tests.ops import philox as definition
from tests.ops.backends import CORE, Backend, big, cpu_levels, drawn
from tests.ops.tensors import threads
from tests.ops.tolerances import NORMAL, same_bits

OP = "random_stream"

LAST = 2**32 - 1
SEEDS = [0, 1, -1, 2**63 - 1, 0x299F31D0_A4093822]
IDS = [0, 1, 0x13198A2E, LAST]

IDS_LIST = st.lists(st.integers(0, LAST), min_size=1, max_size=5)


def drawn_at(backend: Backend, kind: str, seed: int, configurations, examples, elements: int, site: int = 0) -> Tensor:
    ids = (torch.tensor(i, device=backend.device) for i in (configurations, examples))
    return random_stream(kind, seed, *ids, elements, site=site)


def specified(kind: str, seed: int, configurations, examples, elements: int, site: int) -> Tensor:
    """The reference's bits, whatever the backend."""
    wrapped = seed - 2**64 if seed >= 2**63 else seed
    ids = (torch.tensor(i) for i in (examples, configurations, wrapped))
    return IMPLEMENTATIONS["reference"](*ids, KINDS.index(kind), elements, site)


@pytest.mark.parametrize(("counter", "key", "words"), definition.KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(counter, key, words):
    counter, key = np.array(counter, np.uint64), tuple(key)
    assert definition.philox4x32(counter, key).tolist() == list(words)
    seed = torch.tensor(key[0] | key[1] << 32, dtype=torch.uint64).view(torch.int64)
    assert [int(w) for w in philox(tuple(torch.tensor(int(c)) for c in counter), seed)] == list(words)


def test_the_first_known_answer_comes_out(backend):
    assert drawn_at(backend, "bits", 0, [0], [0], 4).flatten().tolist() == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]


@pytest.mark.parametrize("seed", SEEDS, ids=hex)
@pytest.mark.parametrize("site", [0, LAST])
def test_words_are_philox_s(backend, seed, site):
    expected = definition.words(seed % 2**64, IDS, IDS, np.arange(11), site)
    result = drawn_at(backend, "bits", seed, IDS, IDS, 11, site)
    assert result.dtype == torch.int64
    assert np.array_equal(result.cpu().numpy(), expected.astype(np.int64))


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 5, 1023, 1024, 1025, pytest.param(70_001, marks=big)])
def test_elements_are_counted_by_four(backend, elements):
    expected = definition.words(5, [3], [7, 9], np.arange(elements), 2)
    assert np.array_equal(drawn_at(backend, "bits", 5, [3], [7, 9], elements, 2).cpu().numpy(), expected)


def test_far_quads_are_philox_s():
    """The reference's arithmetic at elements that no test could allocate."""
    elements = np.array([4 * 2**31 - 4, 4 * 2**31, 2**34 - 4])
    quads = torch.tensor(elements // 4)
    found = philox((quads, torch.tensor(8), torch.tensor(6), torch.tensor(4)), torch.tensor(2))
    every = (elements[:, None] + np.arange(4)).flatten()
    assert np.array_equal(torch.stack(found, -1).flatten(), definition.words(2, [6], [8], every, 4).flatten())


def test_uniforms_are_24_bits_of_the_words(backend):
    result = drawn_at(backend, "uniform", 3, IDS, IDS, 41, 6)
    words = definition.words(3, IDS, IDS, np.arange(41), 6)
    assert result.dtype == torch.float32
    assert np.array_equal(result.cpu().double().numpy(), (words >> np.uint64(8)).astype(np.float64) / 2**24)
    assert result.min() >= 0
    assert result.max() < 1


def test_normals_are_box_muller_s(backend):
    result = drawn_at(backend, "normal", 3, IDS, IDS, 1000, 6)
    expected = definition.box_muller(definition.words(3, IDS, IDS, np.arange(1000), 6))
    assert result.dtype == torch.float32
    assert np.abs(result.cpu().double().numpy() - expected).max() <= NORMAL


def test_normals_of_the_extreme_words_are_box_muller_s():
    """All corners: u = 0 and the greatest, the ends of each quarter turn, where the mantissa is split."""
    steps = [0, 1, 2, 3, 2**21 - 1, 2**21, 2**21 + 1, 2**22, 3 * 2**21, 2**23, 3 * 2**22, 4913933, 4913934, 2**24 - 1]
    words = np.array([v << 8 | low for v in steps for low in (0, 255)], np.uint64)
    pairs = np.stack(np.meshgrid(words, words), -1).reshape(-1, 2)
    first, second = normals_of(*torch.tensor(pairs.astype(np.int64)).unbind(1))
    found = torch.stack([first, second], 1).double().numpy()
    assert np.abs(found - definition.box_muller(pairs)).max() <= NORMAL
    assert np.isclose(np.abs(found).max(), np.sqrt(48 * np.log(2)), rtol=1e-7), "the greatest normal there is"


def test_every_radius_and_every_angle_is_as_exact():
    """Each of the 2**24 first words with one angle, each of the second with one radius; every seventh is enough."""
    every = torch.arange(0, 2**24, 7) << 8
    one = torch.tensor(2**31)
    for r0, r1 in ((every, torch.zeros_like(one)), (one, every)):
        first, second = normals_of(*torch.broadcast_tensors(r0, r1))
        pairs = torch.stack(torch.broadcast_tensors(r0, r1), -1).numpy().astype(np.uint64)
        error = torch.stack([first, second], -1).double().numpy() - definition.box_muller(pairs)
        assert np.abs(error).max() <= NORMAL


def test_normals_keep_the_bits_that_they_had(backend):
    """Pinned: if these change, so does every noisy result that was ever published."""
    normals = drawn_at(backend, "normal", 1234567890123, [5], [10**9], 8, 42).flatten().cpu()
    bits = [f"{word & LAST:08x}" for word in normals.view(torch.int32).tolist()]
    assert bits[:4] == ["3f3cc395", "3ef87a14", "bf12acd0", "bca0cea5"]
    assert bits[4:] == ["be612b77", "bedae5db", "3ef8d59e", "bf05a9d6"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elements", [1, 7, 513, pytest.param(40_000, marks=big)])
def test_every_backend_gives_the_reference_s_bits(backend, kind, elements):
    expected = specified(kind, 99, IDS, IDS[:3], elements, 17)
    assert same_bits(drawn_at(backend, kind, 99, IDS, IDS[:3], elements, 17), expected)


def test_this_processor_has_a_level():
    levels = cpu_levels()
    assert levels[0] == 1
    assert CORE.cpu_level() == levels[-1], "the highest is the default"
    assert not CORE.use_cpu_level(2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_gives_the_same_bits(cpu_level, kind):
    expected = specified(kind, 2**40, IDS, [1, 2, 3], 50_001, 1)
    assert same_bits(random_stream(kind, 2**40, torch.tensor(IDS), torch.tensor([1, 2, 3]), 50_001, site=1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_matter(native, kind):
    expected = specified(kind, 4, range(3), range(5), 4001, 0)
    for count in (1, 2, 5):
        with threads(count):
            assert same_bits(random_stream(kind, 4, torch.arange(3), torch.arange(5), 4001), expected)


@drawn(60)
@given(IDS_LIST, IDS_LIST, st.integers(1, 40), st.integers(-(2**63), 2**64), st.integers(0, LAST), st.data())
def test_any_split_of_the_work_draws_the_same(backend, configurations, examples, elements, seed, site, data):
    kind = data.draw(st.sampled_from(KINDS))
    whole = drawn_at(backend, kind, seed, configurations, examples, elements, site)
    assert same_bits(whole, specified(kind, seed % 2**64, configurations, examples, elements, site))
    k, n = data.draw(st.integers(0, len(configurations) - 1)), data.draw(st.integers(0, len(examples) - 1))
    shorter = data.draw(st.integers(1, elements))
    for some in (slice(0, k), slice(k, None)):
        for others in (slice(0, n), slice(n, None)):
            if configurations[some] and examples[others]:
                part = drawn_at(backend, kind, seed, configurations[some], examples[others], shorter, site)
                assert same_bits(part, whole[some, others, :shorter])


def test_a_seed_may_be_an_int_or_a_tensor(backend):
    ids = torch.tensor([1], device=backend.device)
    for number in SEEDS:
        seed = torch.tensor(number, dtype=torch.int64)
        assert same_bits(random_stream("bits", seed, ids, ids, 5), random_stream("bits", number, ids, ids, 5))
    assert same_bits(random_stream("bits", 2**64 - 1, ids, ids, 5), random_stream("bits", -1, ids, ids, 5))


def test_strided_ids_are_read_right(backend):
    ids = torch.arange(12, device=backend.device)
    result = random_stream("bits", 1, ids[::3], ids[1::2], 5)
    assert same_bits(result, specified("bits", 1, [0, 3, 6, 9], [1, 3, 5, 7, 9, 11], 5, 0))


def test_ids_seed_and_site_matter_each(backend):
    """Four seeds, two of each id, eight elements: no word comes twice."""
    seen = set()
    for seed in (0, 1, 2**32, 2**32 + 1):
        for site in (0, 1):
            seen.update(drawn_at(backend, "bits", seed, [0, 1], [0, 1], 8, site).flatten().tolist())
    assert len(seen) == 4 * 2 * 2 * 2 * 8


class TestRefusals:
    ids = torch.tensor([0, 1])

    @pytest.mark.parametrize(
        ("changes", "error", "says"),
        [
            ({"kind": "gaussian"}, ValueError, "kind='gaussian'; it is one of bits, uniform, normal"),
            ({"configurations": ids.int()}, TypeError, "configurations is torch.int32; ids are int64"),
            ({"examples": ids.double()}, TypeError, "examples is torch.float64"),
            ({"examples": ids[:0]}, ValueError, r"examples \[0\] must be a list of ids, and not an empty one"),
            ({"configurations": ids[None]}, ValueError, r"configurations \[1, 2\] must be a list"),
            ({"examples": ids - 1}, ValueError, r"examples must lie in 0 to 2\*\*32 - 1; got -1 to 0"),
            ({"configurations": ids + LAST}, ValueError, "configurations must lie in .*; got 4294967295 to 4294967296"),
            ({"seed": torch.tensor([1])}, ValueError, r"seed is an int64 tensor \[\] .*; got torch.int64 \[1\]"),
            ({"seed": torch.tensor(1.0)}, ValueError, "seed is an int64 tensor .*; got torch.float32"),
            ({"elements": 0}, ValueError, "elements=0; it must lie in 1 to 2"),
            ({"elements": 2**34 + 1}, ValueError, "elements=17179869185"),
            ({"site": -1}, ValueError, "site=-1; it must lie in 0 to 2"),
            ({"site": 2**32}, ValueError, "site=4294967296"),
        ],
        ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
    )
    def test_is_refused(self, changes, error, says):
        case = {"kind": "normal", "seed": 0, "configurations": self.ids, "examples": self.ids, "elements": 4}
        with pytest.raises(error, match=f"random_stream: {says}"):
            random_stream(**{**case, **changes})

    def test_the_op_itself_checks(self):
        with pytest.raises(ValueError, match="kind=3; it is 0 to 2"):
            torch.ops.sdkernels.random_stream(self.ids, self.ids, torch.tensor(0), 3, 4, 0)
