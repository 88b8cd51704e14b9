"""A program that kills itself: calls with store= in forked processes, killed at random moments or run side by side.

``python -m tests.engine.killed FOLDER`` prints a JSON object of what it saw. It imports once, and forks for every call.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sdkernels.analysis.ablation import cumulative_ablation, unit_importance
from sdkernels.analysis.noise import noise_robustness
from sdkernels.engine import parts
from sdkernels.engine.ledger import Ledger
from tests.engine.stored import SIZE, examples, network, set_small_tiles

KILLS = 16
TILE_SECONDS = 0.003  # slept in every tile
DATA = examples(40 * SIZE)
CALLS: dict[str, Callable[..., Any]] = {
    "curves": partial(cumulative_ablation, network(), ["1", "3"], DATA, orders=2, points=4, outcomes=True),
    "units": partial(unit_importance, network(), ["1", "3"], DATA, metrics=["loss", "class_accuracy"]),
    "noise": partial(noise_robustness, network(), "1", DATA, scales=[0.5, 2], repeats=2, outcomes=True),
}


def result_of(name: str, store: Path | None) -> dict[str, Any]:
    """All numbers of a call's result; floats by their bits."""
    found = CALLS[name](store=store)
    packed = None if found.outcomes is None else found.outcomes.tolist()
    sums = {key: total.tolist() for key, total in sorted(found.sums.items())}
    return {"outcomes": packed, "sums": sums, "ambiguous": found.ambiguous.tolist(), "examples": found.examples}


def fork(do: Callable[[], object], wait: int | None = None) -> int:
    """A process that does it; its number. It begins when something is written into the pipe ``wait``."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        if wait is not None:
            os.read(wait, 1)
        do()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def call(name: str, store: Path, out: Path, log: Path) -> None:
    """The call, its result in ``out``, and in ``log`` a line for every tile that is begun."""
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    score = parts._Here._score_anew

    def scoring(self: Any, job: Any, index: int, batch: Any, data: bytes) -> Any:
        os.write(written, f"{int(batch.places[0])}\n".encode())
        time.sleep(TILE_SECONDS)
        return score(self, job, index, batch, data)

    parts._Here._score_anew = scoring  # type: ignore[method-assign]
    result = result_of(name, store)
    out.with_suffix(".part").write_text(json.dumps(result))
    out.with_suffix(".part").replace(out)


def kill_again_and_again(folder: Path, chance: random.Random) -> dict[str, Any]:
    """One call on one file after another, each killed until it ends before its time."""
    kills, most_repeated, same, rows, in_middle = 0, 0, [], [], 0
    expected: dict[str, Any] = {}
    for turn in range(1000):
        if kills >= KILLS:
            break
        name = list(CALLS)[turn % len(CALLS)]
        store, out, log = (folder / f"{turn}.{end}" for end in ("sdk", "json", "log"))
        begun: set[str] = set()
        while not out.exists():
            log.write_text("")
            child = fork(partial(call, name, store, out, log))
            time.sleep(chance.uniform(0.05, 0.5))
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            kills += os.WIFSIGNALED(status)
            now = log.read_text().split()
            in_middle += os.WIFSIGNALED(status) and len(now) > 0
            most_repeated = max(most_repeated, len(begun.intersection(now)))
            begun.update(now)
        if name not in expected:
            expected[name] = result_of(name, folder / f"{name} at once.sdk")
        same.append(json.loads(out.read_text()) == json.loads(json.dumps(expected[name])))
        with Ledger(store) as ledger:
            rows.append(ledger.check())
    return {
        "kills": kills,
        "kills_in_the_middle": in_middle,
        "most_repeated": most_repeated,
        "same": same,
        "rows": rows,
    }


def side_by_side(folder: Path) -> dict[str, Any]:
    """The same call three times at once, and different ones, on files that are not there yet."""
    same = []
    for turn, names in enumerate((["curves"] * 3, ["curves", "units", "noise"])):
        store = folder / f"together {turn}.sdk"
        ready, go = os.pipe()
        outs = [folder / f"together {turn} {i}.json" for i in range(3)]
        jobs = [partial(call, name, store, out, out.with_suffix(".log")) for name, out in zip(names, outs, strict=True)]
        children = [fork(job, ready) for job in jobs]
        os.write(go, b"...")
        codes = [os.waitpid(child, 0)[1] for child in children]
        for name, out, code in zip(names, outs, codes, strict=True):
            expected = json.loads(json.dumps(result_of(name, folder / f"{name} at once.sdk")))
            same.append(code == 0 and json.loads(out.read_text()) == expected)
        with Ledger(store) as ledger:
            ledger.check()
            same.append(len(ledger.runs()) == len(set(names)))
    return {"same": same}


def make_at_once(folder: Path) -> dict[str, Any]:
    """Six processes that open one file at the same moment, when it is not there."""
    codes = []
    for turn in range(8):
        ready, go = os.pipe()

        def write(store: Path = folder / f"made {turn}.sdk") -> None:
            with Ledger(store, patience=20.0) as ledger:
                ledger.keep_item("made", str(os.getpid()), {}, b"")

        children = [fork(write, ready) for _ in range(6)]
        os.write(go, b"......")
        codes += [os.waitpid(child, 0)[1] for child in children]
        with Ledger(folder / f"made {turn}.sdk") as ledger:
            codes.append(6 - ledger.check())
    return {"codes": codes}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    set_small_tiles(pytest.MonkeyPatch())
    found = {
        "killed": kill_again_and_again(folder, random.Random(0)),
        "together": side_by_side(folder),
        "made": make_at_once(folder),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
