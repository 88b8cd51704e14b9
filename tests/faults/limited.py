"""A program that calls in forked processes that may have little more memory than they have: ``python -m`` it FOLDER.

It prints a JSON object, by call and MiB: ``"right"``, or what was raised; ``"changed"`` and such where it must not be.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sdkernels as sd
from sdkernels.engine.ledger import Ledger
from tests.engine.compare import tensors_of
from tests.faults.held import left_as_it_was, state_of

MEBIBYTES = (4, 16, 40, 256)


def network() -> nn.Sequential:
    """[N, 3, 32, 32] -> five logits; layers "1" and "3"."""
    generator = torch.Generator().manual_seed(0)
    first, second = (nn.utils.skip_init(nn.Conv2d, c, 32, 3, padding=1) for c in (3, 32))
    last = nn.utils.skip_init(nn.Linear, 32, 5)
    with torch.no_grad():
        for parameter in (*first.parameters(), *second.parameters(), *last.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).eval()


def examples() -> tuple[Tensor, Tensor]:
    """64 of them, which take 8 MiB behind a layer."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 3, 32, 32, generator=generator), torch.randint(0, 5, (64,), generator=generator)


MODEL, DATA = network(), examples()
CURVES = partial(sd.cumulative_ablation, MODEL, ["1", "3"], DATA, orders=1, points=4, metrics="accuracy")
CALLS: dict[str, Callable[..., Any]] = {
    "auto": CURVES,
    "loop": partial(CURVES, method="loop"),
    "statistics": partial(sd.unit_statistics, MODEL, ["1", "3"], DATA),
    "taylor": partial(sd.taylor_importance, MODEL, ["1", "3"], DATA),
}


def numbers(result: Any) -> dict[str, list[Any]]:
    """Which do not hang on how many examples ran at once, as counts."""
    return {name: t.tolist() for name, t in tensors_of(result).items() if not t.is_floating_point()}


def ends(name: str, store: Path, expected: dict[str, Any], mebibytes: int) -> str:
    """How a call ends whose process may take so much more memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with left_as_it_was(MODEL):
        try:
            return "right" if numbers(CALLS[name](store=store)) == expected else "wrong"
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def fork(do: Callable[[], str]) -> str:
    """What it gives in a process of its own."""
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        with os.fdopen(read) as said:
            text = said.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return text or f"exit code {code}"
    try:
        os.write(write, do().encode()[:4000])
    except BaseException as error:
        os.write(write, repr(error).encode()[:4000])
    finally:
        os._exit(0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    state_of(MODEL)  # what is imported on the way is
    found: dict[str, dict[int, str]] = {}
    for name, call in CALLS.items():
        expected = numbers(call(store=folder / f"{name}.sdk"))
        found[name] = {}
        for mebibytes in MEBIBYTES:
            store = folder / f"{name} {mebibytes}.sdk"
            Ledger(store).close()
            found[name][mebibytes] = fork(partial(ends, name, store, expected, mebibytes))
            with Ledger(store) as ledger:
                ledger.check()
            if numbers(call(store=store)) != expected:
                found[name][mebibytes] += ", and wrong afterwards"
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
