"""The English front end: sentences and their spoken form, pronunciations, the data file."""

import random
import zipfile
from pathlib import Path

import pytest

from tessera.tokenize.text.english import number_words
from tessera.tokenize.text.english.front_end import BUILT_IN, EnglishFrontEnd, read_member
from tessera.tokenize.text.english.lexicon import Lexicon
from tessera.tokenize.text.phoneme_symbols import phoneme_units
from tessera.tokenize.text.phoneme_text import PhonemeTextConfig
from tessera.tokenize.text.registry import load_text, make_text
from tessera.tokenize.text.units import is_silent

HERE = Path(__file__).parent
REDUCED = str.maketrans({"ᵊ": "ə", "ᵻ": "ɪ", "ɐ": "ə", "T": "t", "ɜ": "ə", "ˈ": "", "ˌ": ""})


@pytest.fixture(scope="module")
def english():
    return make_text(PhonemeTextConfig(max_characters=100_000), [])


@pytest.fixture(scope="module")
def words() -> dict[str, str]:
    lines = read_member(BUILT_IN, "lexicon.tsv").decode().split("\n")
    return dict(line.split("\t", 1) for line in lines)


def cases(name: str) -> list[list[str]]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def sounds(english, text: str) -> str:
    """Without stress, marks and the "and" of numbers."""
    spoken = "".join(unit if not is_silent(unit) else " " for unit in english.units(text)).translate(REDUCED)
    return spoken.replace(" ænd ", " ").replace(" ", "")


@pytest.mark.parametrize("case", cases("english_sentences.tsv"), ids=lambda case: case[1])
def test_sentences_are_read_as_written(case, english):
    _, text, *spoken = case
    assert sounds(english, text) in {sounds(english, form) for form in spoken}, english.read(text)


def test_most_held_out_sentences_are_read_as_written(english):
    forms = [(text, spoken) for _, text, *spoken in cases("english_sentences_held_out.tsv")]
    wrong = [t for t, spoken in forms if sounds(english, t) not in {sounds(english, form) for form in spoken}]
    assert len(wrong) <= 3, wrong


def test_most_words_are_pronounced_as_written(english):
    wrong = []
    for _, text, word, *phonemes in cases("english_pronunciations.tsv"):
        units = english.units(text)
        found = [
            units[first:last] for said, first, last in english.words(text) if said.strip(".,").lower() == word.lower()
        ]
        said = "".join(found[0]).translate(REDUCED)
        if said not in {form.translate(REDUCED) for form in phonemes}:
            wrong.append((text, said))
    assert len(wrong) <= 11, wrong


def test_function_words_follow_their_neighbours(english):
    def said(text: str) -> str:
        return "".join(english.units(text)).strip("|")

    assert said("the cat the owl") == "ðə|kˈæt|ði|ˈWl"
    assert said("to go to eat to") == "tə|ɡˌO|tʊ|ˈit|tu"
    assert said("a cat, plan A") == "ɐ|kˈæt,|plˈæn|ˈA"
    assert said("U.S. us US") == "jˌuˈɛs|ˌʌs|jˌuˈɛs"
    assert said("STOP THE CAR") == said("stop the car")
    assert said("an A-bomb at 5:45, on the 21st") == "ɐn|ˈAbˌɑm|æt|fˈIv|fˌɔɹTifˈIv,|ˌɔn|ðə|twˈɛntifˌɜɹst"


def test_written_words_keep_their_place(english):
    text = "On May 5, 1987 he (Dr. Lee) paid $5.50."
    units = english.units(text)
    said = {written: "".join(units[first:last]) for written, first, last in english.words(text)}
    assert list(said) == ["On", "May 5, 1987", "he", "(Dr.", "Lee)", "paid", "$5.50."]
    assert said["May 5, 1987"] == "mˈA|fˈɪfθ,|nˌIntˈin|ˈATi|sˈɛvən" and said["(Dr."] == "dˈɑktəɹ"
    assert (
        "".join(units) == "|ˌɔn|mˈA|fˈɪfθ,|nˌIntˈin|ˈATi|sˈɛvən|hi,|dˈɑktəɹ|lˈi,|pˈAd|fˈIv|dˈɑləɹz|ænd|fˈɪfti|sˈɛnts.|"
    )


def test_what_cannot_be_read_is_named(english):
    assert english.unread("Hello ☃ 你好 Ещё ☃, world") == ["☃", "你好", "Ещё"]
    assert english.unread("café – “naïve”, ½ 3² π Ω • ™ (…)") == []
    assert english.read("Hello, 你-好. Bye") == "Hello , . Bye" and english.num_characters("你好.") == 0


def test_number_words():
    assert number_words.cardinal(1_000_000_021) == "one billion twenty one"
    assert number_words.ordinal(2_000_012) == "two million twelfth"
    years = {1905: "nineteen oh five", 2000: "two thousand", 2001: "two thousand one", 1100: "eleven hundred"}
    for year, spoken in {**years, 2010: "twenty ten", 999: "nine hundred ninety nine"}.items():
        assert number_words.year(year) == spoken
    assert number_words.number("007.50") == "zero zero seven point five zero"
    assert number_words.number("9" * 31) == " ".join(["nine"] * 31)
    for number in random.Random(0).sample(range(10**9), 200):
        assert _value(number_words.cardinal(number)) == number


def _value(words: str) -> int:
    """The number that words say: the slow, obvious way back."""
    total = group = 0
    for word in words.split():
        if word in number_words.ONES:
            group += number_words.ONES.index(word)
        elif word in number_words.TENS:
            group += 10 * number_words.TENS.index(word)
        elif word == "hundred":
            group *= 100
        else:
            total += group * 1000 ** number_words.SCALES.index(word)
            group = 0
    return total + group


def test_the_lexicon_is_sorted_and_of_known_phonemes(words):
    lines = read_member(BUILT_IN, "lexicon.tsv").split(b"\n")
    assert lines == sorted(lines) and len(words) == len(lines) > 200_000
    for line in lines[::50]:
        _, default, *others = line.decode().split("\t")
        for phonemes in [default, *(other.split("=", 1)[1] for other in others)]:
            assert phoneme_units(phonemes), line
    with zipfile.ZipFile(BUILT_IN) as members:
        assert "Apache License 2.0" in members.read("LICENSES.txt").decode()
        assert sum(member.compress_size for member in members.infolist()) < 3_000_000


def test_bisection_finds_what_a_dictionary_has(words):
    lexicon = Lexicon(read_member(BUILT_IN, "lexicon.tsv"))
    listed = random.Random(0).sample(sorted(words), 2000)
    for word in [*listed, min(words, key=str.encode), max(words, key=str.encode)]:
        entry = lexicon._line(word)
        assert entry is not None and entry[""] == words[word].split("\t")[0]
        assert lexicon._line(word + "q\x01") is None and lexicon._line(word[:-1] + "\x01") is None


@pytest.mark.parametrize(
    ("word", "phonemes"),
    [
        *(("cats", "kˈæts"), ("churches'", "ʧˈɜɹʧᵻz"), ("flummoxing", "flˈʌmɑksɪŋ"), ("Freud's", "fɹˈYdz")),
        *(("texted", "tˈɛkstᵻd"), ("wolves'", "wˈʊlvz"), ("photocopied", "fˈOTəkˌɑpid")),
        *(("bodies", "bˈɑdiz"), ("wanted", "wˈɑntᵻd"), ("separated", "sˈɛpəɹˌATᵻd"), ("towards", "tˈɔɹdz")),
    ],
)
def test_inflected_forms(word, phonemes, english):
    assert english.front_end.pronouncer.word(word) == phonemes


def test_damaged_data_is_refused(tmp_path):
    make_text(PhonemeTextConfig(), []).save(tmp_path)
    path = tmp_path / "english.zip"
    data = path.read_bytes()
    half = len(data) // 2
    for content in (b"", data[:1000], data[:-1], data[:half] + b"x" * 100 + data[half + 100 :]):
        path.write_bytes(content)
        text = load_text(tmp_path, PhonemeTextConfig())
        with pytest.raises(ValueError, match=r"english.zip: not usable as data of the front end .*; copy it again"):
            text.encode("hello")
    with zipfile.ZipFile(tmp_path / "big.zip", "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("lexicon.tsv", bytes((64 << 20) + 1))
    with pytest.raises(ValueError, match="big.zip: .*has more than"):
        EnglishFrontEnd((tmp_path / "big.zip").read_bytes(), "big.zip", {}).read("hello")


HOSTILE = [
    *("1", "[[", "a-", "1-", "1/", "$1,", ".", "A.", "a@", "x", "www.", "1:", "'", "I ", "é", "(1) ", "1,111,", "-1"),
    *("a.b", "A&", "St. ", "1 ", "X ", "a\n\n", "zq", "1.1.", "1-800-", "a\u0301", "\u0301", " ", "\n", "May 1 ", "☃"),
]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [*HOSTILE, "http://"])
def test_long_texts_take_linear_time(pattern, english):
    import time

    def seconds(length: int) -> float:
        start = time.process_time()
        try:
            english.units((pattern * length)[:length])
        except ValueError:
            pass
        return time.process_time() - start

    seconds(1000)
    assert seconds(20_000) < max(3, 10 * seconds(10_000))
