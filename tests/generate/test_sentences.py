"""Texts in pieces: nothing lost, no word cut that fits, as few and as even as the limit allows."""

import random
import re

import pytest

from tessera.generate.long_form.text_splitting import split_text


@pytest.mark.sample(20)
@pytest.mark.parametrize("seed", range(60))
def test_laws(seed):
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcde", k=draw.randint(1, 7))) for _ in range(draw.randint(1, 40))]
    text = " ".join(word + draw.choices(["", ".", ",", "?!", ";", '."'], [6, 1, 1, 1, 1, 1])[0] for word in words)
    limit = draw.randint(3, 60)
    cut = []
    pieces = split_text(text, limit, cut_words=cut)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", ""), "nothing is lost"
    assert all(len(piece) <= limit for piece in pieces)
    fit = [word for word in text.split() if len(word) <= limit]
    said = " ".join(pieces).split()
    assert all(word in said for word in fit) and all(len(word) > limit for word in cut), "no word is cut that fits"
    assert len(fit) < len(text.split()) or said == text.split()
    if len(text) <= limit:
        assert pieces == [text]


@pytest.mark.parametrize("count", range(2, 14))
def test_equal_words_are_spread_evenly(count):
    pieces = split_text(" ".join(["word"] * count), 24)  # five words fit
    sizes = [len(piece.split()) for piece in pieces]
    assert len(sizes) == -(-count // 5)
    assert max(sizes) == -(-count // len(sizes))


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("One two. Three, four five six.", 12, ["One two.", "Three,", "four five", "six."]),
        ("It is 3.14, not 1,000.5 at all.", 12, ["It is 3.14,", "not 1,000.5", "at all."]),
        ('He said "go." She went.', 14, ['He said "go."', "She went."]),
        ("I saw Dr. Who. He left.", 16, ["I saw Dr. Who.", "He left."]),
        ("J. R. Ewing came, e.g. late.", 22, ["J. R. Ewing came,", "e.g. late."]),
        ("He met Prof.\nShe left.", 14, ["He met Prof.", "She left."]),
        ("a b c d", 1, ["a", "b", "c", "d"]),
        ("incomprehensibilities", 5, ["incom", "preh", "ensi", "bili", "ties"]),
        ("see https://example.com/a_long-path now", 12, ["see", "https://", "example.com/", "a_long-path", "now"]),
        ("e\u0301" * 4, 5, ["e\u0301e\u0301", "e\u0301e\u0301"]),
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", 4, ["\u0e2a\u0e27\u0e31", "\u0e2a\u0e14\u0e35"]),
        ("\U0001f468\u200d\U0001f469", 1, ["\U0001f468\u200d\U0001f469"]),
        ("first line\nsecond line", 12, ["first line", "second line"]),
        ("今天天气很好。我们去公园吧。", 8, ["今天天气很好。", "我们去公园吧。"]),
        ("今天天气很好", 4, ["今天天", "气很好"]),
        ("  short  ", 20, ["short"]),
    ],
)
def test_examples(text, limit, pieces):
    assert split_text(text, limit) == pieces


def test_lengths_are_counted_as_asked_and_punctuation_alone_is_no_piece():
    def letters(piece):
        return len(re.sub(r"[^a-z]", "", piece))

    assert split_text("abc. ... def. !", 3, letters) == ["abc. ...", "def. !"]
    with pytest.raises(ValueError, match="at least 1, found 0"):
        split_text("a", 0)
