"""Times of the words of generated speech, and subtitles of them."""

import random
import re

import pytest
import torch

from tessera.tokenize.alignment.spoken_text import SpokenText, TimedWord, join_spoken, join_units, spoken_text
from tessera.tokenize.alignment.subtitles import MAX_CHARACTERS, to_srt
from tessera.tokenize.text.character_text import CharacterTextConfig
from tessera.tokenize.text.registry import make_text

READER = make_text(CharacterTextConfig(), ["hello, world"])


@pytest.mark.parametrize("seed", range(10))
def test_times_are_those_counted_frame_by_frame(seed):
    chance = random.Random(seed)
    units = READER.units("hello, world")
    frames = [chance.randint(0 if unit in "|," else 1, 4) for unit in units]
    of_frame = [i for i, count in enumerate(frames) for _ in range(count)]
    found = spoken_text(READER, "hello, world", torch.tensor(of_frame), 40.0)
    assert found.units == tuple(units) and found.frames == tuple(frames)
    for word, letters in zip(found.words, ("hello", "world"), strict=True):
        own = [t for t, i in enumerate(of_frame) if units[i] in letters and (i < 7) == (letters == "hello")]
        assert word.start == own[0] / 40 and word.end == (own[-1] + 1) / 40
    assert [word.word for word in found.words] == ["hello,", "world"]


def test_joined_texts_follow_each_other():
    one = SpokenText(("a",), (2,), (TimedWord("a", 0.0, 0.5),))
    both = join_spoken([one, one], [0.0, 1.5])
    assert both.units == ("a", "a") and both.words == (TimedWord("a", 0.0, 0.5), TimedWord("a", 1.5, 2.0))
    units = join_units([torch.tensor([[1, 2]]), None, torch.tensor([[3]])])
    assert units is not None and units.tolist() == [[1, 2], [3, -1]]
    assert join_units([None]) is None


def test_a_file_of_subtitles():
    words = [
        TimedWord("Hello,", 0.1, 0.5),
        TimedWord("world!", 0.6, 1.0004),
        TimedWord("Once", 1.1, 1.2),
        TimedWord("more", 3661.0, 3661.5),
    ]
    assert to_srt(words) == (
        "1\n00:00:00,100 --> 00:00:01,000\nHello, world!\n\n"
        "2\n00:00:01,100 --> 00:00:01,200\nOnce\n\n"
        "3\n01:01:01,000 --> 01:01:01,500\nmore\n"
    )
    assert to_srt([]) == ""
    words = [TimedWord(word, i, i + 0.9) for i, word in enumerate("We saw Dr. Who. Then".split())]
    assert [cue.splitlines()[2] for cue in to_srt(words).split("\n\n")] == ["We saw Dr. Who.", "Then"]


@pytest.mark.parametrize("seed", range(10))
def test_every_word_is_in_one_cue_and_no_cue_is_too_long(seed):
    chance = random.Random(seed)
    words, now = [], 0.0
    for _ in range(60):
        start = now + chance.choice([0.0, 0.05, 1.0])
        now = start + chance.random()
        words.append(TimedWord("x" * chance.randint(1, 12) + chance.choice(["", "", ".", ",", '!"']), start, now))
    blocks = to_srt(words).split("\n\n")
    assert [int(block.split("\n")[0]) for block in blocks] == list(range(1, len(blocks) + 1))
    assert " ".join(block.strip().split("\n")[2] for block in blocks).split() == [word.word for word in words]
    assert all(len(block.strip().split("\n")[2]) <= MAX_CHARACTERS for block in blocks)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}", block.split("\n")[1]) for block in blocks)
