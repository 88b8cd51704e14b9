"""A case of the op stage: one op on one input, run by each of its backends and by a formulation in plain torch."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from python_bench.gpu.clock import CheckError, Clock, Measures, Row, normal
from sdkernels.ops import pack_mask
from sdkernels.ops.backend import interpreted, native_library
from sdkernels.ops.layout import computed_in

TORCH = "torch"  # the opponent's name


@dataclass(frozen=True)
class Case:
    """What is run and how it is judged.

    Attributes:
        shape: what the input is, for the table.
        run: by backend, and the opponent under ``"torch"``: the op without the checks of its arguments.
        call: the public function, which runs what SDKERNELS_BACKEND says.
        check: given a name of ``run``, runs it, compares the result with the reference, and says how.
        bytes, flop, normals: the work of a run; bytes are the least that must be read and written.
        target: what is aimed at.
    """

    shape: str
    run: Mapping[str, Callable[[], Any]]
    call: Callable[[], Any]
    check: Callable[[str], str]
    bytes: int = 0
    flop: float = 0.0
    normals: int = 0
    target: str = ""

    def measures(self, clock: Clock) -> Measures:
        """A measurement for each name of ``run``."""
        return {name: partial(self._measure, name, clock) for name in self.run}

    def _measure(self, name: str, clock: Clock) -> Row:
        work = {"bytes": self.bytes, "flop": self.flop, "normals": self.normals}
        row = {"shape": self.shape, "target": self.target, **{key: amount for key, amount in work.items() if amount}}
        with torch.no_grad():
            row["checked"] = self.check(name)
            row["milliseconds"] = clock.times(self.run[name])
            if name != TORCH:
                with backend(name):
                    row["call_milliseconds"] = clock.times(self.call)
        return row


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Ops run this backend."""
    before = os.environ.get("SDKERNELS_BACKEND")
    os.environ["SDKERNELS_BACKEND"] = name
    try:
        yield
    finally:
        del os.environ["SDKERNELS_BACKEND"]
        if before is not None:
            os.environ["SDKERNELS_BACKEND"] = before


def backends(op: str, device: torch.device) -> list[str]:
    """Those that can run an op on a device, but for the reference, which results are compared with."""
    names = ["triton"] if device.type == "cuda" or interpreted() else []
    try:
        library = native_library()
    except RuntimeError:
        return names
    if hasattr(library, f"{op}_cuda" if device.type == "cuda" else op):
        names.append("native")
    return names


def runs(
    op: str, implementations: Mapping[str, Callable[..., Any]], arguments: tuple[Any, ...]
) -> dict[str, Callable[[], Any]]:
    """Each backend that can run here, on these arguments."""
    device = next(t.device for t in arguments if isinstance(t, Tensor))
    return {name: partial(implementations[name], *arguments) for name in backends(op, device)}


@dataclass(frozen=True)
class Ablation:
    """Arguments of ``perturb`` for K configurations of x [N, C, H, W], by name."""

    given: Mapping[str, Any]

    @classmethod
    def random(
        cls,
        shape: tuple[int, int, int, int, int],  # K, N, C, H, W
        device: torch.device,
        dtype: torch.dtype,
        *,
        clamp: bool = True,
        affine: bool = False,
        noise: bool = False,
        channels_last: bool = False,
        packed: bool = False,
        per_map: bool = False,
    ) -> "Ablation":
        """Random numbers; later configurations clamp more units, up to half of them."""
        k, n, c, h, w = shape
        wide = computed_in(dtype)
        x = normal(n, c, h, w, device=device, dtype=dtype)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        chance = torch.linspace(0, 0.5, k, device=device)[:, None] if clamp else 0.0
        uniform = normal(k, c, device=device, seed=1).mul(0.5**0.5).erf().abs()
        ablated = uniform < chance
        return cls(
            {
                "x": x,
                "ablated": pack_mask(ablated) if packed else ablated,
                "value": normal(c, 1, 1, device=device, dtype=dtype, seed=2),
                "scale": normal(c, device=device, dtype=wide, seed=3) if affine else None,
                "shift": normal(c, device=device, dtype=wide, seed=4) if affine else None,
                "relu": affine,
                "sigma": 0.1 + normal(k, c, device=device, dtype=wide, seed=5).abs() if noise else None,
                "seed": torch.tensor(-0x123456789ABCDEF, device=device) if noise else None,
                "configurations": torch.arange(k, device=device) + 2**32 - k if noise else None,
                "examples": torch.arange(n, device=device) if noise else None,
                "site": 3,
                "per_map": per_map,
                "unit_dim": 1,
                "shared": True,
            }
        )

    def arguments(self) -> tuple[Any, ...]:
        """In the order of the op's schema."""
        return tuple(self.given.values())

    def only(self, k: int) -> "Ablation":
        """One of the configurations."""
        by_configuration = ("ablated", "sigma", "configurations")
        part = {name: t if t is None else t[k : k + 1] for name, t in self.given.items() if name in by_configuration}
        return Ablation({**self.given, **part})

    def to(self, device: torch.device | str) -> "Ablation":
        """The same numbers on another device, strides kept."""
        return Ablation({name: t.to(device) if isinstance(t, Tensor) else t for name, t in self.given.items()})


def require(condition: bool, message: str) -> None:
    """
    Raises:
        CheckError: with the message, if the condition does not hold.
    """
    if not condition:
        raise CheckError(message)
