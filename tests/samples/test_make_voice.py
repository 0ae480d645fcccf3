"""The corpus of the English voice: its texts, and units of whole frames from the durations of two synthesizers."""

import itertools
import random

import numpy as np
import pytest

from tessera.samples import make_voice
from tessera.samples.voice import alignment, flite_voice, hibari_voice, sentences
from tessera.samples.voice.wordnet import as_sentence, first_definition, quoted, read_wordnet

NOUN = '00001740 03 n 02 {word} 0 thing 0 001 @ 00001930 n 0000 | {gloss}; "{example}"  \n'


@pytest.fixture
def wordnet(tmp_path):
    """A small database: 1500 nouns with an example each, the first 200 of them frequent, and three names."""
    rows, counts = ["  1 This is a licence line\n"], []
    for number in range(1500):
        word = "".join(chr(97 + number // 26**place % 26) for place in range(3))
        rows.append(NOUN.format(word=word, gloss=f"a small {word} thing", example=f"they saw the {word} there"))
        counts += [f"{word}%{part}:03:00:: 1 {9 - part}\n" for part in (1, 2, 3)] if number < 200 else []
    for name in ("Boston", "Ada", "Turin"):
        rows.append(f"00002 15 n 01 {name} 0 001 @i 08 n 0000 | a name\n")
    (tmp_path / "data.noun").write_text("".join(rows))
    for kind in ("verb", "adj", "adv"):
        (tmp_path / f"data.{kind}").write_text("")
    (tmp_path / "cntlist.rev").write_text("".join(counts))
    return read_wordnet(tmp_path)


def test_examples_that_read_cleanly():
    assert quoted(' a thing; "he saw it"; "so be it"- Shakespeare ') == ["he saw it"]
    assert as_sentence("he saw it") == "He saw it."
    assert as_sentence("did he see it?") == "Did he see it?"
    assert [as_sentence(text) for text in ("one", "the IBM clerk", "in 1984 it rained", "he -- or she")] == [None] * 4
    assert first_definition(' a small cow; "the cow" ') == "a small cow"
    assert first_definition(" (zoology) a small cow") is None


def test_texts_repeat_with_the_seed_and_avoid_what_is_held_out(wordnet):
    held = sentences.held_out(wordnet, 1, 20)
    assert held == sentences.held_out(wordnet, 1, 20) and len(set(held)) == 20
    taken = {sentences.plain(text) for text in held}
    texts = sentences.Texts(wordnet, 0, set(taken))
    made = [texts.next() for _ in range(1200)]
    again = sentences.Texts(wordnet, 0, set(taken))
    assert made == [again.next() for _ in range(1200)]
    plain = [sentences.plain(text) for text in made]
    assert len(set(plain)) == len(plain)
    assert not [text for text in plain if any(sentence in text for sentence in taken)]
    assert all(text[0].isupper() or text[0].isdigit() or text[0] == "$" for text in made)
    assert all(text[-1] in ".?!" for text in made)
    kinds = (r"?", "o'clock", "$", "%", ", ", "Boston")
    assert all(any(kind in text for text in made) for kind in kinds)


def test_the_plan_gives_each_voice_its_hours(wordnet, monkeypatch):
    monkeypatch.setattr(make_voice, "TEST_SENTENCES", 10)
    monkeypatch.setattr(make_voice, "TEST_ITEMS", {"heart": 3, "slt": 2})
    hours = {"heart": 0.1, "slt": 0.05}
    plan = make_voice.plan_recordings(wordnet, hours, 0)
    assert [each.folder for each in plan[:15]] == ["test/sentences"] * 10 + ["test/items"] * 5
    assert len({(each.folder, each.file) for each in plan}) == len(plan)
    for voice, amount in hours.items():
        texts = [each.text for each in plan if each.folder == "train" and each.voice == voice]
        assert sum(map(sentences.estimated_seconds, texts)) == pytest.approx(3600 * amount, abs=20)
    few = [each.voice for each in plan if each.folder == "train"][:9]
    assert 1 <= few.count("slt") <= 5  # voices take turns


@pytest.mark.parametrize("given", ["heart", "heart=x", "bob=1", "heart=1;slt=1"])
def test_wrong_hours_are_named(given):
    with pytest.raises(ValueError, match="is not VOICE=HOURS"):
        make_voice.parse_hours(given)
    assert make_voice.parse_hours("heart=12,slt=2.5") == {"heart": 12.0, "slt": 2.5}


def test_missing_programs_are_named_with_their_command(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="apt install wordnet-base"):
        read_wordnet(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt install flite"):
        flite_voice.speak_flite("Hello.", "həlˈO.", "slt")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install hibari-tts onnx"):
        hibari_voice.HibariVoice()


def test_units_of_a_phoneme_string():
    groups = alignment.split_units("ə kˈæt.")
    assert groups == [[], [0], [1], [2], [3, 4], [5], [6], []]
    assert [alignment.unit_name("ə kˈæt.", group) for group in groups] == ["|", "ə", "|", "k", "ˈæ", "t", ".", "|"]
    assert alignment.split_units("k(æ") is None


def test_silent_units_are_at_most_a_mark_and_a_boundary():
    made = alignment.join_silence(["|", "l", "|", "—", "|", "ʃ", ".", "|"], [4, 3, 2, 1, 2, 5, 3, 1])
    assert made == alignment.Alignment(("|", "l", "—", "|", "ʃ", ".", "|"), (4, 3, 2, 3, 5, 2, 2))
    assert alignment.join_silence(["|", "—", "a"], [1, 2, 3]).units == ("|", "a")


def test_boundaries_keep_the_total_and_give_every_phoneme_a_frame():
    draw = random.Random(0)
    for _ in range(300):
        sounding = [draw.random() < 0.7 for _ in range(draw.randint(1, 5))]
        total = sum(sounding) + draw.randint(0, 4)
        ends = [*sorted(draw.randint(0, total) for _ in sounding[1:]), total]
        frames = alignment.fit_boundaries(ends, sounding)
        assert sum(frames) == total and all(count >= sounds for count, sounds in zip(frames, sounding, strict=True))
        possible = (
            [*inner, total]
            for inner in itertools.combinations_with_replacement(range(total + 1), len(sounding) - 1)
            if all(b - a >= s for a, b, s in zip([0, *inner], [*inner, total], sounding, strict=True))
        )
        farthest = min(max(abs(a - b) for a, b in zip(ends, each, strict=True)) for each in possible)
        made = list(itertools.accumulate(frames))
        assert max(abs(a - b) for a, b in zip(ends, made, strict=True)) <= 2 * farthest
        if farthest == 0:
            assert made == ends
    with pytest.raises(ValueError, match="3 phonemes do not fit into 2 frames"):
        alignment.fit_boundaries([1, 1, 2], [True, True, True])


def test_matching_pronunciations():
    cost, pairs = alignment.match_pronunciations(list("həlO"), ["h", "ə", "l", "ˈO"])
    assert (cost, pairs) == (0.0, [0, 1, 2, 3])
    cost, pairs = alignment.match_pronunciations(list("klæst"), ["k", "l", "ˈæ", "s"])  # one more
    assert pairs == [0, 1, 2, 3] and cost == pytest.approx(alignment.GAP / 4)
    cost, pairs = alignment.match_pronunciations(list("kæt"), ["k", "l", "ˈæ", "T"])
    assert pairs == [0, None, 1, 2] and 0 < cost < 0.25


def test_frames_of_hibari_begin_two_frames_earlier_and_short_gaps_go_to_the_words():
    durations = np.array([14, 2, 3, 2, 2, 2, 3, 3, 14, 6, 1])  # ^ ð ə space k ˈ æ t , space-less mark, $
    made = hibari_voice.place_units("ðə kˈæt,.", durations[: len("ðə kˈæt,.") + 2])
    assert sum(made.frames) == durations.sum() and made.units[0] == made.units[-1] == "|"
    ends = dict(zip(made.units[1:], itertools.accumulate(made.frames[1:], initial=made.frames[0]), strict=False))
    assert made.frames[0] == 14 - hibari_voice.LEAD and ends["ð"] == 12
    assert made.frames[made.units.index("ə") + 1] == 0


def test_silence_at_the_ends_is_cut_and_belongs_to_silent_units():
    sound = np.zeros(40 * hibari_voice.HOP, np.float32)
    sound[10 * hibari_voice.HOP : 25 * hibari_voice.HOP] = 0.1
    units = ("|", "a", "b", ".", "|")
    samples, made = hibari_voice.trim(sound, alignment.Alignment(units, (12, 6, 14, 5, 3)))
    assert made == alignment.Alignment(units, (4, 8, 7, 3, 3))
    assert len(samples) == 25 * hibari_voice.HOP and samples[4 * hibari_voice.HOP] > 0 == samples[0]
    assert hibari_voice.trim(sound * 0, alignment.Alignment(units, (12, 6, 14, 5, 3))) is None


def test_frames_of_flite_follow_its_segments_and_pauses():
    segments = flite_voice.parse_segments("pau:0.1 dh:0.2 ax:0.25 n:0.3 er:0.4 pau:0.5 ow:0.6 pau:0.7 ")
    assert segments[4] == ("ɜ", pytest.approx(0.36)) and segments[5] == ("ɹ", 0.4)
    made = flite_voice.place_phonemes("ðə nˈɜɹ, O", segments, 28)
    assert made.units == ("|", "ð", "ə", "|", "n", "ˈɜ", "ɹ", ",", "|", "O", "|")
    assert made.frames == (4, 4, 2, 0, 2, 2, 2, 2, 2, 4, 4)
    assert flite_voice.place_phonemes("bˈIkɑl", segments, 28) is None


def test_label_track_is_contiguous():
    track = alignment.label_track(alignment.Alignment(("|", "ˈO", "|"), (2, 3, 0)))
    assert track == "0.000\t0.050\t|\n0.050\t0.125\tˈO\n0.125\t0.125\t|\n"
