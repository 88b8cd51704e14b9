"""How much memory a run takes: measured on a few examples, scaled to tiles, held against a limit."""

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What tensors of one tile may take where the limit leaves the choice, in bytes: small enough for a processor's caches
# to help, large enough to keep a GPU busy.
WORKING_SET = {"cpu": 96 * 2**20, "cuda": 4 * 2**30}
FEWEST, MOST = 16, 8192  # examples of a tile, where memory leaves the choice

# How torch says of other things than its own allocators that there is none: C++, cuBLAS, cuDNN, oneDNN, the driver.
_OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "Cannot allocate memory"),
    *("ALLOC_FAILED", "could not create a memory"),
)

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Exhausted(MemoryError):  # noqa: N818 - as Python's own
    """Memory ran out, or would; says what takes less."""


@dataclass(frozen=True)
class Budget:
    """Memory beyond the model and the data set, in bytes.

    Attributes:
        fixed: what does not grow with the examples of a tile.
        by_example: what each example of a tile takes.
        limit: what must not be passed.
        spare: what configurations that run side by side may take on top of that.
        spare_by_example: what all of them would take.
    """

    fixed: float
    by_example: float
    limit: float
    spare: float = 0.0
    spare_by_example: float = 0.0

    def tile(self, device: torch.device) -> int:
        """How many examples are run at once.

        Raises:
            MemoryError: not even one fits the limit.
        """
        wanted = WORKING_SET.get(device.type, WORKING_SET["cpu"]) / max(self.by_example, 1.0)
        allowed = (self.limit - self.fixed - self.spare) / max(self.by_example, 1.0)
        tile = min(max(int(wanted), FEWEST), MOST, int(allowed))
        if tile < 1:
            raise Exhausted(
                f"one example takes {_mebibytes(self.peak(1))} on {device}, too much for the limit of "
                f"{_mebibytes(self.limit)}; raise memory_fraction"
            )
        return tile

    def peak(self, tile: int) -> float:
        """What a tile takes at most."""
        return self.fixed + tile * self.by_example + min(self.spare, tile * self.spare_by_example)


def find_budget(work: Callable[[int], Any], examples: int, limit: float) -> Budget:
    """Measure ``work(n)`` on all of ``examples`` and on half of them; memory grows in proportion between them."""
    most = _peak(lambda: work(examples))
    half = examples // 2
    if half == 0:
        return Budget(0.0, most, limit)
    less = _peak(lambda: work(half))
    by_example = max(most - less, 0.0) / (examples - half)
    return Budget(max(most - by_example * examples, 0.0), by_example, limit)


def memory_limit(device: torch.device, fraction: float) -> float:
    """A fraction of the device's memory; on a CPU of the machine's, or of what its control group allows."""
    if device.type == "cuda":
        return fraction * torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        if Path(path).exists() and (allowed := Path(path).read_text().strip()).isdecimal():
            total = min(total, int(allowed))
    return fraction * total


def check_room(name: str, number: int, nbytes: int) -> None:
    """Refuse a number that asks for more than the machine's memory, before any of it is taken.

    Raises:
        ValueError: names the argument, and says how much.
    """
    room = memory_limit(torch.device("cpu"), 1.0)
    if nbytes > room:
        raise ValueError(
            f"{name}={number} takes {nbytes / 2**30:.3g} GiB at least, and this machine has {room / 2**30:.3g}; give "
            "a smaller one"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error)  # of oneDNN's words the first ones also begin those of other errors
    return isinstance(error, RuntimeError) and (
        any(words in said for words in _OUT_OF_MEMORY) or said.endswith("could not create a primitive")
    )


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"


def _peak(work: Callable[[], Any]) -> float:
    """The most bytes that tensors made by ``work`` take at once."""
    with _Meter() as meter:
        work()
    return float(meter.peak)


class _Meter(TorchDispatchMode):
    """Follows the memory of every tensor that operations make."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and torch would import its compiler, which takes a second

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._holders: dict[int, int] = {}
        self._held: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}  # by reference: it, an address, its bytes
        self._gone: deque[weakref.ref[Tensor]] = deque()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        while self._gone:
            self._release(self._gone.popleft())
        for tensor in _tensors(result):
            if address := _address(tensor):
                if address in self._holders:
                    self._hold(tensor, address)
                elif all(address != _address(t) for t in _tensors((args, *(kwargs or {}).values()))):
                    self._now += tensor.untyped_storage().nbytes()  # new, and no view of what was there before
                    self._hold(tensor, address)
        self.peak = max(self.peak, self._now + _workspace(func, args, result))
        return result

    def _hold(self, tensor: Tensor, address: int) -> None:
        self._holders[address] = self._holders.get(address, 0) + 1
        # Noted by C alone: Python would lose a Ctrl-C that comes while a weak reference's own function runs.
        reference = weakref.ref(tensor, self._gone.append)
        self._held[id(reference)] = reference, address, tensor.untyped_storage().nbytes()

    def _release(self, reference: "weakref.ref[Tensor]") -> None:
        _, address, nbytes = self._held.pop(id(reference))
        self._holders[address] -= 1
        if self._holders[address] == 0:
            del self._holders[address]
            self._now -= nbytes


def _tensors(held: Any) -> Iterator[Tensor]:
    """The tensors among what an operation is given, or gives: lists of them at most."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, (tuple, list)):
        for part in held:
            yield from _tensors(part)


def _workspace(func: Any, args: Any, result: Any) -> int:
    """Bytes that an operation on a CPU takes for itself, which no tensor shows."""
    if func is not torch.ops.aten.convolution.default or result.device.type != "cpu":
        return 0
    x, weight = args[:2]
    if x.dtype == torch.float64:  # the columns of the whole batch, for one product
        return int(result.numel() // len(weight) * weight[0].numel() * x.element_size())
    return int(x.nbytes + result.nbytes)  # oneDNN's copies, in blocks of channels


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
