"""The strings that make_speech.py draws, and, where espeak-ng is installed, what it speaks."""

import json
import random
import shutil
import sys
from collections import Counter

import pytest

from tessera.samples.make_speech import DIGITS, PHRASES, VOICES, draw_texts, main, plan_utterances


def draw(count=1000, seed=0, words=DIGITS, lengths=(1, 2, 3, 3, 3), phrase_share=0.2, excluded=(), unique=False):
    return draw_texts(random.Random(seed), count, words, lengths, phrase_share, set(excluded), unique)


def test_same_seed_same_texts():
    assert draw() == draw() != draw(seed=1)


def test_every_digit_and_every_pair_is_covered():
    texts = [text for text in draw() if text not in PHRASES]
    assert len(texts) == 800
    words = Counter(word for text in texts for word in text.split())
    pairs = Counter(pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False))
    assert set(words) == set(DIGITS) and max(words.values()) < 1.3 * min(words.values())
    assert len(pairs) == 100 and max(pairs.values()) - min(pairs.values()) < 12
    sizes = Counter(len(text.split()) for text in texts)
    assert [sizes[size] for size in range(1, 6)] == [67, 133, 200, 200, 200]


def test_phrases():
    texts = [text for text in draw(count=500) if text in PHRASES]
    assert len(texts) == 100 and set(texts) == set(PHRASES)
    assert len(set(PHRASES)) == 40
    assert not any(word in DIGITS for phrase in PHRASES for word in phrase.split())


def test_excluded_texts_never_occur():
    test = draw(count=100, phrase_share=0, lengths=(3, 17, 25, 27, 28), unique=True)
    assert len(set(test)) == 100
    assert Counter(len(text.split()) for text in test) == {1: 3, 2: 17, 3: 25, 4: 27, 5: 28}
    train = draw(count=3000, seed=1, excluded=test)
    assert not set(train) & set(test)
    assert len({text for text in train if " " not in text}) == 7


def test_other_words():
    texts = draw(count=60, words=("ja", "nein"), lengths=(1, 1), phrase_share=0)
    assert set(texts) == {"ja", "nein", "ja ja", "ja nein", "nein ja", "nein nein"}
    with pytest.raises(ValueError, match="all strings of 1 words are used"):
        draw(count=3, words=("ja", "nein"), lengths=(1,), phrase_share=0, unique=True)


def test_voices_and_speeds():
    utterances = plan_utterances(random.Random(0), draw(count=400), VOICES)
    assert Counter(utterance.voice for utterance in utterances) == dict.fromkeys(VOICES, 100)
    speeds = [utterance.words_per_minute for utterance in utterances]
    assert min(speeds) == 100 and max(speeds) == 140
    assert [utterance.file for utterance in utterances[:2]] == ["00000.flac", "00001.flac"]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speaking_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        options = ["--count", "3", "--seed", "5", "--phrases", "0.4", "--out", str(tmp_path / folder)]
        monkeypatch.setattr(sys, "argv", ["make_speech.py", *options])
        main()
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["00000.flac", "00001.flac", "00002.flac", "metadata.jsonl"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == files[:3] and {line["label"] for line in lines} <= set(VOICES)
    with pytest.raises(FileExistsError, match="is not empty"):
        main()
