"""A worker of :mod:`sdkernels.lab.cluster`: what runs inside its process, and what it sends."""

import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from sdkernels.engine.checks import SdkernelsWarning


class Message(NamedTuple):
    """Something that the task's function gave."""

    content: bytes


class Failure(NamedTuple):
    """An exception that left the task's function, or the one that was to make it."""

    content: bytes | None  # pickled; None: it cannot be
    text: str  # with the lines where it came from

    def as_exception(self) -> BaseException:
        """The exception itself; the worker's lines are its cause."""
        error: BaseException | None = None
        if self.content is not None:
            try:
                error = pickle.loads(self.content)
            except Exception:  # a class that only the worker has, or whose arguments are not what it says
                error = None
        if not isinstance(error, BaseException):
            error = RuntimeError(self.text.strip().splitlines()[-1])
        error.__cause__ = WorkerTraceback(f"\n\n{self.text}")
        return error


class Warned(NamedTuple):
    """A warning for the user."""

    text: str


class Done(NamedTuple):
    """The task's last word: a stream that ends without it was cut off."""


class WorkerTraceback(Exception):  # noqa: N818 - it is no error by itself
    """Where an exception came from, in the worker."""


class ClusterWorker:
    """The actor.

    Args:
        cpus: threads of torch.
        has_gpu: whether it was given one; if not, CUDA sees none either.
    """

    def __init__(self, cpus: int, has_gpu: bool) -> None:
        if not has_gpu:  # Ray hides GPUs only from those who asked for some
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(cpus)
        self._do: Callable[[Any], Iterator[Any]] | None = None

    def begin(self, start: bytes) -> Done | Failure:
        """Make the function that does tasks."""
        self._do = None  # lets go of what an earlier call needed
        try:
            self._do = pickle.loads(start)()
        except Exception as error:
            return _failure(error)
        return Done()

    def do(self, argument: bytes) -> Iterator[Message | Warned | Failure | Done]:
        """Do a task."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("default")
            last: Done | Failure = Done()
            try:
                if self._do is None:
                    raise RuntimeError("this worker was given a task before it had begun")
                for message in self._do(pickle.loads(argument)):
                    yield Message(dumps(message))
            except Exception as error:
                last = _failure(error)
        for warning in seen:
            if issubclass(warning.category, SdkernelsWarning):
                yield Warned(str(warning.message))
        yield last


def dumps(value: Any) -> bytes:
    """Pickled by value where it is defined where no other process can import it."""
    from ray import cloudpickle

    content: bytes = cloudpickle.dumps(value)
    return content


def _failure(error: BaseException) -> Failure:
    text = "".join(traceback.format_exception(error))
    try:
        return Failure(dumps(error), text)
    except Exception:  # it holds what cannot be sent
        return Failure(None, text)
