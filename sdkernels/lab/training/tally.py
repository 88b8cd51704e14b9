"""The running sums of an epoch, and the watch for a loss that is no number."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Losses wait on an accelerator for so many steps, so that it need not be waited for at each.
_WAIT = 50


class DivergedError(RuntimeError):
    """Training has left the numbers: a loss or a weight is infinite or nan."""


@dataclass
class Tally:
    """Sums over an epoch's examples so far."""

    loss: float = 0.0
    right: int = 0
    examples: int = 0
    _waiting: list[tuple[int, int, Tensor, Tensor]] = field(default_factory=list)

    def add(self, epoch: int, step: int, loss: Tensor, right: Tensor, examples: int) -> None:
        """Count one step.

        Raises:
            DivergedError: the loss of this step, or of one of the steps before it, is not finite.
        """
        self._waiting.append((step, examples, loss, right))
        if loss.device.type == "cpu" or len(self._waiting) >= _WAIT:
            self.settle(epoch)

    def settle(self, epoch: int) -> None:
        """Count all steps that still wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        if len(waiting) == 1:
            losses, rights = [float(waiting[0][2])], [int(waiting[0][3])]
        else:
            losses = torch.stack([loss for *_, loss, _ in waiting]).tolist()
            rights = torch.stack([right for *_, right in waiting]).tolist()
        for (step, examples, *_), loss, right in zip(waiting, losses, rights, strict=True):
            if not math.isfinite(loss):
                raise DivergedError(diverged(f"the loss is {loss}", epoch, step))
            self.loss += loss * examples
            self.right += right
            self.examples += examples

    def record(self) -> dict[str, Any]:
        """As JSON holds it; only of a settled tally."""
        return {"loss": self.loss, "right": self.right, "examples": self.examples}


def diverged(what: str, epoch: int, step: int) -> str:
    """The message of a DivergedError."""
    return (
        f"{what} in epoch {epoch}, step {step}: training has diverged. Lower learning_rate, give clip_norm=1.0 or "
        "warmup=, or look for nan in the inputs. What was saved before is intact"
    )
