"""Text for language models: words, ends of lines, numbers by first appearance, and parts that are missing."""

import pytest
import torch

from sdkernels.lab.datasets import TEXT_NAMES, load_text
from sdkernels.lab.readers.text import TextData, Vocabulary, read_tokens

FILES = {
    "wikitext2": ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
    "ptb": ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
}
INNER = {"wikitext2": "wikitext-2", "ptb": "simple-examples/data"}  # as the publishers pack them
TRAIN, VALID, TEST = " \n = The cat = \n the cat <unk> sat\n", "sat the dog\n", "= cat =\n"


def write(folder, names, texts=(TRAIN, VALID, TEST)):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, texts, strict=True):
        if text is not None:
            (folder / name).write_text(text)
    return folder


class TestTokens:
    def read(self, tmp_path, text, vocabulary=None):
        (tmp_path / "text").write_bytes(text if isinstance(text, bytes) else text.encode())
        tokens, vocabulary = read_tokens(tmp_path / "text", vocabulary)
        assert tokens.dtype == torch.int64
        return tokens.tolist(), vocabulary

    def test_numbers_by_first_appearance_and_ends_of_lines(self, tmp_path):
        tokens, vocabulary = self.read(tmp_path, TRAIN)
        assert vocabulary.words == ("<eos>", "=", "The", "cat", "the", "<unk>", "sat")
        assert tokens == [0, 1, 2, 3, 1, 0, 4, 3, 5, 6, 0]
        assert vocabulary.decode(torch.tensor(tokens[-2:])) == ["sat", "<eos>"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a b\n", "a b <eos>"),
            ("a b", "a b <eos>"),
            ("\n", "<eos>"),
            (" ", "<eos>"),
            ("a\n\n\nb\n", "a <eos> <eos> <eos> b <eos>"),
            ("a \t b\r\nc\r\n", "a b <eos> c <eos>"),
            ("naïve 猫\n", "naïve 猫 <eos>"),
        ],
        ids=repr,
    )
    def test_lines(self, tmp_path, text, words):
        tokens, vocabulary = self.read(tmp_path, text)
        assert vocabulary.decode(tokens) == words.split()

    def test_words_that_a_given_vocabulary_lacks(self, tmp_path):
        vocabulary = Vocabulary(["<unk>", "cat", "<eos>"])
        tokens, same = self.read(tmp_path, "the cat\n", vocabulary)
        assert (tokens, same) == ([0, 1, 2], vocabulary)
        assert len(vocabulary) == 3
        with pytest.raises(ValueError, match=r"text: 'the' is not among the 2 words, and <unk> is not either"):
            self.read(tmp_path, "cat the\n", Vocabulary(["cat", "<eos>"]))

    def test_damage(self, tmp_path):
        with pytest.raises(ValueError, match="text holds no text"):
            self.read(tmp_path, "")
        with pytest.raises(ValueError, match="text is not UTF-8 text at byte 3"):
            self.read(tmp_path, b"caf\xe9 \n")
        with pytest.raises(FileNotFoundError, match=r"nowhere is missing\. get it"):
            read_tokens(tmp_path / "nowhere", hint="get it")


class TestVocabulary:
    def test_there_and_back(self):
        vocabulary = Vocabulary(["b", "a", "b", "<unk>", "c"])
        assert (vocabulary.words, len(vocabulary)) == (("b", "a", "<unk>", "c"), 4)
        assert vocabulary.encode(["c", "b", "zebra"]).tolist() == [3, 0, 2]
        assert vocabulary.decode([3, 0]) == ["c", "b"]
        assert vocabulary.encode([]).dtype == torch.int64
        assert vocabulary.decode([]) == []
        assert "a" in vocabulary
        assert "zebra" not in vocabulary

    def test_equal_by_words(self):
        assert Vocabulary("ab") == Vocabulary("aba")
        assert hash(Vocabulary("ab")) == hash(Vocabulary("aba"))
        assert Vocabulary("ab") != Vocabulary("ba")
        assert repr(Vocabulary("ab")) == "Vocabulary of 2 words: a b ..."

    @pytest.mark.parametrize("tokens", [[4], [-1], [0, 4, 1]])
    def test_numbers_of_no_word(self, tokens):
        with pytest.raises(ValueError, match=r"must be within 0\.\.3"):
            Vocabulary("abcd").decode(tokens)


@pytest.mark.parametrize("name", FILES)
class TestByName:
    def test_all_parts(self, tmp_path, name):
        write(tmp_path, FILES[name])
        data = load_text(name, tmp_path)
        assert data.present == ("train", "validation", "test")
        assert data.vocabulary.words == ("<eos>", "=", "The", "cat", "the", "<unk>", "sat")
        assert " ".join(data.vocabulary.decode(data.train)) == "<eos> = The cat = <eos> the cat <unk> sat <eos>"
        assert " ".join(data.vocabulary.decode(data.validation)) == "sat the <unk> <eos>"
        assert " ".join(data.vocabulary.decode(data.test)) == "= cat = <eos>"
        assert repr(data) == f"TextData {name}: tokens: train 11, validation 4, test 4; 7 words"

    def test_folders(self, tmp_path, name):
        for place in ("", name, INNER[name], f"{name}/{INNER[name]}"):
            write(tmp_path / "at" / place, FILES[name], (f"{place} <unk>\n", VALID, TEST))
            data = load_text(name, str(tmp_path / "at"))
            assert data.vocabulary.words[0] == (place or "<unk>"), "the innermost, most particular folder comes first"

    def test_missing_parts_are_errors_when_asked_for(self, tmp_path, name):
        write(tmp_path, FILES[name], (None, VALID + "<unk>", TEST))
        data = load_text(name, tmp_path)
        assert data.present == ("validation", "test")
        assert data.vocabulary.words == ("sat", "the", "dog", "<eos>", "<unk>"), "of the first part that is there"
        assert data.test.tolist() == [4, 4, 4, 3]
        says = (
            rf"{name} has no train text here, only validation, test\. Get it by `sdkernels data fetch {name} --data-dir"
        )
        with pytest.raises(FileNotFoundError, match=says):
            _ = data.train

    def test_a_part_whose_words_have_no_number(self, tmp_path, name):
        write(tmp_path, FILES[name], ("the cat\n", VALID, None))
        with pytest.raises(ValueError, match=rf"{FILES[name][1]}: 'sat' is not among the 3 words.*fetch {name}"):
            load_text(name, tmp_path)

    def test_the_part_whose_words_are_the_vocabulary(self, tmp_path, name):
        write(tmp_path, FILES[name], (TRAIN, VALID + "<unk>", TEST))
        data = load_text(name, tmp_path, words_of="validation")
        assert data.vocabulary.words == ("sat", "the", "dog", "<eos>", "<unk>")
        assert " ".join(data.vocabulary.decode(data.train)) == (
            "<eos> <unk> <unk> <unk> <unk> <eos> the <unk> <unk> sat <eos>"
        )
        assert data.test.tolist() == [4, 4, 4, 3]
        assert data.present == ("train", "validation", "test")
        with pytest.raises(ValueError, match="words_of='valid': choose one of train, validation, test"):
            load_text(name, tmp_path, words_of="valid")
        (tmp_path / FILES[name][1]).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name} has no validation text here, only train, test"):
            load_text(name, tmp_path, words_of="validation")

    def test_nothing_there(self, tmp_path, name):
        with pytest.raises(FileNotFoundError, match=rf"{FILES[name][0]}.*none is in .*fetch {name} --data-dir DIR"):
            load_text(name, tmp_path)
        with pytest.raises(ValueError, match=f"{name} is read from files.*fetch {name} --data-dir DIR"):
            load_text(name, None)


def test_short_names_of_wikitext(tmp_path):
    write(tmp_path, ("train.txt", "valid.txt", "wiki.test.tokens"))
    data = load_text("wikitext2", tmp_path)
    assert [len(data.train), len(data.validation), len(data.test)] == [11, 4, 4]


def test_other_names(tmp_path):
    assert TEXT_NAMES == ("wikitext2", "ptb", "digits_tokens")
    with pytest.raises(ValueError, match="no text 'enwik8'; there are wikitext2, ptb, digits_tokens"):
        load_text("enwik8", tmp_path)


def test_text_made_by_hand():
    vocabulary = Vocabulary("ab")
    data = TextData("letters", None, None, vocabulary.encode("abba"), vocabulary)
    assert (data.present, data.test.tolist()) == (("test",), [0, 1, 1, 0])
    with pytest.raises(FileNotFoundError, match="letters has no validation text here, only test"):
        _ = data.validation


def test_the_publishers_files(data_dir):
    if not (data_dir / "wikitext2").is_dir():
        pytest.skip("WikiText-2 is not there")
    data = load_text("wikitext2", data_dir)
    assert (len(data.validation), len(data.test)) == (217_646, 245_569)  # as published, with ends of lines
    if "train" in data.present:
        assert (len(data.train), len(data.vocabulary)) == (2_088_628, 33_278)
    assert " ".join(data.vocabulary.decode(data.test[:9])) == "<eos> = Robert <unk> = <eos> <eos> Robert <unk>"
