"""A model as part of a digest: its modules' code and attributes, its hooks, and every parameter's and buffer's bits.

What a forward pass writes, as counters, caches and a hook's records, says nothing of the model: whoever can make a pass
gives it, and what differs after it is left out.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from sdkernels.engine.digest import Digest

# A module's own bookkeeping; "training" is not part of it.
_BOOKKEEPING = {*vars(nn.Module()), "_c", "_concrete_type", "_initializing", "_is_full_backward_hook"} - {"training"}
_SHORT = (bool, int, float, str, type(None))
_PLAIN = (bool, int, float, str, list, tuple, dict)


def digest_of_model(
    model: nn.Module,
    make: type["Digest"],
    known: Mapping[int, int] | None = None,
    forward_pass: Callable[[], object] | None = None,
) -> str:
    """SHA-256 of a model, 64 digits.

    Args:
        model: of which a module may stand under several names.
        make: gives digests of values.
        known: by ``id``, modules around it that it may refer to.
        forward_pass: makes a pass; what it changes is left out.
    """
    modules = list(model.named_modules(remove_duplicate=False))
    numbers: dict[int, int] = {}
    for _, module in modules:
        numbers.setdefault(id(module), len(numbers))
    known = {**(known or {}), **numbers}
    names = make([(name, numbers[id(module)]) for name, module in modules]).hex
    parts = dict(_parts(model, make, known))
    if forward_pass is not None:
        forward_pass()
        after = dict(_parts(model, make, known))
        parts = {name: content for name, content in parts.items() if after.get(name) == content}
    return make(names, sorted(parts.items()), _parameters(model, make), _state(model, make)).hex


def _parts(model: nn.Module, make: type["Digest"], known: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Names, and digests of all but parameters."""
    classes: dict[type, str] = {}
    for path, module in model.named_modules():
        cls = type(module)
        if cls not in classes:
            classes[cls] = make(cls, _forward(module), lenient=True, known=known).hex
        yield f"{path}: class", classes[cls]
        if isinstance(module, torch.jit.ScriptModule):
            yield f"{path}: script", make(_script(module), lenient=True).hex
        for name, value in vars(module).items():
            if isinstance(value, _SHORT) and name not in _BOOKKEEPING:
                yield f"{path}.{name}", f"{type(value).__name__} {value!r}"
            elif name not in _BOOKKEEPING:
                yield f"{path}.{name}", make(value, lenient=True, known=known).hex
        for kind, hooks in (("before", module._forward_pre_hooks), ("after", module._forward_hooks)):
            yield from _hooks(f"{path}: hooks {kind}", hooks, make, known)
        for name, buffer in module._buffers.items():
            yield f"{path}: buffer {name}", make(buffer).hex
    of_all = torch.nn.modules.module
    yield from _hooks("hooks before all", of_all._global_forward_pre_hooks, make, known)
    yield from _hooks("hooks after all", of_all._global_forward_hooks, make, known)


def _hooks(
    name: str, hooks: Mapping[int, Any], make: type["Digest"], known: Mapping[int, int]
) -> Iterator[tuple[str, str]]:
    """Their code; and, apart from it, what they hold, which a pass may write."""
    if hooks:
        codes = [getattr(hook, "__code__", type(hook)) for hook in hooks.values()]
        yield f"{name}: code", make(codes, lenient=True, known=known).hex
    for number, hook in enumerate(hooks.values()):
        yield f"{name}: {number}", make(hook, lenient=True, known=known).hex


def _parameters(model: nn.Module, make: type["Digest"]) -> str:
    numbers: dict[int, int] = {}
    digest = make()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        is_new = id(parameter) not in numbers
        digest.add_many(name, [numbers.setdefault(id(parameter), len(numbers)), *([parameter] if is_new else [])])
    return digest.hex


def _state(model: nn.Module, make: type["Digest"]) -> str:
    """What a model keeps beside parameters and buffers, as quantized weights."""
    held = {
        name for named in (model.named_parameters, model.named_buffers) for name, _ in named(remove_duplicate=False)
    }
    extra = {name: value for name, value in model.state_dict().items() if name not in held}
    return make(extra, lenient=True).hex


def _forward(module: nn.Module) -> Any:
    """What a class that is not torch's own does; one that a module has for itself is among its attributes."""
    if type(module).__module__.startswith("torch.nn.") or isinstance(module, torch.jit.ScriptModule):
        return None
    return type(module).forward


def _script(module: Any) -> list[Any]:
    """The text, the constants and the plain attributes of what TorchScript compiled."""
    found: list[Any] = []
    names: set[str] = set()
    for method in sorted(module._c._method_names()):
        code, constants = module._c._get_method(method).code_with_constants
        found.append((method, code, dict(constants)))
        names.update(re.findall(r"\.(\w+)", code))
    held = [(name, module._c.getattr(name)) for name in sorted(names) if module._c.hasattr(name)]
    return [*found, [(name, value) for name, value in held if isinstance(value, _PLAIN)]]
