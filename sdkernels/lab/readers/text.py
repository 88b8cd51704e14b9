"""Text for language models, laid out as WikiText-2 and the Penn Treebank: words between spaces, line by line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdkernels.lab.readers.digits_tokens import WORDS, read_digits_tokens
from sdkernels.lab.readers.places import find_folder, read_whole

END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"
SPLITS = ("train", "validation", "test")


class Vocabulary:
    """Words and their numbers, counted from 0 by first appearance.

    Args:
        words: in the order of their numbers; a repeated word keeps its first one.

    Example:
        >>> vocabulary = Vocabulary(["the", "cat", "the", "<eos>"])
        >>> vocabulary.words, vocabulary.number("cat"), len(vocabulary), "dog" in vocabulary
        (('the', 'cat', '<eos>'), 1, 3, False)
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(dict.fromkeys(words))
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._numbers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary of {len(self)} words: {' '.join(self.words[:5])} ..."

    def number(self, word: str) -> int:
        """The word's number; of a word that is not in it, that of ``<unk>``.

        Raises:
            ValueError: neither the word nor ``<unk>`` is in it.
        """
        number = self._numbers.get(word, self._numbers.get(UNKNOWN))
        if number is None:
            raise ValueError(f"{word!r} is not among the {len(self)} words, and {UNKNOWN} is not either")
        return number

    def encode(self, words: Iterable[str]) -> Tensor:
        """The words' numbers, int64 ``[M]``.

        Raises:
            ValueError: neither a word nor ``<unk>`` is in it.
        """
        return torch.tensor([self.number(word) for word in words], dtype=torch.int64)

    def decode(self, tokens: Tensor | Sequence[int]) -> list[str]:
        """The words of numbers ``[M]``.

        Raises:
            ValueError: a number that no word has.
        """
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self):
            raise ValueError(f"tokens {min(numbers)}..{max(numbers)} must be within 0..{len(self) - 1}")
        return [self.words[number] for number in numbers]


def read_tokens(path: Path, vocabulary: Vocabulary | None = None, *, hint: str = "") -> tuple[Tensor, Vocabulary]:
    """Read a text file into one stream of tokens.

    Every line, empty ones too, gives its words, split at white space, and ``<eos>``. So counted, WikiText-2's texts
    have 2,088,628, 217,646 and 245,569 tokens, as published.

    Args:
        path: UTF-8.
        vocabulary: None makes one of this file's words, by first appearance; words that a given one does not have
            become ``<unk>``.
        hint: where to get the file; ends every error.

    Returns:
        int64 ``[M]`` and the vocabulary.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, empty, or a word that the vocabulary has not, nor ``<unk>``.
    """
    try:
        lines = read_whole(path, hint).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text at byte {error.start}. {hint}") from error
    if not lines[-1]:  # what follows the last line's end
        lines.pop()
    if not lines:
        raise ValueError(f"{path} holds no text. {hint}")
    words = [word for line in lines for word in (*line.split(), END_OF_LINE)]
    if vocabulary is None:
        vocabulary = Vocabulary(words)
    try:
        return vocabulary.encode(words), vocabulary
    except ValueError as error:
        raise ValueError(f"{path}: {error}; make the vocabulary of a text that has it. {hint}") from error


class TextData:
    """A text for a language model.

    Args:
        name: as asked for.
        train, validation, test: streams of tokens, int64 ``[M]``, or None: not there, and asking for it is an error.
        vocabulary: of all of them.
        hint: where to get what is missing.

    Attributes:
        name, train, validation, test, vocabulary: as given.
        present: which of ``"train"``, ``"validation"`` and ``"test"`` are there.

    Example:
        >>> vocabulary = Vocabulary(["a", "b", "<eos>"])
        >>> data = TextData("letters", vocabulary.encode(["a", "b", "<eos>"]), None, None, vocabulary)
        >>> data.train.tolist(), data.present
        ([0, 1, 2], ('train',))
    """

    def __init__(
        self,
        name: str,
        train: Tensor | None,
        validation: Tensor | None,
        test: Tensor | None,
        vocabulary: Vocabulary,
        *,
        hint: str = "",
    ) -> None:
        self.name, self.vocabulary, self._hint = name, vocabulary, hint
        given = zip(SPLITS, (train, validation, test), strict=True)
        self._streams = {split: tokens for split, tokens in given if tokens is not None}

    @property
    def present(self) -> tuple[str, ...]:
        return tuple(self._streams)

    @property
    def train(self) -> Tensor:
        return self._stream("train")

    @property
    def validation(self) -> Tensor:
        return self._stream("validation")

    @property
    def test(self) -> Tensor:
        return self._stream("test")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(tokens):,}" for split, tokens in self._streams.items())
        return f"TextData {self.name}: tokens: {sizes}; {len(self.vocabulary):,} words"

    def _stream(self, split: str) -> Tensor:
        if split not in self._streams:
            raise FileNotFoundError(
                f"{self.name} has no {split} text here, only {', '.join(self.present) or 'none'}. {self._hint}"
            )
        return self._streams[split]


@dataclass(frozen=True)
class _Layout:
    """Folders that may hold a text's files, and each split's file names."""

    folders: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    publisher: str


_STEMS = {"train": "train", "validation": "valid", "test": "test"}
_TEXTS = {
    "wikitext2": _Layout(
        ("wikitext2/wikitext-2", "wikitext-2", "wikitext2", ""),
        {split: (f"wiki.{stem}.tokens", f"{stem}.txt") for split, stem in _STEMS.items()},
        "WikiText-2's word-level archive, wikitext-2-v1.zip,",
    ),
    "ptb": _Layout(
        ("ptb/simple-examples/data", "simple-examples/data", "ptb", ""),
        {split: (f"ptb.{stem}.txt",) for split, stem in _STEMS.items()},
        "Mikolov's simple-examples.tgz (its data folder)",
    ),
}
DIGITS = "digits_tokens"
TEXT_NAMES = (*_TEXTS, DIGITS)


def load_text(name: str, data_dir: Path | None = None, *, words_of: str | None = None) -> TextData:
    """Load a text by name: those of its training, validation and test parts that are there.

    The vocabulary is of the training text's words by first appearance; where that is missing, of the validation text's,
    else of the test text's. Words of the other parts that it does not have become ``<unk>``.

    Args:
        name: ``"wikitext2"`` (``wiki.train.tokens`` or ``train.txt``, ...), ``"ptb"`` (``ptb.train.txt``, ...), or
            ``"digits_tokens"``, the images of scikit-learn's digits pixel by pixel: a training and a test text of
            18 words (:func:`~sdkernels.lab.readers.digits_tokens.read_digits_tokens`).
        data_dir: where the files are, in it or in a folder of the text's name; the digits need none.
        words_of: the part whose words are the vocabulary, whatever other parts there are: ``"validation"`` for a model
            that is trained on that text.

    Raises:
        ValueError: an unknown name, no ``data_dir``, or a damaged file.
        FileNotFoundError: no file at all, or not that of ``words_of``; another part that is missing is an error only
            when it is asked for.

    Example:
        >>> load_text("digits_tokens")
        TextData digits_tokens: tokens: train 93,405, test 23,400; 18 words
    """
    if name not in TEXT_NAMES:
        raise ValueError(f"there is no text {name!r}; there are {', '.join(TEXT_NAMES)}")
    if words_of is not None and words_of not in SPLITS:
        raise ValueError(f"words_of={words_of!r}: choose one of {', '.join(SPLITS)}")
    if name == DIGITS:
        pixels, held_out = read_digits_tokens()
        return _with_words_of(words_of, TextData(name, pixels, None, held_out, Vocabulary(WORDS)))
    layout = _TEXTS[name]
    hint = (
        f"Get it by `sdkernels data fetch {name} --data-dir DIR`, or put the files of {layout.publisher} into "
        f"DIR/{name}; then give --data-dir DIR"
    )
    if data_dir is None:
        raise ValueError(f"{name} is read from files. {hint}")
    every = [file for files in layout.files.values() for file in files]
    place = find_folder(Path(data_dir), layout.folders, every, hint)
    streams: dict[str, Tensor] = {}
    vocabulary: Vocabulary | None = None
    for split in sorted(SPLITS, key=lambda split: split != words_of):  # the first one makes the vocabulary
        path = next((place / file for file in layout.files[split] if (place / file).is_file()), None)
        if path is not None:
            streams[split], vocabulary = read_tokens(path, vocabulary, hint=hint)
    train, validation, test = map(streams.get, SPLITS)
    return _with_words_of(words_of, TextData(name, train, validation, test, vocabulary or Vocabulary([]), hint=hint))


def _with_words_of(words_of: str | None, data: TextData) -> TextData:
    """The same, if the part is there whose words its vocabulary must be."""
    if words_of is not None:
        getattr(data, words_of)
    return data
