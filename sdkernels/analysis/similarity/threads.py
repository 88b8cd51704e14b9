"""Small decompositions, which gain little by several threads each, shared among threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

GivenT = TypeVar("GivenT")
MadeT = TypeVar("MadeT")


def in_threads(function: Callable[[GivenT], MadeT], given: Sequence[GivenT], device: torch.device) -> list[MadeT]:
    """What a function makes of each, in order: on a CPU in as many threads as torch uses, each of them with one."""
    threads = min(torch.get_num_threads(), len(given))
    if device.type != "cpu" or threads < 2:
        return [function(one) for one in given]
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, given))
    finally:
        torch.set_num_threads(before)  # of threads that others start
