"""Arguments as users give them: words, flags, whole numbers, numbers, tensors. What is none is refused by name."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST = 2**63 - 1  # that a seed, or an int64 tensor, can hold


def is_one_of(given: object, words: Iterable[str | None]) -> bool:
    """Whether something is one of these words; also of what cannot be hashed, or compares element by element."""
    return any(given is word or (isinstance(given, str) and given == word) for word in words)


def is_whole(given: object) -> bool:
    """Whether something is an int, Python's or NumPy's."""
    return isinstance(given, Integral) and not isinstance(given, bool)


def is_number(given: object) -> bool:
    """Whether something is a real number, of whatever type."""
    return isinstance(given, Real) and not isinstance(given, bool)


def flag(name: str, given: Any) -> bool:
    """True or False.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(given, (bool, np.bool_)):
        raise TypeError(f"{name} is a {type(given).__name__}; give True or False")
    return bool(given)


def whole_number(name: str, given: Any, least: int, most: int = MOST, *, what: str = "an int") -> int:
    """An int from ``least`` to ``most``; ``what`` says in a message what to give.

    Raises:
        TypeError: it is something else.
        ValueError: it is out of range.
    """
    if not is_whole(given):
        raise TypeError(f"{name} is a {type(given).__name__}; give {what}")
    number = int(given)
    if not least <= number <= most:
        bounds = f"at least {least}" if most == MOST and number < least else f"within {least}..{most}"
        raise ValueError(f"{name}={number} must be {bounds}: give {what}")
    return number


def number(name: str, given: Any) -> float:
    """A finite number as a float.

    Raises:
        TypeError: it is something else.
        ValueError: it is not finite, or too large for a float.
    """
    if not is_number(given):
        raise TypeError(f"{name} is a {type(given).__name__}; give a number")
    try:
        found = float(given)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name}={given} must be a finite number")
    return found


def dense(name: str, given: Tensor, *, real: bool = True) -> Tensor:
    """A tensor whose elements can be read: in memory, each there, and real numbers unless ``real`` is False.

    Raises:
        TypeError: it is a meta tensor, a sparse, quantised or complex one.
    """
    if given.device.type == "meta":
        raise TypeError(f"{name} is a meta tensor {list(given.shape)}, which holds no numbers; give one that does")
    if given.layout != torch.strided or given.is_quantized:
        raise TypeError(f"{name} is a {given.layout} {given.dtype} tensor {list(given.shape)}; give a dense one")
    if real and given.is_complex():
        raise TypeError(f"{name} is a {given.dtype} tensor {list(given.shape)}; give real numbers")
    return given
