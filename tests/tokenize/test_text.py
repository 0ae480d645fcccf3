"""Text tokenizers: round trips, determinism, normalisation, refusals."""

import random
import unicodedata

import pytest

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.text import normalization
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.normalization import spell_digits, spell_words
from tessera.tokenize.text.registry import load_text, make_text
from tessera.tokenize.text.sentencepiece_text import MODEL_FILE, SentencePieceConfig

DIGITS = "zero one two three four five six seven eight nine".split()


def digit_sentences(count: int = 200) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(DIGITS, k=draw.randint(1, 5))) for _ in range(count)]


@pytest.fixture(scope="module")
def pieces():
    return make_text(SentencePieceConfig(vocab_size=40), digit_sentences())


def test_bytes_round_trip():
    text = make_text(ByteTextConfig(), [])
    assert text.vocab_size == 256
    assert text.encode("hé") == [104, 195, 169]
    for sample in ("three one four", "  x ", "日本語 🙂", "a\nb"):
        assert text.decode(text.encode(sample)) == sample


@pytest.mark.parametrize("model", ["unigram", "bpe"])
@pytest.mark.parametrize("normalise", ["none", "words"])
def test_pieces_round_trip_anything(model, normalise):
    config = SentencePieceConfig(vocab_size=60, model=model, normalise=normalise)
    text = make_text(config, digit_sentences())
    draw = random.Random(1)
    samples = ["three one four", "Zürich  31", "日本 🙂 x"]
    samples += ["".join(chr(draw.randint(33, 0x2FF)) for _ in range(20)) for _ in range(20)]
    for sample in samples:
        ids = text.encode(sample)
        assert all(0 <= token_id < text.vocab_size for token_id in ids)
        assert 0 not in ids, "the unknown piece must never occur"
        assert text.decode(ids) == (spell_words(sample) if normalise == "words" else sample)


def test_pieces_are_learned(pieces):
    assert pieces.vocab_size <= 40 + 257
    assert len(pieces.encode("three one four")) < 8


def test_same_sentences_same_model(pieces):
    assert make_text(SentencePieceConfig(vocab_size=40), digit_sentences()).model == pieces.model


def test_small_corpus_takes_fewer_pieces():
    text = make_text(SentencePieceConfig(vocab_size=5000), ["three one four"])
    assert text.decode(text.encode("four")) == "four"


def test_save_and_load(pieces, tmp_path):
    pieces.save(tmp_path)
    again = load_text(tmp_path, pieces.config)
    assert again.encode("nine nine") == pieces.encode("nine nine")
    assert again.vocab_size == pieces.vocab_size
    config = ByteTextConfig(normalise="words")
    make_text(config, []).save(tmp_path / "nothing is written")
    assert load_text(tmp_path, config).encode("7!") == list(b"seven")


def test_long_sentences_are_learned_from():
    rare = " ".join(["quack"] * 900)  # longer than sentencepiece's default limit, which would drop it without a word
    text = make_text(SentencePieceConfig(vocab_size=30, max_characters=6000), [rare, "one two"])
    assert len(text.encode("quack quack quack")) < 6


@pytest.mark.parametrize(
    "text, words",
    [
        ("Call 31-4, it's  ME!", "call three one four it's me"),
        ("314", "three one four"),
        ("ten4four", "ten four four"),
        ("'quoted' don\u2019t", "quoted don't"),
        ("\u0661\u0662", "one two"),  # Arabic-Indic digits
        ("\u1369 \u2776x \u277f \u3021", "one one x one zero one"),  # Ethiopic, circled on black, a ten, Hangzhou
        ("\uff13 caf\u00e9 e\u0301", "three caf\u00e9 \u00e9"),
        ("... !?", ""),
        ("one \u260e\ufe0f two", "one two"),  # a telephone and the sign that it is an emoji
        ("1\ufe0f\u20e3 2\u20e3", "one two"),  # keycaps
        ("\u2764\ufe0f", ""),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd", ""),  # joined people, a skin tone
        ("\u0301x \u0301 x", "x x"),  # marks without a letter
        ("soft\u00adware e\u200d\u0301", "software \u00e9"),
        ("a\u200bb", "a b"),  # a space without width
        ("\x00one\x07two\x1b", "one two"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947"),  # vowel signs are marks
        ("\u3164\u115f", ""),  # letters without a form
        ("don\u02bct 5's", "don't five s"),
    ],
)
def test_spell_words(text, words):
    assert spell_words(text) == words
    assert spell_words(words) == words


STRANGE = [0x200D, 0xFE0F, 0x301, 0x20E3, 0x31, 0x3164, 0x2BC, 0xAD, 0x1F3FD, 0x27, 0x2E]


@pytest.mark.sample(6)
@pytest.mark.parametrize("seed", range(20))
def test_reading_again_changes_nothing_and_digits_may_be_spelled_first(seed):
    draw = random.Random(seed)
    for _ in range(100):
        ranges = [(32, 0x300), (0x300, 0xD800), (0xE000, 0x2FFFF)]
        codes = [draw.choice([draw.randrange(*draw.choice(ranges)), draw.choice(STRANGE)]) for _ in range(12)]
        text = "".join(map(chr, codes))
        words = spell_words(text)
        assert spell_words(words) == words and spell_words(spell_digits(text)) == words, ascii(text)
        for word in words.split():
            assert unicodedata.category(word[0])[0] == "L" and all(unicodedata.category(c)[0] in "LM'P" for c in word)
        plain = "".join(chr(code % 128) for code in codes)
        assert normalization._spell_ascii(plain) == normalization._spell_all(plain)


def test_spelled_digits_leave_punctuation_where_it_was():
    assert spell_digits("Call 31-4. Now!") == "Call three one-four. Now!"
    assert spell_digits("It is 3.14, no4") == "It is three.one four, no four"


def test_broken_unicode_is_refused_by_name():
    for config in (ByteTextConfig(), ByteTextConfig(normalise="words")):
        with pytest.raises(ValueError, match=r"not Unicode: character 2 is U\+DC80"):
            make_text(config, []).encode("a \udc80")


def test_long_repetitions():
    # Nothing here backtracks: a pattern that does would not come back from these.
    size = 20_000
    assert spell_words("9" * size) == " ".join(["nine"] * size)
    assert spell_words("'" * size) == spell_words(" " * size) == spell_words("-." * size) == ""
    assert spell_words("a'" * size) == "a'" * (size - 1) + "a"


def test_refusals(pieces, tmp_path):
    plain = make_text(ByteTextConfig(max_characters=10), [])
    with pytest.raises(ValueError, match="'  ' is empty"):
        plain.encode("  ")
    with pytest.raises(ValueError, match="empty once punctuation is left out"):
        pieces.encode("?!")
    with pytest.raises(ValueError, match="has 11 characters, the limit is 10"):
        plain.encode("x" * 11)
    with pytest.raises(ValueError, match="text id 256 is out of range"):
        plain.decode([256])
    with pytest.raises(ValueError, match="text id -1 is out of range"):
        pieces.decode([-1])
    with pytest.raises(ValueError, match="no sentences to train on"):
        make_text(SentencePieceConfig(), ["", " ?"])
    with pytest.raises(ValueError, match="vocab_size 5 is too small for a corpus with 16 different characters"):
        make_text(SentencePieceConfig(vocab_size=5), digit_sentences())
    with pytest.raises(FileNotFoundError, match=MODEL_FILE):
        load_text(tmp_path, pieces.config)
    with pytest.raises(ConfigError, match="vocab_size"):
        check_config({"kind": "sentencepiece", "vocab_size": 1}, SentencePieceConfig)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not a model", bytes(range(256)) * 4])
def test_damaged_model(content, tmp_path):
    (tmp_path / MODEL_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{MODEL_FILE}: (not a SentencePiece model|has no byte tokens)"):
        load_text(tmp_path, SentencePieceConfig())


def test_truncated_model(pieces, tmp_path):
    for share in (0.1, 0.5, 0.9):
        (tmp_path / MODEL_FILE).write_bytes(pieces.model[: int(len(pieces.model) * share)])
        with pytest.raises(ValueError, match=MODEL_FILE):
            load_text(tmp_path, pieces.config)
