"""Phonemes of other languages by espeak-ng: units of IPA, and models whose language is not installed."""

import sys

import pytest

from tessera.tokenize.text import espeak
from tessera.tokenize.text.phoneme_text import PhonemeTextConfig
from tessera.tokenize.text.registry import load_text, make_text

GERMAN = ["Guten Tag, ich möchte 21 Äpfel; bitte!", "Der Zug kommt um 3:30 Uhr - oder nicht?", "Fünf Bücher zum Lesen."]


def is_installed() -> bool:
    try:
        return bool(espeak.phonemize("Tag", "de"))
    except ValueError:
        return False


needs_espeak = pytest.mark.skipif(not is_installed(), reason="espeak-ng is not installed")


def test_units_keep_their_marks():
    assert espeak.ipa_units("ɡˈuːtən tˈɑːk") == ["ɡ", "ˈuː", "t", "ə", "n", "|", "t", "ˈɑː", "k"]
    assert espeak.ipa_units("t͡ʃˈaɪ̯ (en)kʰˌɔ̃(de)") == ["t͡ʃ", "ˈa", "ɪ̯", "|", "kʰ", "ˌɔ̃"]
    assert espeak.ipa_units("ma5.ma1 ː-_") == ["m", "a5", "m", "a1", "|"]


def test_a_missing_espeak_is_named(monkeypatch):
    monkeypatch.setattr(espeak.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    espeak._library.cache_clear()
    with pytest.raises(ValueError, match="need espeak-ng, which is not installed; apt install espeak-ng"):
        make_text(PhonemeTextConfig(language="de"), GERMAN)
    espeak._library.cache_clear()


@needs_espeak
def test_german(tmp_path):
    config = PhonemeTextConfig(language="de")
    text = make_text(config, GERMAN)
    units = text.units("Guten Tag, bitte!")
    assert "".join(units) == "|ɡˈuːtən|tˈɑːk,|bˈɪtə!|"
    assert text.words("Guten Tag, bitte!") == [("Guten", 1, 6), ("Tag,", 7, 10), ("bitte!", 12, 16)]
    assert text.words("Der Zug um 3:30 Uhr")[-1][0] == "Uhr"
    text.save(tmp_path)
    assert load_text(tmp_path, config).encode(GERMAN[1]) == text.encode(GERMAN[1])
    assert text.unread("Genre") == ["[[r]]"]
    assert text.units("[[tˈɑːk]]") == ["|", "t", "ˈɑː", "k", "|"]


@needs_espeak
def test_a_lexicon_comes_before_espeak(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("Tag\tbˈɪtə\n", encoding="utf-8")
    text = make_text(PhonemeTextConfig(language="de", lexicon=str(path)), GERMAN)
    assert "".join(text.units("Guten Tag!")) == "|ɡˈuːtən|bˈɪtə!|"


@needs_espeak
def test_an_unknown_voice_is_named():
    with pytest.raises(ValueError, match="espeak-ng has no voice 'xx'"):
        make_text(PhonemeTextConfig(language="xx"), GERMAN)
