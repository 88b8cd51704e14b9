"""Memory runs out: the right result with fewer examples at once, or an error that says what takes less."""

import sys
from functools import cache

import pytest
import torch

import sdkernels as sd
from tests.engine.compare import assert_same, tensors_of
from tests.engine.stored import examples
from tests.faults.called import CALLS, LAYERS, Net, call
from tests.faults.failing import Failing, no_memory
from tests.faults.held import left_as_it_was
from tests.faults.programs import said_by

pytestmark = pytest.mark.filterwarnings("ignore::sdkernels.SdkernelsWarning")  # of curves that change nothing


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    return said_by("limited", tmp_path_factory.mktemp("limited"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is heeded by Linux alone")
@pytest.mark.parametrize("name", ["auto", "loop", "statistics", "taylor"])
def test_a_process_that_may_have_no_more(name, limited):
    found = list(limited[name].values())
    assert found[-1] == "right"
    for end in found:
        assert end == "right" or (end.startswith("Exhausted: memory ran out") and "batch_size= takes less" in end), (
            found
        )
    if name in ("auto", "loop"):
        assert found[1:] == ["right"] * 3, "smaller tiles, as they were too large"


INJECTED = [name for name in CALLS if name not in ("regularizer", "monitor", "similarity")]


DATA = examples()


@cache
def expected(name):
    return call(name, Net().eval(), DATA)


@pytest.mark.parametrize("name", INJECTED)
def test_no_memory_at_any_operation(name):
    """At twelve of them, from the first to the last."""
    model = Net().eval()
    with Failing() as all_of_them:
        call(name, model, DATA)
    right = 0
    for at in range(0, all_of_them.count, max(1, all_of_them.count // 12)):
        model = Net().eval()
        with left_as_it_was(model, f"operation {at}"):
            try:
                with Failing(at, no_memory()):
                    found = call(name, model, DATA)
            except MemoryError as error:
                assert "takes less" in str(error)  # noqa: PT017
                continue
            except torch.OutOfMemoryError:  # of a copy of the model, or the result itself: no batch is to blame
                assert name in ("units, bfloat16", "statistics")
                continue
        right += 1
        ours, theirs = tensors_of(found), tensors_of(expected(name))
        for field, tensor in theirs.items():
            torch.testing.assert_close(ours[field], tensor, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert right or name in ("statistics", "taylor"), "tiles are halved, and the work goes on"


@pytest.mark.parametrize("options", [{}, {"outcomes": True}, {"value": "class_mean"}], ids=str)
def test_a_hook_loop_goes_on_with_fewer_examples(options):
    model = Net().eval()
    way = {
        "layers": LAYERS,
        "data": examples(),
        "orders": 2,
        "points": 4,
        "method": "loop",
        "batch_size": 16,
        **options,
    }
    whole = sd.cumulative_ablation(model, **way)

    class Large(Net):
        """Finds no room for more than three examples, once it has seen the eight of the first look."""

        def forward(self, inputs):
            if len(inputs) > 3 and sys._getframe().f_back.f_back.f_back.f_code.co_name == "changed_logits":
                raise no_memory()
            return super().forward(inputs)

    model = Large().eval()
    with left_as_it_was(model):
        assert_same(sd.cumulative_ablation(model, **way), whole)


def test_a_hook_loop_that_has_no_room_for_one_example():
    class Large(Net):
        def forward(self, inputs):
            if sys._getframe().f_back.f_back.f_back.f_code.co_name == "changed_logits":
                raise RuntimeError("std::bad_alloc")
            return super().forward(inputs)

    model = Large().eval()
    with left_as_it_was(model), pytest.raises(MemoryError, match=r"memory ran out on one example .std::bad_alloc"):
        sd.unit_importance(model, LAYERS, examples(), method="loop")


def test_a_model_that_cannot_be_traced_for_want_of_memory_is_not_taken_for_slow():
    """It is an error, and no hook loop with a warning of another reason."""
    model = Net().eval()
    with Failing() as mode:
        call("units", model, DATA)
    for at in range(0, mode.count // 4, 3):
        try:
            with Failing(at, no_memory()):
                found = call("units", model, DATA)
        except MemoryError:
            continue
        assert "no graph" not in found.plan
