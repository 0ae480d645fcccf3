"""Warnings about what a model cannot read, and lexicons given to `load`."""

from types import SimpleNamespace

import pytest

from tessera.generate.loading import load
from tessera.generate.text_checks import unseen_text
from tessera.lm.generation_config import GenerationConfig
from tessera.tokenize.text.character_text import CharacterTextConfig
from tessera.tokenize.text.coverage import seen_in
from tessera.tokenize.text.phoneme_text import PhonemeTextConfig
from tessera.tokenize.text.registry import make_text


def test_what_cannot_be_read_is_named_in_one_line():
    text = make_text(CharacterTextConfig(), ["hello world"])
    parts = SimpleNamespace(text=text, defaults=GenerationConfig(text_seen=seen_in(["hello world"], text)))
    assert unseen_text(parts, "world hello") == []
    assert unseen_text(parts, ["hellx ☃", "☃ world y"]) == [
        "the text tokenizer cannot read 'x', '☃' and 'y', which is left out",
        "the model was not trained on the words 'hellx' and 'y'; its output for that is unpredictable",
    ]


def test_new_phonemes_are_named():
    text = make_text(PhonemeTextConfig(), [])
    seen = seen_in(["A cat sat."] * 2, text)
    assert seen is not None
    defaults = GenerationConfig(text_seen=seen.model_copy(update={"words": None}))
    (warning,) = unseen_text(SimpleNamespace(text=text, defaults=defaults), "A café at.")
    assert "the characters 'f' (U+0066) and 'A' (U+0041); its output" in warning


def test_a_lexicon_is_for_models_that_speak_phonemes(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("a\tˈA\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a lexicon was given, but 'digits' reads no text; leave it out"):
        load("digits", lexicon=path)
    with pytest.raises(ValueError, match="text tokenizer 'sentencepiece' does not speak phonemes; leave it out"):
        load("speech", lexicon=path)
