"""Ctrl-C at moments all over every way of running a model: model and process are left as they were."""

import inspect
import random
from functools import cache

import pytest

from sdkernels import SelectivityRegularizer
from sdkernels.engine.graph import state_restored
from tests.faults.called import CALLS, Net, call
from tests.faults.held import left_as_it_was
from tests.faults.interrupted import interrupt, lines_of

pytestmark = pytest.mark.filterwarnings("ignore::sdkernels.SdkernelsWarning")  # of curves that change nothing

MOMENTS, ALL = 12, 250  # of each call


def network(name):
    return Net().train(name == "monitor")


@cache
def lines(name):
    """The second time, as the first one may import something."""
    call(name, network(name))
    return lines_of(lambda: call(name, network(name)))


def stop_at(name, moments):
    """The call is interrupted at each of these; where nothing is left of it the next one gives what it gave before."""
    for at in moments:
        model = network(name)
        where = lines(name)[at]
        with left_as_it_was(model, f"Ctrl-C before line {where[1]} of {where[0]}"), pytest.raises(KeyboardInterrupt):
            interrupt(lambda model=model: call(name, model), at)


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_at_random_moments(name):
    stop_at(name, random.Random(name).sample(range(len(lines(name))), MOMENTS))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CALLS if name != "regularizer"])  # of which all lines are below
def test_ctrl_c_at_many_lines(name):
    """Each line's first time and its last, of as many as are tried."""
    seen = lines(name)
    ends = [*{line: at for at, line in enumerate(seen)}.values()]
    ends += {line: len(seen) - 1 - at for at, line in enumerate(reversed(seen))}.values()
    stop_at(name, random.Random(name).sample(sorted(set(ends)), min(ALL, len(set(ends)))))


# Where hooks are registered and taken out, which a random moment seldom is.
HOOKING = ("engine/loop.py", "engine/sites.py", "analysis/subject.py", "analysis/preserve.py")


@pytest.mark.parametrize("name", ["curves, loop", "statistics", "taylor", "monitor"])
def test_ctrl_c_where_hooks_come_and_go(name):
    last = {line: at for at, line in enumerate(lines(name)) if line[0] in HOOKING}
    stop_at(name, last.values())


def test_ctrl_c_while_a_regulariser_comes_and_goes():
    """But for the moment in which Python enters its __exit__, where close() has to be called again."""
    parts: set[tuple[str, int]] = set()
    for function in (SelectivityRegularizer._attach, SelectivityRegularizer._detach):
        source, first = inspect.getsourcelines(function)
        parts |= {("analysis/regularizer.py", first + line) for line in range(len(source))}
    found = [at for at, line in enumerate(lines("regularizer")) if line in parts]
    assert len(found) > 10
    stop_at("regularizer", found)


@pytest.mark.parametrize("name", ["curves", "noise"])
def test_ctrl_c_while_a_models_attributes_are_put_back(name):
    """Each of them is empty for a moment."""
    source, first = inspect.getsourcelines(state_restored)
    parts = {("engine/graph.py", first + line) for line in range(len(source))}
    found: dict[tuple[str, int], int] = {}
    for at, line in enumerate(lines(name)):
        if line in parts:
            found.setdefault(line, at)  # the first time, which is of the attributes of the model itself
    assert len(found) > 5
    stop_at(name, found.values())
