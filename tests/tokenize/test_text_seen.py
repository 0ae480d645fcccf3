"""What a corpus of texts is made of, and what of a text is new to a model that learned from it."""

import pytest

from tessera.configs.files import read_json
from tessera.configs.schema import ConfigError, check_config
from tessera.samples.make_speech import DIGITS, PHRASES
from tessera.tokenize.bundled import BUNDLED
from tessera.tokenize.text.bpe_text import BPETextConfig
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.coverage import MAX_WORDS, TextSeen, named, seen_in, unseen_in
from tessera.tokenize.text.registry import load_text, make_text
from tessera.tokenize.text.sentencepiece_text import SentencePieceConfig

READERS = {
    "bytes": make_text(ByteTextConfig(), []),
    "words": make_text(ByteTextConfig(normalise="words"), []),
    "pieces": make_text(SentencePieceConfig(vocab_size=30), ["one two three", "it's one"]),
    "bpe": make_text(BPETextConfig(vocab_size=260, normalise="words"), ["one two three", "it's one"]),
}


@pytest.mark.parametrize("name", READERS)
def test_a_corpus_holds_nothing_new(name):
    texts = ["One, two; three!", "it's 1", "one   two"]
    seen = seen_in(texts, READERS[name])
    assert unseen_in(texts, READERS[name], seen) is None
    assert unseen_in(["three two one"], READERS[name], seen) is None
    assert unseen_in(["three", "for five four"], READERS[name], seen).startswith(
        "the model was not trained on the words 'for', 'five' and 'four' or the characters 'f' (U+0066)"
    )


def test_a_text_tokenizer_of_pieces_knows_its_characters():
    reader = READERS["pieces"]
    assert reader.known_characters() == set("one two three it's")
    assert unseen_in(["two \u00e9"], reader, None) == (
        "the model was not trained on the character '\u00e9' (U+00E9); its output for that is unpredictable"
    )
    assert unseen_in(["\u00e9"], READERS["bytes"], None) is None  # bytes cannot know


def test_many_words_are_not_listed():
    seen = seen_in((f"{'x' * (i % 40)} {'y' * (i // 40)}" for i in range(80 * 40)), READERS["words"])
    assert seen.words is not None and len(seen.words) < MAX_WORDS
    many = [f"{a}{b}{c}" for a in "abcdefghijk" for b in "abcdefghij" for c in "abcdefghij"]
    seen = seen_in(many, READERS["words"])
    assert seen == TextSeen(characters="abcdefghijk", words=None)
    assert unseen_in(["kkkkk"], READERS["words"], seen) is None
    assert seen_in(["", "!"], READERS["words"]) is None


def test_words_of_scripts_without_spaces_are_not_looked_at():
    seen = seen_in(["\u4eca\u5929 one"], READERS["words"])
    assert seen.words == ("one",)
    assert unseen_in(["\u5929\u4eca"], READERS["words"], seen) is None


def test_names_are_few_short_and_safe():
    assert named(["a"]) == "'a'" and named(["a", "b"]) == "'a' and 'b'"
    assert named(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"
    assert len(named(["x" * 1000])) < 50
    assert "\x1b" not in unseen_in(["\x1b[31m"], READERS["bytes"], TextSeen(characters="a"))
    with pytest.raises(ConfigError, match="characters"):
        check_config({"characters": "x" * 100_001}, TextSeen)


def test_the_bundled_speech_model_knows_the_words_of_its_corpus():
    folder = BUNDLED / "speech"
    config = read_json(folder / "config.json")
    text = next(one["text"] for one in config["lm"]["conditions"] if one["kind"] == "text")
    reader = load_text(folder, check_config(text, SentencePieceConfig))
    seen = check_config(config["generation"]["text_seen"], TextSeen)
    assert set(seen.words) == {word for text in (*DIGITS, *PHRASES) for word in text.split()}
    assert set(seen.characters) == reader.known_characters()
