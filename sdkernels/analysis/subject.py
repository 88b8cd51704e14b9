"""The model under study: what every public function does first, and what it leaves as it was."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdkernels.engine.arguments import is_one_of
from sdkernels.engine.batches import Batches
from sdkernels.engine.checks import PROBE_EXAMPLES, check_default_device
from sdkernels.engine.memory import Exhausted, is_out_of_memory
from sdkernels.engine.sites import Layers, Site, check_eval_mode, find_sites, unwrap
from sdkernels.engine.turns import one_at_a_time

PRECISIONS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
}


class Subject(NamedTuple):
    """A model and data that a pass can be made with."""

    model: nn.Module  # unwrapped; a copy if a precision was asked for
    sites: list[Site]
    batches: Batches
    inputs: Tensor  # [n, ...], the first few
    output: Tensor  # of these: logits [n, L], if they are to be scored
    precision: str


@contextmanager
def studied(
    model: nn.Module,
    layers: Layers,
    data: Any,
    *,
    precision: str | None = None,
    unit_dim: int | Mapping[str, int] | None = None,
    select: int | Mapping[str, int] | None = None,
    batch_size: int = 256,
    scored: bool = True,
) -> Iterator[Subject]:
    """The model, the sites that ``layers`` names and the batches of ``data``, while the caller's state is kept.

    Args:
        model, layers, data, precision, unit_dim, select, batch_size: as :func:`sdkernels.cumulative_ablation` says.
        scored: the model's output must be logits.

    Raises:
        ValueError, TypeError: as there.
    """
    check_default_device()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    with one_at_a_time():  # another thread's call may have hooks on the model, or have switched its mode
        model = unwrap(model)
        check_eval_mode(model)
        model, layers = _as_precision(model, layers, precision)
        tensors = [*model.parameters(), *model.buffers()]
        device = tensors[0].device if tensors else torch.device("cpu")
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
        if precision == "tf32" and device.type != "cuda":
            raise ValueError(f"precision='tf32' is arithmetic of NVIDIA GPUs; the model is on {device}")
        with hooks_removed(model), undisturbed(device, tf32=precision == "tf32"):
            batches = Batches(data, batch_size=batch_size, device=device, dtype=dtype if precision else None)
            with explained(batches):
                inputs = batches.first()[0][:PROBE_EXAMPLES]
                sites, output = find_sites(model, layers, inputs, unit_dim, select, scored=scored)
                name = "tf32" if precision == "tf32" else str(dtype).removeprefix("torch.")
                yield Subject(model, sites, batches, inputs, output, name)


@contextmanager
def explained(batches: Batches) -> Iterator[None]:
    """Say of torch's errors what they come of, where the data has changed on the way, or memory has run out.

    Raises:
        ValueError: the model cannot run examples of a shape that came later.
        MemoryError: says what takes less.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, Exhausted):
            raise
        if is_out_of_memory(error):
            raise Exhausted(
                f"memory ran out ({error}); a lower batch_size= takes less, of a DataLoader its own, and a lower "
                "memory_fraction= where there is one"
            ) from error
        if type(error) is RuntimeError and (change := batches.readings.change) is not None:
            raise ValueError(f"data gives {change}, which the model does not run: {error}") from error
        raise


@contextmanager
def hooks_removed(model: nn.Module) -> Iterator[None]:
    """Whatever happens, no hook of this package that is registered within stays on the model: who registers one may be
    stopped by Ctrl-C before it knows how to take it out."""
    remove = remover_of_hooks(model)
    try:
        yield
    finally:
        remove()


def remover_of_hooks(model: nn.Module) -> Callable[[], None]:
    """What takes out the hooks of this package that a model has by then, and does not have now."""
    held = [h for module in model.modules() for h in (module._forward_hooks, module._forward_pre_hooks)]
    before = [set(hooks) for hooks in held]

    def remove() -> None:
        for hooks, keys in zip(held, before, strict=True):
            for key in hooks.keys() - keys:
                if str(getattr(hooks[key], "__module__", "")).startswith("sdkernels."):
                    del hooks[key]

    return remove


@contextmanager
def undisturbed(device: torch.device, tf32: bool) -> Iterator[None]:
    """Without the caller's autocast, and with TF32 only if asked for, as the precision is the model's; random draws, as
    a loader's, are undone; what is compiled runs eagerly, as compiled code may not see hooks."""
    with ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if device.type == "cuda":
            backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
            for backend in backends:
                stack.callback(setattr, backend, "allow_tf32", backend.allow_tf32)
                backend.allow_tf32 = tf32
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _as_precision(model: nn.Module, layers: Layers, precision: str | None) -> tuple[nn.Module, Layers]:
    """The model, or a converted copy, and the layers by name in it."""
    if precision is None:
        return model, layers
    if not is_one_of(precision, PRECISIONS):
        raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}, or None for the model's own")
    dtype = PRECISIONS[precision]
    if all(t.dtype == dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()):
        return model, layers
    names = {id(module): name for name, module in model.named_modules()}
    if isinstance(layers, nn.Module):
        layers = [layers]
    if not isinstance(layers, str):
        layers = [names.get(id(layer), layer) if isinstance(layer, nn.Module) else layer for layer in layers]
    return copy.deepcopy(model).to(dtype), layers
