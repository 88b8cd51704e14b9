"""A bar over a sweep's networks and results, in which a training under way counts by how far it is."""

from typing import Any

from tqdm.auto import tqdm

from sdkernels.lab.sweep.network import Message
from sdkernels.lab.sweep.spec import Sweep

_FORM = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f} of {total} [{elapsed}, {remaining} left{postfix}]"


class Progress:
    """The bar; use it as a context.

    Args:
        sweep: what is run.
        pieces: networks and results, of which so many are ``finished``.
        show: whether there is a bar.
    """

    def __init__(self, sweep: Sweep, pieces: int, finished: int, show: bool) -> None:
        self._networks, self._groups = sweep.networks, sweep.groups
        self._finished = finished
        self._begun: dict[int, float] = {}  # trainings under way: how much of their pieces is done
        self._bar = tqdm(
            total=pieces, initial=finished, desc=sweep.name, bar_format=_FORM, disable=not show, mininterval=0.2
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def see(self, number: int, message: Message) -> None:
        """Show what a group of networks has got done."""
        if message.what == "state":
            self._begun[number] = message.done * len(self._groups[number])
        else:
            self._finished += message.what != "failure"
            if message.what in ("network", "failure") and number in self._begun:
                self._begun[number] = max(0.0, self._begun[number] - 1)
        now = min(self._bar.total or 0, self._finished + sum(self._begun.values()))
        self._bar.set_postfix_str(self._words(number, message), refresh=False)
        self._bar.update(now - self._bar.n)

    def _words(self, number: int, message: Message) -> str:
        group = self._groups[number]
        who = f"network {message.place}" if len(group) == 1 else f"networks {_told(group)}"
        if message.what == "condition":
            return f"network {message.place}: {message.name}"
        history: list[dict[str, Any]] = message.record.get("history", [])
        if message.what == "failure" or not history:
            return f"{who}: {'has failed' if message.what == 'failure' else 'begun'}"
        training = self._networks[message.place].training
        of = f" of {training.epochs}" if training.epochs is not None else ""
        accuracy = history[-1]["accuracy"]
        least = min(accuracy) if isinstance(accuracy, (list, tuple)) else accuracy
        return f"{who}: epoch {history[-1]['epoch']}{of}, accuracy {least:.4f}"


def _told(places: list[int]) -> str:
    if places == [*range(places[0], places[-1] + 1)]:
        return f"{places[0]} to {places[-1]}"
    return ", ".join(map(str, places))
