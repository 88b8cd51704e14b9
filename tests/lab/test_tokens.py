"""Tokens of texts: the digits pixel by pixel, and windows of a text."""

import pytest
import torch
from sklearn.datasets import load_digits

from sdkernels.lab.datasets import TEXT_NAMES, load_text
from sdkernels.lab.models import NextToken, lstm_language_model
from sdkernels.lab.readers.text import Vocabulary
from sdkernels.lab.tokens import TokenData, token_windows
from sdkernels.lab.training import TrainingOptions, evaluate, train


class TestDigits:
    def test_every_pixel_is_a_token(self):
        text, images = load_text("digits_tokens", None), load_digits().images
        assert "digits_tokens" in TEXT_NAMES
        assert text.present == ("train", "test")
        assert (len(text.train), len(text.test)) == (1437 * 65, 360 * 65)
        expected = []
        for image in images:
            expected.append(17)
            for row in image:
                expected += [int(pixel) for pixel in row]
        assert torch.cat([text.train, text.test]).tolist() == expected
        assert text.train.dtype == text.test.dtype == torch.int64

    def test_words_are_intensities(self):
        text = load_text("digits_tokens")
        assert text.vocabulary.words == (*(str(pixel) for pixel in range(17)), "<image>")
        assert text.vocabulary.decode(text.test[64:67]) == ["0", "<image>", "0"]
        assert text.train.unique().tolist() == text.test.unique().tolist() == [*range(18)]

    def test_there_is_no_validation_text(self):
        with pytest.raises(FileNotFoundError, match="digits_tokens has no validation text here, only train, test"):
            load_text("digits_tokens", words_of="validation")


class TestWindows:
    @pytest.mark.parametrize(("length", "steps"), [(12, 4), (13, 4), (15, 4), (5, 5), (7, 1)])
    def test_all_of_them(self, length, steps):
        tokens = torch.arange(100, 100 + length)
        windows = token_windows(tokens, steps)
        expected = []
        for begin in range(0, length, steps):
            if begin + steps <= length:
                expected.append([100 + begin + step for step in range(steps)])
        assert windows.tolist() == expected
        assert windows.dtype == torch.int64

    def test_a_column_has_the_tokens_of_one_index_modulo_the_steps(self):
        tokens = load_text("digits_tokens").test
        for windows in (token_windows(tokens, 20), token_windows(torch.arange(999), 20, 30, seed=1)):
            assert windows.shape[1] == 20
        for step, column in enumerate(token_windows(tokens, 20).T):
            assert column.equal(tokens[step::20][: len(tokens) // 20])
        for step, column in enumerate(token_windows(torch.arange(999), 20, 30, seed=1).T):
            assert (column % 20).tolist() == [step] * 30

    def test_some_of_them_are_spread_evenly(self):
        assert (token_windows(torch.arange(103), 10, 3)[:, 0] // 10).tolist() == [0, 3, 6]
        assert (token_windows(torch.arange(103), 10, 4)[:, 0] // 10).tolist() == [0, 2, 5, 7]
        assert token_windows(torch.arange(103), 10, 10).equal(token_windows(torch.arange(103), 10))

    def test_drawn_ones_are_different_and_in_order(self):
        drawn = token_windows(torch.arange(1000), 10, 40, seed=5)
        begins = drawn[:, 0].tolist()
        assert begins == sorted({*begins})
        assert all(begin % 10 == 0 for begin in begins)
        assert drawn.equal(token_windows(torch.arange(1000), 10, 40, seed=5))
        assert not drawn.equal(token_windows(torch.arange(1000), 10, 40, seed=6))
        assert max(begins) > 700

    def test_they_are_copies(self):
        tokens = torch.zeros(12, dtype=torch.int64)
        token_windows(tokens, 3)[:] = 1
        assert not tokens.any()

    def test_inputs_and_labels_of_a_classifier(self):
        windows = token_windows(load_text("digits_tokens").test, 65, 8)
        assert windows[:, 0].tolist() == [17] * 8  # whole images
        model = NextToken(lstm_language_model(18, embedding=4, hidden=4, dropout=0.0, seed=0)).eval()
        assert model(windows[:, :-1]).shape == (8, 18)

    @pytest.mark.parametrize(
        ("arguments", "error", "says"),
        [
            ((torch.arange(9), 0), ValueError, "steps=0 must be a whole number, at least 1"),
            ((torch.arange(9), 2.0), ValueError, "steps=2.0 must be"),
            ((torch.arange(9), True), ValueError, "steps=True must be"),
            ((torch.arange(9), 2, 0), ValueError, "count=0 must be"),
            ((torch.arange(9), 2, 5), ValueError, "9 tokens hold 4 windows of 2 steps; asked for 5"),
            ((torch.arange(9), 10), ValueError, "9 tokens hold 0 windows of 10 steps; asked for all"),
            ((torch.arange(9.0), 2), TypeError, r"tokens must be int64 \[M\].*got torch.float32 \[9\]"),
            ((torch.arange(8).view(2, 4), 2), TypeError, r"got torch.int64 \[2, 4\]"),
            (([1, 2, 3], 2), TypeError, "got list"),
        ],
        ids=str,
    )
    def test_that_there_are_not(self, arguments, error, says):
        with pytest.raises(error, match=says):
            token_windows(*arguments)


class TestTokenData:
    data = TokenData("letters", torch.arange(60) % 3, Vocabulary("abc"))

    def test_the_first_tokens(self):
        first = self.data.first(7)
        assert first.tokens.tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert (first.classes, first.vocabulary) == (3, self.data.vocabulary)
        for tokens in (0, 61):
            with pytest.raises(ValueError, match=f"letters has 60 tokens; asked for {tokens}"):
                self.data.first(tokens)

    def test_fingerprints(self):
        same = TokenData("others", torch.arange(60) % 3, Vocabulary("abc"))
        assert same.sha256 == self.data.sha256
        assert TokenData("letters", torch.arange(60) % 3, Vocabulary("abd")).sha256 != self.data.sha256
        assert TokenData("letters", torch.arange(60) % 2, Vocabulary("abc")).sha256 != self.data.sha256
        assert self.data.first(59).sha256 != self.data.sha256

    def test_it_is_trained_on_as_its_tokens_are(self):
        ends = []
        for data in (self.data, self.data.tokens):
            model = lstm_language_model(3, embedding=4, hidden=4, layers=1, dropout=0.1, seed=0)
            options = TrainingOptions(epochs=2, batch_size=4, unroll=5, learning_rate=0.01)
            ends.append((train(model, data, options, seed=1), evaluate(model, data), model.out.weight))
        assert ends[0][:2] == ends[1][:2]
        assert ends[0][2].equal(ends[1][2])
