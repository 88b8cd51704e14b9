"""Runs commands of ``sdkernels`` in forked processes, which need not import torch again, and kills them.

As a script it reads orders from its standard input, a line of JSON each, and answers each by one:
``{"arguments": [...], "wait": SECONDS, "moment": MOMENT, "store": FILE, "out": DIR, "log": FILE}``. ``MOMENT`` is when
``wait`` begins, after which the command is killed: ``"start"``; ``"written"``, when the ledger's log changes;
``"table"``, when a table is being written; null: never. What the command trains and scores is written to ``log``.
"""

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path


def main():
    import torch
    import torch._dynamo  # the first step of an optimiser imports it
    from sklearn.datasets import load_digits  # noqa: F401

    import sdkernels.cli
    import sdkernels.lab.sweep.table  # noqa: F401

    if torch.get_num_threads() != 1:
        raise RuntimeError("a process with threads must not be forked; set OMP_NUM_THREADS=1")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(json.loads(line))), flush=True)


def obey(order):
    store, out = Path(order["store"]), Path(order["out"])
    before, begin = stamp(store), time.monotonic()
    process = os.fork()
    if process == 0:
        run_command(order)
    with suppress(PermissionError):  # it may have come first
        os.setpgid(process, process)
    moment = begin if order["moment"] == "start" else None
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if moment is None and order["moment"] is not None:
            happened = stamp(store) != before if order["moment"] == "written" else any(out.glob("*.partial"))
            moment = time.monotonic() if happened else None
        if moment is not None and time.monotonic() - moment >= order["wait"]:
            os.killpg(process, signal.SIGKILL)
            break
        time.sleep(0.0005)
    _, status = os.waitpid(process, 0)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begin}


def stamp(store):
    log = store.with_name(f"{store.name}-wal")
    return (log.stat().st_mtime_ns, log.stat().st_size) if log.exists() else None


def run_command(order):
    """In the forked process, which ends here."""
    code = 1
    try:
        os.setpgid(0, 0)  # both do, as either may be first
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        said = os.open(f"{order['log']}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        note_work(log)
        sys.argv = ["sdkernels", *order["arguments"]]
        from sdkernels.cli import main as command

        try:
            command()
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def note_work(log):
    """Write a line before each step of a training, each epoch of an ensemble, and each tile that is scored."""
    from sdkernels.engine import parts
    from sdkernels.lab.ensemble import EnsembleTrainer
    from sdkernels.lab.training import Trainer

    def noting(owner, name, words):
        original = getattr(owner, name)

        def noted(self, *arguments):
            os.write(log, (json.dumps(words(self, *arguments)) + "\n").encode())
            return original(self, *arguments)

        setattr(owner, name, noted)

    def data(trainer):
        return trainer.identity()["data"]

    noting(Trainer, "_take_step", lambda trainer, *_: ["step", data(trainer), trainer.seed, trainer.step])
    noting(EnsembleTrainer, "_train", lambda trainer, *_: ["epoch", data(trainer), trainer.epoch])
    noting(parts._Here, "_score_anew", lambda here, _job, part, batch, data: ["tile", here._key, part, data.hex()])
    parts.TILE_SECONDS = 0.02  # many tiles, of sizes that differ from run to run


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
