"""Workers on several machines, or several processes of this one, by Ray."""

import importlib
import os
import socket
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from sdkernels.analysis.extras import require
from sdkernels.lab.cluster.dispatch import Crew
from sdkernels.lab.cluster.worker import ClusterWorker

LOOPBACK = "127.0.0.1"


class RayWorkers:
    """Processes that do the work of a call, for its ``workers=``; close them, or use them as a context.

    The work is cut into tasks of some examples and some configurations. A worker that is lost, because it was killed,
    ran out of memory, or its machine went away, is replaced, and its unfinished tasks are done again; an exception
    raised by a task is raised here as it is, at once. This process alone adds up what comes back, and writes the
    ledger, if there is one.

    Args:
        address: ``"local"`` starts Ray here, heard by this machine alone; else a cluster's, as ``"auto"`` on one of its
            machines or ``"HOST:6379"``. If this process is connected to Ray already, that is used, whatever is given.
        count: of workers; by default as many as the machine's or the cluster's free processors and GPUs allow.
        cpus: processors of a worker, and threads of its torch.
        gpus: GPUs of a worker, or a part of one that several share, as 0.5. With 0 workers see no GPU, and compute on
            processors, whatever device the model is on here.
        retries: how often a task may lose its worker and be done again.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an argument out of range, or workers that no machine has room for.
        ConnectionError: no cluster at this address.

    Example:
        >>> import sdkernels as sd
        >>> from sdkernels.lab.models import mlp
        >>> data = torch.rand(64, 8), torch.arange(64) % 3
        >>> with RayWorkers("local", count=2) as workers:  # doctest: +SKIP
        ...     sd.unit_importance(mlp(8, (16,), 3, seed=0).eval(), "relu1", data, workers=workers)
    """

    count: int
    sharing: int

    def __init__(
        self, address: str = "local", *, count: int | None = None, cpus: int = 1, gpus: float = 0.0, retries: int = 3
    ) -> None:
        _check(address, count, cpus, gpus, retries)
        ray = require("ray", "work on several machines")
        self._closing = ExitStack()
        if not ray.is_initialized():
            if address == "local":
                count = _start_here(ray, count, cpus, gpus)
            else:
                _connect(ray, address)
            self._closing.callback(ray.shutdown)
            self._closing.enter_context(_no_essays())
        try:
            self.count, self.sharing = _room(ray, count, cpus, gpus)
        except BaseException:
            self._closing.close()
            raise
        actor = ray.remote(ClusterWorker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self._crew: Crew | None = Crew(ray, lambda: actor.remote(cpus, gpus > 0), self.count, retries)
        self._closing.callback(self._crew.dismiss)

    def __enter__(self) -> "RayWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        self._crew = None
        self._closing.close()

    def run(
        self, start: Callable[[], Callable[[Any], Iterator[Any]]], tasks: Iterable[tuple[Hashable, Callable[[], Any]]]
    ) -> Iterator[tuple[Hashable, Any]]:
        """Do tasks, one call after the other; see :class:`sdkernels.engine.keeping.Workers`.

        ``start``, the arguments and the messages are pickled, functions and classes of ``__main__`` by value. Two tasks
        a worker are read and in flight at once.

        Raises:
            WorkerLostError: a task lost its worker more than ``retries`` times.
        """
        if self._crew is None:
            raise RuntimeError("these workers are closed")
        return self._crew.run(start, tasks)


def _check(address: str, count: int | None, cpus: int, gpus: float, retries: int) -> None:
    if not isinstance(address, str) or not address:
        raise ValueError(f"address={address!r}: give 'local', 'auto' or HOST:PORT")
    if address.startswith("ray://"):
        raise ValueError(
            f"address={address!r}: Ray's client cannot pass on messages as they come; run this on a machine of the "
            "cluster, with address='auto'"
        )
    for name, value, least in (("count", count, 1), ("cpus", cpus, 1), ("retries", retries, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value!r} must be an int of at least {least}")
    if isinstance(gpus, bool) or not isinstance(gpus, (int, float)) or not 0 <= gpus < float("inf"):
        raise ValueError(f"gpus={gpus!r} must be a number of at least 0")
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"gpus={gpus!r}: a worker gets a part of one GPU, or whole ones")


def _start_here(ray: Any, count: int | None, cpus: int, gpus: float) -> int:
    """Ray on this machine, with room for the workers; how many these are."""
    devices = torch.cuda.device_count() if gpus else 0
    if count is None:
        count = max(1, len(os.sched_getaffinity(0)) // cpus)
        if gpus:
            count = min(count, _shares(devices, gpus))
    if gpus and count > _shares(devices, gpus):
        raise ValueError(f"{max(count, 1)} workers of {gpus} GPUs: this machine has {devices} that CUDA can use")
    with _heard_here_alone():
        ray.init(
            address="local",
            num_cpus=count * cpus,
            num_gpus=devices,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address=LOOPBACK,
        )
    return count


@contextmanager
def _heard_here_alone() -> Iterator[None]:
    """While Ray is started within: it listens on the loopback address, and reports its use to nobody.

    Nor do its workers give way to all other processes, as they would by default.

    Ray puts the machine's outer address in the place of the loopback one where it takes several machines for possible,
    which it says by a constant and, to the processes that it starts, by a variable.
    """
    constants: Any = importlib.import_module("ray._private.ray_constants")
    wanted = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    possible = constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = possible
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _connect(ray: Any, address: str) -> None:
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # Ray would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(f"address={address!r}: no Ray cluster answers there ({error})") from error


@contextmanager
def _no_essays() -> Iterator[None]:
    """Ray prints a text on standard output for every lost worker; the user hears of it by a warning instead."""
    worker: Any = importlib.import_module("ray._private.worker")
    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    yield
    worker._worker_logs_enabled = before


def _shares(devices: float, gpus: float) -> int:
    """Workers that so many GPUs are enough for; those that share one do not share two."""
    return int(devices) * int(1 / gpus + 1e-9) if gpus < 1 else int(devices / gpus)


def _room(ray: Any, count: int | None, cpus: int, gpus: float) -> tuple[int, int]:
    """How many workers there are to be, of those that are free if nothing was said; and at most on a device's memory.

    Raises:
        ValueError: no machine has room for one.
    """

    def fit(resources: dict[str, float]) -> int:
        fitting = int(resources.get("CPU", 0) / cpus)
        return min(fitting, _shares(resources.get("GPU", 0), gpus)) if gpus else fitting

    fits = [fit(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    if not any(fits):
        wanted = f"{cpus} processors and {gpus} GPUs" if gpus else f"{cpus} processors"
        raise ValueError(f"a worker needs {wanted}; no machine of the cluster has them: {ray.cluster_resources()}")
    free = min(sum(fits), fit(ray.available_resources()))
    count = count if count is not None else max(free, 1)
    return count, min(count, _shares(1, gpus) or 1 if gpus else max(fits))
