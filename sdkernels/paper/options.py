"""A recipe's options by name: shown, and changed."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

OptionsT = TypeVar("OptionsT")


def option_values(options: Any, within: str = "") -> dict[str, Any]:
    """Every option by its full name, as ``"networks.training.epochs"``."""
    return {name: value for name, value, _ in _leaves(options, within)}


def change_options(options: OptionsT, changes: Mapping[str, Any]) -> OptionsT:
    """Options with some of them changed.

    Args:
        options: a frozen dataclass, whose fields may be such dataclasses too.
        changes: by name, or the end of a full name: ``"epochs"`` changes it wherever it stands, and ``"mnist.epochs"``
            only there.

    Raises:
        ValueError: no such option, or a value of another type; lists close names.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Inner:
        ...     epochs: int = 3
        >>> @dataclass(frozen=True)
        ... class Outer:
        ...     inner: Inner = Inner()
        ...     orders: int = 10
        >>> change_options(Outer(), {"epochs": 5})
        Outer(inner=Inner(epochs=5), orders=10)
    """
    known = {name: kind for name, _, kind in _leaves(options)}
    for name, value in changes.items():
        meant = [full for full in known if full == name or full.endswith(f".{name}")]
        if not meant:
            short = sorted({full.rpartition(".")[2] for full in known})
            close = get_close_matches(name, [*short, *known], n=4)
            raise ValueError(
                f"there is no option {name!r}; "
                + (f"close: {', '.join(close)}" if close else f"there are {', '.join(short)}")
            )
        for full in meant:
            given = tuple(value) if isinstance(value, list) else value
            if not _fits(known[full], given):
                raise ValueError(f"{name}={value!r} must be {_words(known[full])}")
            options = _replaced(options, full.split("."), given)
    return options


def _leaves(options: Any, within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Full name, value and type of every field that is no dataclass itself."""
    hints = get_type_hints(type(options))
    for f in fields(options):
        value, name = getattr(options, f.name), f"{within}.{f.name}" if within else f.name
        if is_dataclass(value):
            yield from _leaves(value, name)
        else:
            yield name, value, hints[f.name]


def _replaced(options: Any, path: list[str], value: Any) -> Any:
    first, *rest = path
    return replace(options, **{first: _replaced(getattr(options, first), rest, value) if rest else value})


def _fits(kind: Any, value: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(one, value) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and (inner[1:] != (...,) or all(_fits(inner[0], one) for one in value))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is type(None):
        return value is None
    return kind is Any or isinstance(value, origin or kind)


def _words(kind: Any) -> str:
    """A type as people say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return f"a list of {_words(inner[0]).removeprefix('a ')}s" if inner else "a list"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(kind, "a table" if origin is not None else getattr(kind, "__name__", str(kind)))
