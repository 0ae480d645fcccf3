"""Text tokenizers whose ids are units: the contract of UnitText for characters and phonemes, files, lexicons."""

import random
import unicodedata
from itertools import pairwise

import pytest

from tessera.configs.schema import check_config
from tessera.tokenize.text.character_text import CharacterTextConfig
from tessera.tokenize.text.phoneme_symbols import ENGLISH_UNITS, phoneme_units
from tessera.tokenize.text.phoneme_text import PhonemeTextConfig
from tessera.tokenize.text.registry import load_text, make_text
from tessera.tokenize.text.units import WORD_BOUNDARY, SpokenWord, arrange, is_silent
from tessera.tokenize.text.user_lexicon import parse_lexicon

CORPUS = ["Hello, World! It's fine - (or is it?)", "héllo wörld; naïve: 31", "नमस्ते दुनिया", "Ещё раз."]
FRAGMENTS = [
    *("Hello", "world", "it's", "'tis", "NASA", "FBI", "iPhone", "café", "e\u0301a", "ß", "Ещё", "你好", "नमस्ते"),
    *("3", "21st", "1,234.5", "$5.50", "-3", "1/2", "½", "10-20", "5 km", "3:30 pm", "a.m.", "Dr.", "St.", "e.g."),
    *("2024-03-01", "May 5, 1987", "VIII", "Henry VIII", "#1", "@me", "a@b.com", "www.x.org/a?b=1", "file.txt", "50%"),
    *(".", ",", "?!", "...", "--", "-", "—", "…", "(", ")", "“", "”", "'", '"', "|", "[[həlˈO]]", "[[", "]]", "*", "_"),
    *(
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\u00a0",
        "\u200b",
        "\u200d",
        "\ufeff",
        "🙂",
        "☃",
        "\u0301",
        "\x00",
        "ﬁ",
        "２",
        "𝐀",
    ),
    *("°C", "&", "AT&T", "+1", "C++", "v2", "A380", "x" * 40, "9" * 40, "the 90s", "'90s", "O'Neil", "well-known"),
    *("1:2:3", "No. 5", "naïve", "/"),
]


@pytest.fixture(scope="module")
def phonemes():
    return make_text(PhonemeTextConfig(), [])


@pytest.fixture(scope="module")
def characters():
    return make_text(CharacterTextConfig(), CORPUS)


@pytest.fixture(scope="module")
def lower():
    return make_text(CharacterTextConfig(normalise="words"), CORPUS)


def random_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        if draw.random() < 0.3:
            points = (draw.choice((0x7F, 0x2FF, 0xFFFF, 0x10FFFF)) for _ in range(draw.randint(1, 30)))
            text = "".join(chr(draw.randint(0, top)) for top in points)
            texts.append("".join(" " if "\ud800" <= character <= "\udfff" else character for character in text))
        else:
            texts.append("".join(draw.choice(FRAGMENTS) + draw.choice(("", " ")) for _ in range(draw.randint(1, 8))))
    return texts


def check_law(text, sample: str) -> bool:
    """The contract of UnitText for one text; False if nothing of it can be read."""
    try:
        units = text.units(sample)
    except ValueError as error:
        assert "can be spoken" in str(error) or "is no phoneme" in str(error), sample
        assert "\n" not in str(error) and len(str(error)) < 400
        return False
    assert units[0] == units[-1] == WORD_BOUNDARY
    assert text.encode(sample) == text.encode_units(units)
    assert text.silent == {number for number, unit in enumerate(text.symbols) if is_silent(unit)}
    silences = "".join("." if is_silent(unit) else "x" for unit in units).strip(".").split("x")
    assert max(map(len, silences)) <= 2, (sample, units)
    for one, other in pairwise(units):
        assert not (is_silent(one) and is_silent(other)) or (one != WORD_BOUNDARY and other == WORD_BOUNDARY), units
    covered = [place for _, first, last in text.words(sample) for place in range(first, last)]
    assert covered == sorted(set(covered))
    assert {place for place, unit in enumerate(units) if not is_silent(unit)} <= set(covered)
    assert all(written == written.strip() and written for written, _, _ in text.words(sample))
    assert all(not is_silent(units[first]) and not is_silent(units[last - 1]) for _, first, last in text.words(sample))
    prepared = text.prepare(sample)
    assert text.read(prepared) == prepared, sample
    assert text.read(text.spell(sample)) == prepared, sample
    return True


@pytest.mark.parametrize("kind", ["phonemes", "characters", "lower"])
def test_every_text_obeys_the_law(kind, request):
    text = request.getfixturevalue(kind)
    read = [check_law(text, sample) for sample in [*FRAGMENTS, *random_texts(400, 0)]]
    assert sum(read) > 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["phonemes", "characters", "lower"])
def test_many_texts_obey_the_law(kind, request):
    text = request.getfixturevalue(kind)
    for sample in random_texts(20_000, 1):
        check_law(text, sample)


def test_arrange_keeps_the_strongest_mark():
    words = [
        SpokenWord("(Wait...?!", ["(", "w", "A", "t", "…", "?", "!"]),
        SpokenWord("—", ["—"]),
        SpokenWord("no", ["n"]),
    ]
    units, ranges = arrange(words)
    assert units == ["|", "w", "A", "t", "?", "|", "n", "|"]
    assert ranges == [("(Wait...?!", 1, 4), ("no", 6, 7)]
    assert arrange([SpokenWord("21", ["t", "|", "w", "."])])[0] == ["|", "t", "|", "w", ".", "|"]


def test_characters_are_those_of_the_corpus(characters):
    assert characters.symbols[0] == WORD_BOUNDARY
    assert "ते" in characters.symbols and "é" in characters.symbols and " " not in characters.symbols
    assert characters.units("It's  héllo!") == ["|", *"It's", "|", *"héllo!", "|"]
    assert characters.units("he\u0301llo") == characters.units("héllo")
    assert characters.units("it’s HÉLLO") == ["|", *"it's", "|", *"Héllo", "|"]  # H is in the corpus, É and L are not
    assert characters.unread("Hello x ☃ y") == ["x", "☃", "y"]
    assert characters.units("Hexllo") == characters.units("Hello")
    assert characters.decode(characters.encode("It's fine.")) == "It's fine."
    assert characters.num_characters("It's ☃.") == 7 and characters.num_characters("☃.") == 0


def test_characters_of_words(lower):
    assert lower.units("It's 31!") == ["|", *"it's", "|", *"three", "|", *"one", "|"]
    assert lower.words("It's 31!") == [("It's", 1, 5), ("31!", 6, 15)]


def test_texts_without_letters_are_refused(characters, phonemes):
    for text in (characters, phonemes):
        for sample in ("", "  ", "...", "☃"):
            with pytest.raises(ValueError, match="can be spoken"):
                text.encode(sample)
        with pytest.raises(ValueError, match="the limit is 4096; split it"):
            text.units("a" * 5000)
        with pytest.raises(ValueError, match="half of a pair"):
            text.units("a\ud800")
        with pytest.raises(ValueError, match="does not have the unit 'Ω'"):
            text.encode_units(["|", "Ω", "|"])
    with pytest.raises(ValueError, match="no sentences"):
        make_text(CharacterTextConfig(), ["..."])


def test_explicit_phonemes(phonemes):
    units = ["|", "h", "ə", "l", "ˈO", ",", "|", "w", "ˈɜ", "ɹ", "l", "d", "!", "|"]
    assert phonemes.units("[[həlˈO, wˈɜɹld!]]") == units
    assert phonemes.units("[[həlˈoʊ]], [[ˈwɜːrld]]!") == units  # other IPA, stress before the syllable
    assert phonemes.words("Say [[həlˈO]].")[1] == ("[[həlˈO]].", 4, 8)
    names = phonemes.names_of_ids()
    assert [names[number] for number in phonemes.encode("[[həlˈO]]")] == ["|", "h", "ə", "l", "ˈO", "|"]
    with pytest.raises(ValueError, match=r"'ß' \(U\+00DF\) is no phoneme of English"):
        phonemes.encode("[[ß]]")
    assert phoneme_units("“kˈæt” (dˈɔɡ)") == ["|", "k", "ˈæ", "t", "|", "|", "|", "d", "ˈɔ", "ɡ", "|"]
    unknown: list[str] = []
    assert phoneme_units("kʘt", unknown) == ["k", "t"] and unknown == ["ʘ"]


def test_phonemes_of_alignments_in_other_ipa(phonemes):
    assert phonemes.encode_units(["oʊ", "tʃ", "ˈn", "ˌᵊ", "ɾ"]) == phonemes.encode_units(["O", "ʧ", "n", "ˌə", "T"])
    with pytest.raises(ValueError, match="does not have the unit 'ɚ' and 'sil'"):
        phonemes.encode_units(["|", "ɚ", "sil"])


def test_english_units_are_single_symbols():
    assert len(set(ENGLISH_UNITS)) == len(ENGLISH_UNITS) == 85
    for unit in ENGLISH_UNITS:
        assert len(unit.strip("ˈˌ")) == 1 and unicodedata.normalize("NFC", unit) == unit
        assert phoneme_units(unit) == [unit]


@pytest.mark.parametrize("config", [CharacterTextConfig(normalise="words"), PhonemeTextConfig()])
def test_saved_and_loaded(config, tmp_path):
    text = make_text(config, CORPUS)
    text.save(tmp_path)
    again = load_text(tmp_path, config)
    assert again.symbols == text.symbols and again.files() == text.files()
    assert again.encode("hello world 31") == text.encode("hello world 31")
    (tmp_path / "units.json").write_text('{"symbols": ["|", "a", "a"]}')
    with pytest.raises(ValueError, match=r"units.json: .*must be different"):
        load_text(tmp_path, config)
    (tmp_path / "units.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"units.json: no such file; the text tokenizer '{config.kind}'"):
        load_text(tmp_path, config)


def test_a_lexicon_is_read_and_kept(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("# mine\n\nTessera\ttɛsˈɛɹə\nC++\tsˈi plˈʌs\n", encoding="utf-8")
    text = make_text(PhonemeTextConfig(lexicon=str(path)), [])
    assert text.units("tessera, C++")[1:7] == ["t", "ɛ", "s", "ˈɛ", "ɹ", "ə"]
    assert text.words("Tessera's C++!")[-1][0] == "C++!"
    assert text.read("Tessera C++") == "[[tɛsˈɛɹə]] [[sˈi]] [[plˈʌs]]"
    text.save(tmp_path)
    path.unlink()
    again = load_text(tmp_path, PhonemeTextConfig(lexicon=str(path)))
    assert again.encode("tessera") == text.encode("tessera")
    path.write_text("tessera\tkˈæt\n", encoding="utf-8")
    assert again.with_lexicon(path).units("tessera c++")[1:4] == ["k", "ˈæ", "t"]
    with pytest.raises(ValueError, match="'characters' does not speak phonemes"):
        make_text(CharacterTextConfig(), CORPUS).with_lexicon(path)
    with pytest.raises(FileNotFoundError, match="a lexicon has a word, a tab and its phonemes"):
        again.with_lexicon(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a b\tk", r"x:1: expected a word, a tab and its phonemes, found 'a b\\tk'"),
        (b"# c\nword", "x:2: expected a word"),
        (b"word\t\n", "x:1: expected a word"),
        (b"a\tb\tc", "x:1: expected a word"),
        ("a\tß".encode(), "x:1: .*is no phoneme of English"),
        (b"a\t...", "x:1: '...' has no sound"),
        (b"a\t\xff", "x: not UTF-8"),
    ],
)
def test_wrong_lexicons_are_refused_by_line(content, message):
    with pytest.raises(ValueError, match=message):
        parse_lexicon(content, "x", phoneme_units)


def test_wrong_languages_are_refused():
    for language in ("EN", "e", "en/../x", "en us", ""):
        with pytest.raises(ValueError, match="language"):
            check_config({"language": language}, PhonemeTextConfig)
