"""A text as a language model reads it: a stream of tokens, and windows of it."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from sdkernels.lab.readers.text import Vocabulary


@dataclass(frozen=True, eq=False)
class TokenData:
    """One part of a text: what :class:`~sdkernels.lab.labelled.LabelledData` is to classifiers.

    Attributes:
        name: as asked for.
        tokens: int64 ``[M]``, in the text's order.
        vocabulary: of the model that reads it.

    Example:
        >>> from sdkernels.lab.datasets import load_text
        >>> text = load_text("digits_tokens")
        >>> data = TokenData("digits", text.test, text.vocabulary)
        >>> data.classes, data.first(66).tokens[-1].item()
        (18, 17)
    """

    name: str
    tokens: Tensor
    vocabulary: Vocabulary

    @property
    def classes(self) -> int:
        """V, the words among which a model chooses the next."""
        return len(self.vocabulary)

    def first(self, tokens: int) -> "TokenData":
        """The first so many tokens, with the whole vocabulary.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= tokens <= len(self.tokens):
            raise ValueError(f"{self.name} has {len(self.tokens)} tokens; asked for {tokens}")
        return replace(self, tokens=self.tokens[:tokens])

    @cached_property
    def sha256(self) -> str:
        """A fingerprint of tokens and words."""
        digest = hashlib.sha256(self.tokens.contiguous().numpy().data)
        digest.update("\n".join(self.vocabulary.words).encode())  # words have no white space
        return digest.hexdigest()


def token_windows(tokens: Tensor, steps: int, count: int | None = None, *, seed: int | None = None) -> Tensor:
    r"""Windows of a text, side by side in it and without overlap, for analyses of language models.

    .. math:: w_{n,t} = x_{T b_n + t}, \quad b_n \in \{0 .. \lfloor M / T \rfloor - 1\}

    so that what a model has read at step t of its windows are the tokens whose index is t modulo T.

    Args:
        tokens: x, int64 ``[M]``.
        steps: T, tokens of a window. For a classifier of the next token (:class:`~sdkernels.lab.models.NextToken`) take
            one more: ``windows[:, :-1]`` are its inputs, ``windows[:, -1]`` its labels.
        count: N, so many of them; None: all. Tokens that fill no window are left out at the end.
        seed: of a draw without replacement; None: spread evenly over the text, :math:`b_n = \lfloor n B / N \rfloor` of
            B windows.

    Returns:
        int64 ``[N, T]``, in the text's order.

    Raises:
        TypeError, ValueError: no stream of tokens, or not so many windows in it.

    Source:
        Morcos, Raghu, Bengio 2018, "Insights on representational similarity in neural networks with canonical
        correlation", appendix: activations by sequence step, tokens by their index modulo the unrolled steps.

    Example:
        >>> token_windows(torch.arange(13), 3).tolist()
        [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
        >>> token_windows(torch.arange(13), 3, 2).tolist()
        [[0, 1, 2], [6, 7, 8]]
    """
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.ndim != 1:
        what = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"tokens must be int64 [M], as load_text(...).test is; got {what}")
    for name, value in (("steps", steps), ("count", count)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (name == "count" and value is None):
            raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
    there = len(tokens) // steps
    if there < (count or 1):
        raise ValueError(f"{len(tokens)} tokens hold {there} windows of {steps} steps; asked for {count or 'all'}")
    windows = tokens[: there * steps].view(there, steps)
    if count is None:
        return windows.clone()
    if seed is None:
        return windows[torch.arange(count) * there // count]
    chosen = torch.randperm(there, generator=Generator().manual_seed(seed))[:count]
    return windows[chosen.sort().values]
