"""Phonemes with their durations as units of whole frames, from two synthesizers, and the label track that holds them.

A unit is a phoneme with its stress mark in front, a mark, or "|", the boundary of words (tokenize/text). Units begin
and end with "|"; between two phonemes stand at most a mark and "|".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FRAME_SECONDS = 0.025
STRESS = "ˈˌ"
MARKS = ".,?!;:—…"
BOUNDARY = "|"
PHONEMES = frozenset("AIOWYbdfhijklmnpstuvwzæðŋɑɔəɛɜɡɪɹɾʃʊʌʒʤʧθᵊᵻɐT")
"""Phonemes of American English as misaki writes them; each is one character."""

ARPABET = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "W", "ax": "ə", "ay": "I", "b": "b", "ch": "ʧ", "d": "d",
    "dh": "ð", "eh": "ɛ", "er": "ɜɹ", "ey": "A", "f": "f", "g": "ɡ", "hh": "h", "ih": "ɪ", "iy": "i", "jh": "ʤ",
    "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "ow": "O", "oy": "Y", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ",
    "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ",
}  # fmt: skip
"""Phonemes of flite in misaki's symbols; "er" is two of them."""

VOWELS = frozenset("AIOWYiuæɑɔəɛɜɪʊʌᵊᵻɐ")
ALIKE = (frozenset("tdɾT"), frozenset("sz"), frozenset("ʃʒ"), frozenset("ʧʤ"), frozenset("nŋm"), frozenset("θð"),
         frozenset("əɪʌɐᵻᵊɛɜʊ"), frozenset("ɑɔO"), frozenset("iɪᵻ"))  # fmt: skip
GAP = 0.6
"""Cost of a phoneme that only one of two pronunciations has; another vowel costs 0.5, another consonant 1."""


@dataclass(frozen=True)
class Alignment:
    """Units and the number of frames of each; phonemes have at least one."""

    units: tuple[str, ...]
    frames: tuple[int, ...]


def is_silent(unit: str) -> bool:
    """Whether a unit is a mark or a boundary."""
    return not any(letter.isalnum() for letter in unit)


def split_units(phonemes: str) -> list[list[int]] | None:
    """Characters that form each unit of a phoneme string: "ə kˈæt." -> [[], [0], [1], [2], [3, 4], [5], [6], []].

    The first and the last unit are boundaries without a character. None: a character is no phoneme, mark or space.
    """
    groups: list[list[int]] = [[]]
    for place, letter in enumerate(phonemes):
        before = phonemes[place - 1] if place else ""
        if letter in PHONEMES and before and before in STRESS:
            groups[-1].append(place)
        elif letter in PHONEMES or letter in MARKS or letter == " " or letter in STRESS:
            groups.append([place])
        else:
            return None
    return [*groups, []]


def unit_name(phonemes: str, group: Sequence[int]) -> str:
    """The unit that characters of a phoneme string form."""
    return "".join(phonemes[place] for place in group).strip() or BOUNDARY


def join_silence(units: Sequence[str], frames: Sequence[int]) -> Alignment:
    """Merge neighboring silent units into at most one mark, the first, and one boundary."""
    made: list[tuple[str, int]] = []
    run: list[tuple[str, int]] = []
    for unit, count in [*zip(units, frames, strict=True), ("", 0)]:
        if unit and is_silent(unit):
            run.append((unit, count))
            continue
        if run:
            total, mark = sum(count for _, count in run), next((unit for unit, _ in run if unit != BOUNDARY), None)
            half = total // 2 if mark and made else 0  # a text begins with a boundary alone
            made += [(mark, half)] if mark and made else []
            made.append((BOUNDARY, total - half))
            run = []
        if unit:
            made.append((unit, count))
    return Alignment(tuple(unit for unit, _ in made), tuple(count for _, count in made))


def fit_boundaries(ends: Sequence[int], sounding: Sequence[bool]) -> list[int]:
    """Frames per unit from the frame where each ends; every sounding unit gets a frame, boundaries move minimally.

    Raises:
        ValueError: there are fewer frames than sounding units.
    """
    total, needed = ends[-1], sum(sounding)
    if needed > total:
        raise ValueError(f"{needed} phonemes do not fit into {total} frames")
    fitted, least = [], 0
    for end, sounds in zip(ends, sounding, strict=True):  # forward: room for the units before
        least = max(end, least + sounds)
        fitted.append(least)
    most = total
    for place in range(len(fitted) - 1, -1, -1):  # backward: room for the units after
        fitted[place] = min(fitted[place], most)
        most = fitted[place] - sounding[place]
    return [end - start for start, end in zip([0, *fitted[:-1]], fitted, strict=True)]


def match_pronunciations(spoken: Sequence[str], wanted: Sequence[str]) -> tuple[float, list[int | None]]:
    """Align two phoneme sequences by edit distance.

    Returns:
        the cost per phoneme, and for each wanted phoneme the index of the spoken one, None where it was left out.
    """
    rows, columns = len(spoken) + 1, len(wanted) + 1
    cost = [[GAP * (i + j) for j in range(columns)] for i in range(rows)]
    for i in range(1, rows):
        for j in range(1, columns):
            swap = cost[i - 1][j - 1] + difference(spoken[i - 1], wanted[j - 1])
            cost[i][j] = min(swap, cost[i - 1][j] + GAP, cost[i][j - 1] + GAP)
    pairs: list[int | None] = [None] * len(wanted)
    i, j = len(spoken), len(wanted)
    while i and j:
        if cost[i][j] == cost[i - 1][j - 1] + difference(spoken[i - 1], wanted[j - 1]):
            i, j = i - 1, j - 1
            pairs[j] = i
        elif cost[i][j] == cost[i - 1][j] + GAP:
            i -= 1
        else:
            j -= 1
    return cost[-1][-1] / max(1, len(wanted)), pairs


def difference(one: str, other: str) -> float:
    """Cost of one phoneme in the place of another; stress marks do not count."""
    a, b = one.lstrip(STRESS), other.lstrip(STRESS)
    if a == b:
        return 0.0
    if any(a in alike and b in alike for alike in ALIKE):
        return 0.2
    if (a in VOWELS) != (b in VOWELS):
        return 2.0
    return 0.5 if a in VOWELS else 1.0


def label_track(alignment: Alignment) -> str:
    """Content of an .align file: one line "start<TAB>end<TAB>unit" per unit, in seconds."""
    lines, place = [], 0
    for unit, count in zip(alignment.units, alignment.frames, strict=True):
        lines.append(f"{place * FRAME_SECONDS:.3f}\t{(place + count) * FRAME_SECONDS:.3f}\t{unit}\n")
        place += count
    return "".join(lines)
