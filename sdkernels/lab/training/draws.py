"""Random numbers of a training run that take no generator: dropout draws from torch's global ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Draws:
    """The states of torch's default generators, on the CPU and on the model's device, as one run has them.

    Within :meth:`inside` they are the global ones; outside, the caller's are as they were.

    Args:
        seed: where they start.
        device: the model's; of accelerators, CUDA's state alone is kept.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._states = {"cpu": torch.Generator().manual_seed(seed).get_state()}
        self._cuda: list[torch.device] = []
        if device.type == "cuda":
            self._cuda = [device]
            self._states["cuda"] = torch.Generator(device).manual_seed(seed).get_state()
        self._are_inside = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Draw from this run's generators."""
        with torch.random.fork_rng(devices=self._cuda):
            self._put()
            self._are_inside = True
            try:
                yield
            finally:
                self._states = self.states()
                self._are_inside = False

    def states(self) -> dict[str, Tensor]:
        """uint8 tensors on the CPU, by kind of device."""
        if not self._are_inside:
            return {name: state.clone() for name, state in self._states.items()}
        now = {"cpu": torch.get_rng_state()}
        return {**now, "cuda": torch.cuda.get_rng_state(self._cuda[0])} if self._cuda else now

    def set_states(self, states: dict[str, Tensor]) -> None:
        """Go on from there."""
        self._states = {name: states[name].clone() for name in self._states}
        if self._are_inside:
            self._put()

    def _put(self) -> None:
        torch.set_rng_state(self._states["cpu"])
        if self._cuda:
            torch.cuda.set_rng_state(self._states["cuda"], self._cuda[0])
