"""A program that sends signals to forked processes which call with store=: ``python -m tests.faults.signalled FOLDER``.

It prints a JSON object, by case: how the process ended, what it said, how many tiles are kept, and how many tiles the
same call scored when it was made again.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from sdkernels.analysis.ablation import unit_importance
from sdkernels.engine.batches import Batch
from sdkernels.engine.job import Tally
from sdkernels.engine.ledger import Ledger
from sdkernels.engine.runner import LoopRunner
from sdkernels.engine.stopping import stopping_cleanly
from tests.engine.stored import examples, network, set_small_tiles, tiles_scored

# Whether the signal is waited for, and which signals come, in the third tile.
CASES: dict[str, tuple[bool, list[int]]] = {
    "SIGTERM, as Python has it": (False, [signal.SIGTERM]),
    "SIGTERM": (True, [signal.SIGTERM]),
    "SIGTERM twice": (True, [signal.SIGTERM, signal.SIGTERM]),
    "SIGTERM, then Ctrl-C": (True, [signal.SIGTERM, signal.SIGINT]),
    "Ctrl-C": (True, [signal.SIGINT]),
    "SIGKILL": (True, [signal.SIGKILL]),
}


def call(store: Path, signals: Sequence[int] = ()) -> tuple[Any, int]:
    """Seven tiles, and how many of them were scored; the process gets the signals while it scores the third."""
    score = LoopRunner.score

    def scoring(self: LoopRunner, batch: Batch) -> Tally:
        if len(tiles) == 3:
            for number in signals:
                os.kill(os.getpid(), number)
        return score(self, batch)

    with tiles_scored() as tiles, pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoopRunner, "score", scoring)
        found = unit_importance(network(), "3", examples(), method="loop", store=store)
        return {name: total.tolist() for name, total in found.sums.items()}, len(tiles)


def fork(waits: bool, signals: list[int], store: Path, said: Path) -> int:
    """The exit code of a process that calls; negative for a signal."""
    number = os.fork()
    if number:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    code = 1
    try:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        with stopping_cleanly("run this script again") if waits else nullcontext():
            call(store, signals)
        code = 0
    except SystemExit as ending:
        code = int(ending.code or 0)
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    set_small_tiles(pytest.MonkeyPatch())
    expected, _ = call(folder / "whole.sdk")
    found = {}
    for place, (name, (waits, signals)) in enumerate(CASES.items()):
        store, said = folder / f"{place}.sdk", folder / f"{place}.txt"
        code = fork(waits, signals, store, said)
        with Ledger(store) as ledger:
            ledger.check()
            kept, _, _ = ledger.progress(ledger.runs()[0])
        result, again = call(store)
        found[name] = {"code": code, "said": said.read_text(), "kept": kept, "again": again, "same": result == expected}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
