"""The recurrent language model of the canonical-correlation experiments."""

from torch import Tensor, nn

from sdkernels.lab.seeds import drawing_from

_RANGE = 0.1  # of the embedding's and the output's weights

State = tuple[tuple[Tensor, Tensor], ...]


class LSTMLanguageModel(nn.Module):
    """``embedding, lstm1, lstm2, ..., dropout, out``; see :func:`lstm_language_model`."""

    def __init__(
        self, vocabulary: int, *, embedding: int, hidden: int, layers: int, dropout: float, tied: bool, seed: int
    ) -> None:
        super().__init__()
        if min(vocabulary, embedding, hidden, layers) < 1:
            raise ValueError(f"{vocabulary=}, {embedding=}, {hidden=} and {layers=} must each be at least 1")
        last = embedding if tied else hidden
        sizes = [embedding, *[hidden] * (layers - 1), last]
        self._layers = tuple(f"lstm{i}" for i in range(1, layers + 1))
        with drawing_from(seed):
            self.embedding = nn.Embedding(vocabulary, embedding)
            for name, before, after in zip(self._layers, sizes, sizes[1:], strict=False):
                self.add_module(name, nn.LSTM(before, after, batch_first=True))
            self.dropout = nn.Dropout(dropout)
            self.out = nn.Linear(last, vocabulary)
            nn.init.uniform_(self.embedding.weight, -_RANGE, _RANGE)
            if tied:
                self.out.weight = self.embedding.weight
            else:
                nn.init.uniform_(self.out.weight, -_RANGE, _RANGE)
            nn.init.zeros_(self.out.bias)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the LSTM layers, the first at the bottom."""
        return self._layers

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits ``[B, T, V]`` of the token behind each of ``tokens`` int64 ``[B, T]``, and the state after the last.

        ``state`` holds (h, c), each ``[1, B, F]``, of every layer; None is all zero. Detach what one call gives before
        the next takes it, or gradients reach back through all that was read.
        """
        features, state = self.features(tokens, state)
        return self.out(features), state

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """What ``out`` reads, ``[B, T, F]``, and the state; arguments as for :meth:`forward`."""
        if state is not None and len(state) != len(self._layers):
            raise ValueError(f"a state of {len(state)} layers for a model of {len(self._layers)}")
        x = self.dropout(self.embedding(tokens))
        after = []
        for i, name in enumerate(self._layers):
            x, own = self.get_submodule(name)(x, None if state is None else state[i])
            after.append(own)
            x = self.dropout(x)
        return x, tuple(after)


class NextToken(nn.Module):
    """A language model as a classifier: logits ``[N, V]`` of the token behind the last one of ``[N, T]``.

    Analyses take classifiers; examples are pieces of text, and labels the tokens that follow them. The state starts at
    zero with each piece. Layers are named ``model.lstm1``, ...; as an LSTM returns a tuple, analyses need ``select=0``.

    Args:
        model: trained or not; shared, not copied.

    Example:
        >>> import torch, sdkernels as sd
        >>> model = NextToken(lstm_language_model(20, embedding=4, hidden=8, layers=2, dropout=0.0, seed=0)).eval()
        >>> tokens = torch.arange(24).reshape(4, 6) % 20
        >>> pieces, following = tokens[:, :-1], tokens[:, -1]
        >>> curve = sd.cumulative_ablation(
        ...     model, ["model.lstm1", "model.lstm2"], (pieces, following), select=0, orders=2, points=3, seed=0
        ... )
        >>> curve.points
        tensor([ 0,  8, 16])
    """

    def __init__(self, model: LSTMLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, T] -> [N, V]``; the other positions' logits, the bulk of the work, are not computed."""
        return self.model.out(self.model.features(tokens)[0][:, -1])  # type: ignore[no-any-return]


def lstm_language_model(
    vocabulary: int,
    *,
    embedding: int,
    hidden: int,
    layers: int = 3,
    dropout: float,
    tied: bool = False,
    seed: int,
) -> LSTMLanguageModel:
    """An LSTM that predicts each next token: ``embedding, lstm1, ..., dropout, out``.

    Each layer is a module of its own, so that its output ``[N, T, F]`` is a site; it returns ``(output, (h, c))``, so
    give ``select=0`` to analyses, and wrap the model in :class:`NextToken`. ``dropout`` works on what goes up, never on
    what goes on in time: on the embedded tokens and on each layer's output. Embedding and output weights are drawn from
    [-0.1, 0.1], the output's bias is 0, and the LSTMs' weights are from [-1/sqrt(F), 1/sqrt(F)].

    Args:
        vocabulary: V, tokens are 0 .. V - 1; the model takes int64 ``[B, T]`` and gives logits ``[B, T, V]`` and a
            state, which continues the text.
        embedding: size of an embedded token.
        hidden: F, units of each layer; of the last, ``embedding`` units if ``tied``.
        layers: LSTM layers.
        dropout: probability, 0..1.
        tied: the output's weights are the embedding's.
        seed: of the initialisation; the global random state is left as it was.

    Raises:
        ValueError: a size below 1.

    Source:
        Zaremba, Sutskever, Vinyals 2014, "Recurrent neural network regularization": where dropout stands. Merity,
        Keskar, Socher 2018, "Regularizing and optimizing LSTM language models", section 5, and its implementation:
        the ranges, and the last layer's size when tied. Press, Wolf 2017, "Using the output embedding to improve
        language models": tying.

    Example:
        >>> import torch
        >>> model = lstm_language_model(50, embedding=8, hidden=16, dropout=0.2, seed=0).eval()
        >>> logits, state = model(torch.zeros(2, 5, dtype=torch.int64))
        >>> logits.shape, len(state)
        (torch.Size([2, 5, 50]), 3)
    """
    return LSTMLanguageModel(
        vocabulary, embedding=embedding, hidden=hidden, layers=layers, dropout=dropout, tied=tied, seed=seed
    )
