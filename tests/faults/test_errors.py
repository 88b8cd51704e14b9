"""A model, a metric or torch itself fails in the middle of a call: its error, or the right result; no trace of it."""

import pytest
import torch

import sdkernels as sd
from tests.engine.compare import tensors_of
from tests.engine.stored import examples
from tests.faults.called import CALLS, LAYERS, Net, call
from tests.faults.failing import Failing
from tests.faults.held import left_as_it_was

pytestmark = pytest.mark.filterwarnings("ignore::sdkernels.SdkernelsWarning")  # of a model that runs by hooks then

DATA = examples()
PLACES = 10  # of each call


class BrokenError(Exception):
    """Somebody else's."""


def assert_same(found, whole):
    for field, tensor in tensors_of(whole).items():
        torch.testing.assert_close(tensors_of(found)[field], tensor, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("error", [BrokenError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "regularizer"])
def test_an_operation_fails(name, error):
    """What fails while a graph is tried out may be taken for a model without one, which runs by hooks."""
    with Failing() as whole:
        expected = call(name, Net().train(name == "monitor"), DATA)
    raised = 0
    for at in range(0, whole.count, max(1, whole.count // PLACES)):
        model = Net().train(name == "monitor")
        with left_as_it_was(model, f"operation {at}"):
            try:
                with Failing(at, error("a fault")) as failing:
                    found = call(name, model, DATA)
            except (BrokenError, RuntimeError, ValueError, KeyboardInterrupt) as what:
                assert "a fault" in str(what)  # noqa: PT017
                raised += 1
                continue
        assert error is not KeyboardInterrupt or failing.count <= at, "what is measured once is not done again"
        assert_same(found, expected)
    assert raised > PLACES // 3


@pytest.mark.parametrize("error", [BrokenError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_a_metric_fails(method, error):
    """At every call of it."""
    count = 0

    def metric(logits, labels):
        nonlocal count
        count += 1
        if count == at:
            raise error("a fault")
        return logits[:, 0]

    at = 0
    way = {"layers": LAYERS, "data": DATA, "metrics": metric, "method": method, "batch_size": 32}
    whole = sd.unit_importance(Net().eval(), **way)
    for at in range(1, count + 1, 3):  # noqa: B007 - the metric reads it
        count, model = 0, Net().eval()
        with left_as_it_was(model), pytest.raises(error, match="a fault"):
            sd.unit_importance(model, **way)
    count, at = 0, 0
    assert_same(sd.unit_importance(Net().eval(), **way), whole)


@pytest.mark.parametrize("error", [BrokenError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["curves, loop", "statistics", "taylor", "curves, means", "similarity", "monitor"])
def test_a_model_fails_in_its_forward_pass(name, error):
    """At its n-th call, for each n up to twenty."""

    class Breaks(Net):
        calls, at = 0, None

        def forward(self, inputs):
            hidden = self.relu(self.norm(self.first(inputs)))
            Breaks.calls += 1
            if Breaks.calls - 1 == Breaks.at:
                raise error("a fault")
            return self.out(self.relu(self.second(self.drop(hidden))))

    call(name, Breaks().train(name == "monitor"), DATA)
    count = Breaks.calls
    for at in range(min(count, 20)):
        Breaks.calls, Breaks.at = 0, at
        model = Breaks().train(name == "monitor")
        with left_as_it_was(model, f"call {at}"):
            try:
                call(name, model, DATA)
            except (BrokenError, RuntimeError, ValueError, KeyboardInterrupt) as what:
                assert "a fault" in str(what)  # noqa: PT017
                continue
        assert name in ("monitor", "curves, means"), "what is tried out for a graph may fail, and runs by hooks"
