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
            only there, whatever ``"epochs"`` says. All are made at once: options that only go together are changed
            together. Lists may stand for tuples, as JSON has them.

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
    wanted: dict[str, Any] = {}
    for name in sorted(changes, key=lambda name: name.count(".")):  # the longer name says more, and comes later
        meant = [full for full in known if full == name or full.endswith(f".{name}")]
        if not meant:
            raise ValueError(f"there is no option {name!r}; {_close(name, known)}")
        for full in meant:
            wanted[full] = _given(known[full], changes[name])
            if not _fits(known[full], wanted[full]):
                raise ValueError(f"{name}={changes[name]!r} must be {_words(known[full])}")
    changed: OptionsT = _changed(options, wanted)
    return changed


def _close(name: str, known: Mapping[str, Any]) -> str:
    """Names like this one, or else all."""
    short = sorted({full.rpartition(".")[2] for full in known})
    close = get_close_matches(name, [*short, *known], n=4)
    return f"close: {', '.join(close)}" if close else f"there are {', '.join(short)}"


def _leaves(options: Any, within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Full name, value and type of every field that is no dataclass itself."""
    hints = get_type_hints(type(options))
    for f in fields(options):
        value, name = getattr(options, f.name), f"{within}.{f.name}" if within else f.name
        if is_dataclass(value):
            yield from _leaves(value, name)
        else:
            yield name, value, hints[f.name]


def _changed(options: Any, wanted: Mapping[str, Any]) -> Any:
    """Options with the fields of these full names replaced, all those of a dataclass at once."""
    inner: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    for full, value in wanted.items():
        first, dot, rest = full.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    return replace(options, **own, **{name: _changed(getattr(options, name), of) for name, of in inner.items()})


def _given(kind: Any, value: Any) -> Any:
    """A value as the option has it: tuples for JSON's lists, at any depth."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return next((given for one in inner if _fits(one, given := _given(one, value))), value)
    if (origin or kind) is not tuple or not isinstance(value, (list, tuple)):
        return value
    if inner[1:] == (...,):
        return tuple(_given(inner[0], one) for one in value)
    return tuple(map(_given, inner, value)) if len(inner) == len(value) else tuple(value)


def _fits(kind: Any, value: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(one, value) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, kinds, value))
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
    if origin is tuple and inner[1:] != (...,):
        return f"[{', '.join(map(_words, inner))}]"
    if origin is tuple:
        what = _words(inner[0]).removeprefix("a ")
        return f"a list of {what}" + ("s" if what.endswith("number") else "")
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(kind, "a table" if origin is not None else getattr(kind, "__name__", str(kind)))
