"""The same call, however its model, layers and data are laid out: the same answer, or an error that says what is wrong.

``SDKERNELS_FUZZ=10000 pytest tests/fuzz/test_forms.py`` tries that many; what is tried is the same each time.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, note, settings
from hypothesis import given as tried_with
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sdkernels as sd
from tests.engine.compare import assert_same_but_for_rounding, tensors_of
from tests.fuzz.bounds import within_bounds
from tests.fuzz.calls import CALLS, data, inputs, network

NUMBER = int(os.environ.get("SDKERNELS_FUZZ", "500")) // 2
SETTINGS: dict[str, Any] = {
    "max_examples": NUMBER,
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": (Phase.explicit, Phase.generate),  # cases are small as they are
}

NAMES = sorted(name for name, call in CALLS.items() if call.arguments.keys() >= {"model", "layers", "data"})
LABELLED = [name for name in NAMES if not name.startswith("similarity")]


class Batched:
    """Batches of these sizes, the last as often as it takes."""

    def __init__(self, inputs: Tensor, labels: Tensor, sizes: list[int]) -> None:
        rest = len(labels) - sum(sizes[:-1])
        sizes = sizes[:-1] + [sizes[-1]] * -(-rest // sizes[-1])
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        self.batches = [(inputs[a : a + n], labels[a : a + n]) for a, n in zip(starts, sizes, strict=True)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (batch for batch in self.batches if len(batch[1]))


# How a tensor may lie in memory, without any number changed.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t() if x.ndim == 2 else x,
    "every other": lambda x: torch.stack([x, x.flip(0)], 1)[:, 0],
    "a part of more": lambda x: torch.cat([x[:1], x, x[:1]])[1:-1],
    "a parameter": lambda x: nn.Parameter(x, requires_grad=False),
    "tracked": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    "inference": lambda x: _in_inference(x),
    "NumPy's": lambda x: torch.from_numpy(np.asarray(x.detach(), order="F")),
}

CONTAINERS: dict[str, Callable[[Tensor, Tensor, list[int]], Any]] = {
    "pair": lambda x, y, sizes: (x, y),
    "list": lambda x, y, sizes: [x, y],
    "data set": lambda x, y, sizes: TensorDataset(x.detach(), y),
    "loader": lambda x, y, sizes: DataLoader(TensorDataset(x.detach(), y), batch_size=sizes[0]),
    "batches": lambda x, y, sizes: Batched(x, y, sizes),
    "list of batches": lambda x, y, sizes: list(Batched(x, y, sizes)),
    "list of lists": lambda x, y, sizes: [list(batch) for batch in Batched(x, y, sizes)],
}

LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# How layers may be named, and models held.
LAYERS: dict[str, Callable[[nn.Module], Any]] = {
    "list": lambda model: ["1", "3"],
    "tuple": lambda model: ("1", "3"),
    "modules": lambda model: [model[1], model[3]],
    "mixed": lambda model: ["1", model[3]],
    "calls": lambda model: ["1@0", "3"],
}

MODELS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda model: model,
    "frozen": lambda model: model.requires_grad_(False),
    "transposed weights": lambda model: _with_weights(model, lambda w: w.t().contiguous().t()),
    "weights in one buffer": lambda model: _with_weights(model, lambda w: torch.cat([w, w])[: len(w)]),
    "with gradients": lambda model: _with_gradients(model),
    "of another class": lambda model: type("Own", (nn.Sequential,), {})(*model).eval(),
    "with a hook": lambda model: _with_a_hook(model),
    "shared": lambda model: nn.Sequential(*model, nn.Identity(), nn.Identity()).eval(),
}

# What the call may not survive, but must say something of.
SPOILED: dict[str, Callable[[Tensor, Tensor], tuple[Any, Any]]] = {
    "half inputs": lambda x, y: (x.half(), y),
    "double inputs": lambda x, y: (x.double(), y),
    "integer inputs": lambda x, y: (x.long(), y),
    "boolean inputs": lambda x, y: (x > 0, y),
    "complex inputs": lambda x, y: (x.to(torch.complex64), y),
    "wide inputs": lambda x, y: (torch.cat([x, x], 1), y),
    "flat inputs": lambda x, y: (x[:, 0], y),
    "inputs with a nan": lambda x, y: (x.index_fill(0, torch.tensor([3]), torch.nan), y),
    "inputs that are huge": lambda x, y: (x * 1e30 * 1e8, y),
    "sparse inputs": lambda x, y: (x.to_sparse(), y),
    "meta inputs": lambda x, y: (x.to("meta"), y),
    "an array": lambda x, y: (x.numpy(), y),
    "boolean labels": lambda x, y: (x, y > 0),
    "float labels": lambda x, y: (x, y.float()),
    "one-hot labels": lambda x, y: (x, torch.eye(3)[y]),
    "labels in a column": lambda x, y: (x, y[:, None]),
    "labels from 1": lambda x, y: (x, y + 1),
    "negative labels": lambda x, y: (x, y - 1),
    "fewer labels": lambda x, y: (x, y[:-1]),
    "meta labels": lambda x, y: (x, y.to("meta")),
}

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def _in_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def _with_weights(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    for module in model:
        if isinstance(module, nn.Linear):
            module.weight.data = change(module.weight.data)
    return model


def _with_gradients(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def _with_a_hook(model: nn.Module) -> nn.Module:
    model[1].register_forward_hook(lambda _module, _args, _output: None)
    return model


def called(name: str, model: nn.Module, layers: Any, data: Any, **options: Any) -> Any:
    """One of the functions, with its own other arguments."""
    call = CALLS[name]
    others = {argument: make() for argument, make in call.arguments.items()}
    if name == "batch_norm_scale":
        model, layers = others["model"], others["layers"]
    if name.startswith("similarity"):
        model, layers = others["model"], others["layers"]
    return call.function(**others | {"model": model, "layers": layers, "data": data} | options)


def assert_same_answer(found: Any, expected: Any) -> None:
    """The same counts but for ambiguous ones, the same losses and other numbers but for rounding."""
    if hasattr(found, "sums"):
        assert_same_but_for_rounding(found, expected)
        return
    given, wanted = tensors_of(found), tensors_of(expected)
    assert set(given) == set(wanted)
    for name, tensor in given.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6, equal_nan=True)


@settings(**SETTINGS)
@tried_with(
    st.sampled_from(LABELLED),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(sorted(CONTAINERS)),
    st.sampled_from(LABELS),
    st.sampled_from(sorted(LAYERS)),
    st.sampled_from(sorted(MODELS)),
    sizes,
)
def test_however_it_is_laid_out(name, layout, container, labels_as, layers, held, batches):
    assume(held != "with a hook" or name not in ("weight_norm", "batch_norm_scale"))  # which refuse what may change it
    inputs, labels = data()
    inputs, labels = LAYOUTS[layout](inputs), LAYOUTS[layout](labels).to(labels_as)
    model = MODELS[held](network())
    note(f"{name} of {held} {type(model).__name__}")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with within_bounds():
        given = CONTAINERS[container](inputs, labels, batches)
        found = called(name, model, LAYERS[layers](model), given, **_batched(name, batches))
        oracle = {"method": "loop"} if hasattr(found, "sums") else {}
        expected = called(name, network(), ["1", "3"], data(), **oracle)
    assert_same_answer(found, expected)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert sum(len(module._forward_hooks) for module in model.modules()) == (held == "with a hook")


@settings(**SETTINGS)
@tried_with(st.sampled_from(LABELLED), st.sampled_from(sorted(SPOILED)), st.sampled_from(sorted(CONTAINERS)), sizes)
def test_what_is_spoiled(name, spoiled, container, batches):
    # Torch's own loader refuses sparse inputs; and its data set fewer labels, in 2.10 when it comes to them.
    assume(spoiled not in ("sparse inputs", "fewer labels") or container not in ("data set", "loader"))
    inputs, labels = data()
    model = network()
    with within_bounds():
        try:
            wrong = SPOILED[spoiled](inputs, labels)
            given = CONTAINERS[container](*wrong, batches)
        except (AssertionError, AttributeError, TypeError, RuntimeError):
            return  # the container itself takes no such thing
        try:
            called(name, model, ["1", "3"], given, **_batched(name, batches))
        except (ValueError, TypeError) as error:
            note(f"{type(error).__name__}: {error}")
            if not any(word in str(error) for word in ("data", "layer '")):
                raise AssertionError("neither data nor a layer is named") from error
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _batched(name: str, batches: list[int]) -> dict[str, int]:
    """``batch_size=``, where the function has it."""
    return {"batch_size": batches[0]} if "batch_size" in CALLS[name].names else {}


@pytest.mark.parametrize("name", CALLS)
def test_another_default_device_is_refused(name):
    arguments = {each: make() for each, make in CALLS[name].arguments.items()}
    with torch.device("meta"):
        with pytest.raises(ValueError, match=r"default device is meta.* within `with torch.device\('cpu'\):`"):
            CALLS[name].function(**arguments)
        with torch.device("cpu"):
            CALLS[name].function(**arguments)


def test_attributions_refuse_another_default_device():
    model = network()
    asked, x = sd.LayerUnitAblation(model, model[1]), inputs()
    with torch.device("meta"), pytest.raises(ValueError, match="default device is meta"):
        asked.attribute(x, target=0)
