"""Data that fails or changes while it is read: an error that says so, or the right numbers; the model is as it was."""

import re
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sdkernels as sd
from tests.engine.compare import tensors_of
from tests.engine.stored import examples
from tests.faults.called import BATCH_SIZE, CALLS, LAYERS, Net, call
from tests.faults.held import left_as_it_was

pytestmark = pytest.mark.filterwarnings("ignore::sdkernels.SdkernelsWarning")  # of curves that change nothing

# All but the one that reads no data, and those that read it in an order of their own.
READS = [name for name in CALLS if name not in ("regularizer", "curves, resampled", "curves, sampled")]
TWICE = ["curves, means", "noise"]  # those that pass over it more than once


class Passes:
    """Batches, other ones each time that they are read; the first pass is for a look at the first batch."""

    def __init__(self, *passes):
        self.passes, self.count = passes, 0

    def __iter__(self):
        chosen = self.passes[min(self.count, len(self.passes) - 1)]
        self.count += 1
        return (batch() if callable(batch) else batch for batch in chosen)


def batches(inputs=None, labels=None, size=BATCH_SIZE):
    if inputs is None:
        inputs, labels = examples()
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def network(name):
    return Net().train(name == "monitor")


@cache
def expected(name):
    return call(name, network(name))


def numbers(result):
    """All tensors of a result."""
    return {"": result} if isinstance(result, torch.Tensor) else tensors_of(getattr(result, "curve", result))


def assert_same(found, whole):
    ours, theirs = numbers(found), numbers(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-9, equal_nan=True)


# What is as good as other batches


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("sizes", [[16, 3, 16, 26], [1, 60], [16, 0, 45]], ids=["a short one", "two", "an empty one"])
def test_batches_of_any_size(sizes, name):
    inputs, labels = examples()
    parts = Passes([*zip(inputs.split(sizes), labels.split(sizes), strict=True)])
    assert_same(call(name, network(name), parts), expected(name))


# What fails


class BrokenError(Exception):
    """Data's own."""


@pytest.mark.parametrize("name", READS)
def test_a_loader_that_raises(name):
    """At every batch of every pass."""

    def broken():
        raise BrokenError

    passes, model = Passes(batches()), network(name)
    call(name, model, passes)
    for failing in range(passes.count):
        for at in (0, 2, 3):
            parts = batches()
            parts[at] = broken
            data, model = Passes(*[batches()] * failing, parts), network(name)
            with left_as_it_was(model, f"batch {at} of pass {failing}"):
                try:
                    call(name, model, data)
                except BrokenError:
                    continue
                assert data.count == failing + 1 or at  # only the first batch of that pass was asked for


@pytest.mark.parametrize("name", READS)
def test_a_loader_that_raises_when_it_is_begun(name):
    class Never:
        def __iter__(self):
            raise BrokenError

    model = network(name)
    with left_as_it_was(model), pytest.raises(BrokenError):
        call(name, model, Never())


WRONG = {
    "another type": (
        lambda x, y: (x.float(), y),
        r"inputs of torch.float32 at example 32, and the first ones are ",
    ),
    "another width": (
        lambda x, y: (x[:, :3], y),
        r"inputs \[N, 3\] at example 32, and \[N, 4\] first|torch.float64 \[16, 3\]",
    ),
    "no numbers": (lambda x, y: (x.to("meta"), y), "meta tensor"),
    "no pair": (lambda x, y: None, "batch of type NoneType"),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("change", WRONG)
def test_a_batch_that_is_something_else(change, name):
    how, says = WRONG[change]
    parts, model = batches(), network(name)
    parts[2] = how(*parts[2])
    if change == "another type" and name == "units, bfloat16":
        assert_same(call(name, model, Passes(parts)), expected(name))  # whatever it is, it is cast
        return
    with left_as_it_was(model), pytest.raises((ValueError, TypeError), match=says):
        call(name, model, Passes(parts))


@pytest.mark.parametrize("name", READS)
def test_no_batches(name):
    model = network(name)
    with left_as_it_was(model), pytest.raises(ValueError, match="data is empty: it gave no example"):
        call(name, model, Passes([]))


# What changes from pass to pass


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("more", [-1, 1], ids=["fewer", "more"])
def test_another_number_of_examples_in_the_second_pass(more, name):
    inputs, labels = examples(80)
    full, other = (batches(inputs[:n], labels[:n]) for n in (61, 61 + 16 * more))
    for first in (1, 2):  # the first whole pass, after a look or two
        model = Net().eval()
        with left_as_it_was(model):
            try:
                call(name, model, Passes(*[full] * (first + 1), other))
            except ValueError as error:
                assert f"61 examples when it was read first, and {61 + 16 * more}" in str(error)  # noqa: PT017
                break
    else:
        pytest.fail("no error at all")


def test_an_iterator_in_an_iterables_clothes():
    class Once:
        def __init__(self):
            self.parts = iter(batches())

        def __iter__(self):
            return self.parts

    for name in READS:
        with pytest.raises(ValueError, match="gives the same iterator again, which goes on where it was"):
            call(name, network(name), Once())


@pytest.fixture
def shuffled():
    def make():
        return DataLoader(TensorDataset(*examples()), BATCH_SIZE, shuffle=True, generator=torch.Generator())

    return make


ANY_ORDER = ["curves", "curves, means", "curves, sampled", "units", "pairs", "taylor", "statistics"]


@pytest.mark.parametrize("name", ANY_ORDER)
def test_another_order_in_every_pass_changes_nothing(name, shuffled):
    """But where an example's place counts: outcomes stand in the order in which they were read."""
    found, whole = (numbers(result) for result in (call(name, Net().eval(), shuffled()), expected(name)))
    for own in found.keys() - {"outcomes"}:
        torch.testing.assert_close(found[own], whole[own], rtol=1e-9, atol=1e-9, equal_nan=True)


def test_donors_are_others_whatever_the_order(shuffled):
    """Read as the data set has them, so that no example is its own donor, nor a draw hangs on the loader's order."""
    assert_same(call("curves, resampled", Net().eval(), shuffled()), expected("curves, resampled"))


# Worker processes


class Broken(Dataset):
    """One of its examples cannot be read."""

    def __len__(self):
        return 61

    def __getitem__(self, index):
        if index == 40:
            raise BrokenError
        return torch.ones(4, dtype=torch.float64), 0


def test_a_loaders_worker_raises():
    model = Net().eval()
    with left_as_it_was(model), pytest.raises(BrokenError):
        sd.unit_importance(model, LAYERS, DataLoader(Broken(), BATCH_SIZE, num_workers=1))


# In a process of its own, and without torch's handler, which raises wherever that is when it hears of a child's end.
DEADLY = """
import os, signal, torch
from torch.utils.data import DataLoader, Dataset
import sdkernels as sd
from tests.faults.called import BATCH_SIZE, LAYERS, Net
from tests.faults.held import left_as_it_was
from tests.engine.stored import examples

torch.utils.data._utils.signal_handling._SIGCHLD_handler_set = True

class Deadly(Dataset):
    at, owner = 40, os.getpid()
    def __len__(self):
        return 61
    def __getitem__(self, index):
        if index == self.at and os.getpid() != self.owner:
            os.kill(os.getpid(), signal.SIGKILL)
        inputs, labels = examples()
        return inputs[index], labels[index]

def call():
    return sd.unit_importance(model, LAYERS, DataLoader(data, BATCH_SIZE, num_workers=1)).correct

model, data, said = Net().eval(), Deadly(), []
with left_as_it_was(model):
    try:
        call()
    except (RuntimeError, OSError) as error:  # what torch has in its hands by then
        said.append(str(error))
data.at = None
found = call()
print(torch.equal(found, sd.unit_importance(model, LAYERS, examples()).correct), said)
"""


def test_a_loaders_worker_is_killed():
    command = [sys.executable, "-W", "ignore", "-c", DEADLY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.match(
        r"True \['(DataLoader worker .* exited unexpectedly|\[Errno \d+\] Connection reset)", done.stdout
    ), done
