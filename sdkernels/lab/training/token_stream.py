"""A language model's training data: one long text, read in pieces side by side (truncated back-propagation)."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor, nn


class TokenStreamFeed:
    """Tokens ``[M]`` as B pieces of equal length, of which every step reads the next T tokens.

    The model, ``model(tokens [b, T], state) -> (logits [b, T, V], state)``, starts an epoch with state None and carries
    it from step to step; gradients stop between steps. Every token of a piece but its first is predicted once an epoch;
    the last step may be shorter, and tokens that would not fill all pieces are left out at the end.

    Args:
        tokens: int64 ``[M]``.
        device: the model's.
        pieces: B.
        unroll: T.
    """

    def __init__(self, tokens: Tensor, device: torch.device, pieces: int, unroll: int) -> None:
        if tokens.dtype != torch.int64 or tokens.ndim != 1:
            raise ValueError(
                f"a token stream is int64 [M]; got {tokens.dtype} {tuple(tokens.shape)}. For examples with labels give "
                "(inputs, labels)"
            )
        length = len(tokens) // pieces
        if length < 2:
            raise ValueError(
                f"{len(tokens)} tokens in {pieces} pieces (batch_size) leave {length} a piece; at least 2 are needed"
            )
        if int(tokens.min()) < 0:
            raise ValueError(f"tokens hold {int(tokens.min())}; they count from 0")
        self._tokens = tokens[: pieces * length].view(pieces, length).to(device)
        self._unroll, self._all = unroll, tokens
        self.steps = -(-(length - 1) // unroll)
        self.classes_needed = int(tokens.max()) + 1

    @cached_property
    def _sha256(self) -> str:
        return hashlib.sha256(self._all.cpu().contiguous().numpy().tobytes()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Length and fingerprint."""
        return {"kind": "token stream", "tokens": len(self._all), "sha256": self._sha256}

    def batches(self, shuffle: Generator, epoch: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens ``[B, T]`` of steps ``start..stop`` and the tokens ``[B, T]`` after them; a text is not shuffled."""
        predicted = self._tokens.shape[1] - 1
        for begin in range(start * self._unroll, min(stop * self._unroll, predicted), self._unroll):
            end = min(begin + self._unroll, predicted)
            yield self._tokens[:, begin:end], self._tokens[:, begin + 1 : end + 1]

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same pieces in the same steps."""
        return self.batches(torch.Generator(), 0, 0, self.steps)

    def forward(self, model: nn.Module, inputs: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """Logits ``[b T, V]`` and the state for the next step, cut from the graph."""
        output = model(inputs, carried)
        if not (isinstance(output, tuple | list) and len(output) == 2 and isinstance(output[0], Tensor)):
            raise ValueError(
                f"a token stream needs a model(tokens [b, T], state) -> (logits [b, T, V], state); this one gives "
                f"{type(output).__name__}"
            )
        logits, state = output
        if logits.ndim != 3 or logits.shape[:2] != inputs.shape:
            raise ValueError(
                f"the model gives logits {tuple(logits.shape)} for tokens {tuple(inputs.shape)}; training needs "
                "[b, T, V], batch first"
            )
        return logits.flatten(0, 1), detach(state)


def detach(state: Any) -> Any:
    """The state without its graph, in copies that a later forward pass cannot overwrite.

    Raises:
        TypeError: a state that is not None, a tensor, or tuples and lists of such.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.detach().clone()
    if type(state) in (tuple, list):
        return type(state)(detach(part) for part in state)
    raise TypeError(f"a model's state must be None, a tensor, or tuples and lists of such; got {type(state).__name__}")


def flatten(state: Any) -> tuple[list[Tensor], Any]:
    """The state's tensors, and its structure as JSON holds it."""
    if state is None:
        return [], None
    if isinstance(state, Tensor):
        return [state], "tensor"
    parts = [flatten(part) for part in state]
    return [leaf for leaves, _ in parts for leaf in leaves], [type(state).__name__, *(s for _, s in parts)]


def unflatten(leaves: Iterator[Tensor], structure: Any) -> Any:
    """The opposite of :func:`flatten`."""
    if structure is None:
        return None
    if structure == "tensor":
        return next(leaves)
    parts = [unflatten(leaves, part) for part in structure[1:]]
    return tuple(parts) if structure[0] == "tuple" else parts
