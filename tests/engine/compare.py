"""What it means that two results are the same."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn


def tensors_of(result: Any) -> dict[str, Tensor]:
    """All tensors that a result holds, by field, and by name within a field that is a mapping."""
    found: dict[str, Tensor] = {}
    for field in fields(result):
        held = getattr(result, field.name)
        if isinstance(held, Tensor):
            found[field.name] = held
        elif isinstance(held, Mapping):
            found |= {f"{field.name}[{name}]": part for name, part in held.items() if isinstance(part, Tensor)}
    return found


def assert_same(auto: Any, oracle: Any) -> None:
    """The contract in float64: all counts are equal and all sums agree to 1e-10, whatever kind of result it is."""
    assert type(auto) is type(oracle)
    assert (auto.examples, auto.layers, auto.unit_counts) == (oracle.examples, oracle.layers, oracle.unit_counts)
    given, expected = tensors_of(auto), tensors_of(oracle)
    assert set(given) == set(expected)
    for name, tensor in given.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                tensor, expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert torch.equal(tensor, expected[name]), f"{name}:\n{tensor}\nis not\n{expected[name]}"


def assert_same_but_for_rounding(auto: Any, oracle: Any) -> None:
    """The contract in float32: counts differ by ambiguous examples at most, losses by 1e-5 of the mean loss."""
    assert type(auto) is type(oracle)
    assert (auto.examples, auto.layers, auto.unit_counts) == (oracle.examples, oracle.layers, oracle.unit_counts)
    ambiguous = torch.maximum(auto.ambiguous, oracle.ambiguous)
    differ = (auto.sums["accuracy"] - oracle.sums["accuracy"]).abs()
    assert (differ <= ambiguous).all(), f"counts differ by\n{differ}\nwith ambiguous examples\n{ambiguous}"
    torch.testing.assert_close(auto.sums["loss"], oracle.sums["loss"], rtol=1e-5, atol=0)


@contextmanager
def left_as_they_were(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Nothing within the context writes into the model's parameters and buffers, or into the inputs."""
    held = {"inputs": inputs, **model.state_dict()}
    before = {name: tensor.clone() for name, tensor in held.items()}
    yield
    changed = [name for name, tensor in held.items() if not torch.equal(tensor, before[name])]
    assert not changed, f"{changed} were written into"
