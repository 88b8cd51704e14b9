"""Texts of words between spaces."""

from pathlib import Path

from sdkernels.lab.readers.text import Vocabulary, read_tokens
from tests.fuzz.readers.reader import Reader

_SEEN = Vocabulary(["the", "cat", "<unk>", "<eos>"])


def _read(path: Path) -> None:
    tokens, vocabulary = read_tokens(path, hint="Get it")
    lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    words = [word for line in lines for word in [*line.split(), "<eos>"]]
    assert vocabulary.decode(tokens) == words
    assert len(set(vocabulary.words)) == len(vocabulary)
    known, _ = read_tokens(path, _SEEN, hint="Get it")
    assert _SEEN.decode(known) == [word if word in _SEEN else "<unk>" for word in words]


def _seeds() -> list[bytes]:
    return [b" the cat sat \n on the <unk> mat\n\n", "the caf\u00e9\u2028\u00a0cat \x1c\x00".encode(), b"the"]


READER = Reader("texts", "train.txt", _seeds, _read)
