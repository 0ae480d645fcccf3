"""Texts on which speech models lose, repeat or invent words: 1,000 of them, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

COUNTS = {
    "repeated words": 300,
    "numbers": 200,
    "single words": 250,
    "letters": 100,
    "short words": 130,
    "paragraphs": 20,
}
REPEATED = "no yes go very far ha one never really buffalo row bye the a and".split()
SINGLE = (
    "no yes a I hello stop world oh go water tomorrow it elephant up eight strength two beautiful ought sky impossible "
    "red music thirty queue the through us extraordinary"
).split()
SHORT = "of to a in it is at as or an on the and for was had that".split()
NOUNS = "house river doctor garden letter window summer kitchen teacher mountain".split()
PARTS = (
    "The old man walked along the river and looked at the boats.",
    "It was late in the year, and the leaves had turned red and brown.",
    "Nobody knew where the road would lead, but they followed it anyway.",
    "She opened the window, because the room was far too warm.",
    "He said that he had seen it, that he had heard it, and that he had not believed it.",
    "In the morning the market was full of people, fruit, and noise.",
    "They counted to ten, and then they counted to ten again.",
    "A dog, a cat, and a horse lived on the farm at the end of the lane.",
    "If it rains tomorrow, we will stay at home and read.",
    "What he wanted was not what he needed, and what he needed was not there.",
    "The train was late, the bus was full, and so she went on foot.",
    "There is a light in the tower that never goes out.",
)


@dataclass(frozen=True)
class HardSentence:
    """A text and why it is hard."""

    kind: str
    text: str


def hard_sentences(seed: int = 0, counts: dict[str, int] | None = None) -> list[HardSentence]:
    """The texts, kind after kind; `counts` by kind instead of COUNTS."""
    found = []
    for kind, count in (counts or COUNTS).items():
        texts = _MAKERS[kind](random.Random(f"{seed} {kind}"))
        found += [HardSentence(kind, next(texts)) for _ in range(count)]
    return found


def _repeated(chance: random.Random) -> Iterator[str]:
    while True:
        word, times = chance.choice(REPEATED), chance.randint(2, 8)
        plain = " ".join([word] * times)
        yield (
            chance.choice([plain, ", ".join([word] * times), f"he said {plain}", f"{plain} and then stop"]).capitalize()
            + "."
        )


def _numbers(chance: random.Random) -> Iterator[str]:
    while True:
        digits = [str(chance.randint(0, 9)) for _ in range(12)]
        groups = [" ".join(digits[place : place + 3]) for place in range(0, 12, 3)]
        large = str(chance.randint(10**11, 10**12 - 1))
        yield chance.choice(
            [f"The number is {', '.join(groups)}.", f"{' '.join(digits)}.", f"{large}.", f"There are {large}."]
        )


def _single(chance: random.Random) -> Iterator[str]:
    while True:
        yield chance.choice(SINGLE).capitalize() + chance.choice([".", "!", "?", ""])


def _letters(chance: random.Random) -> Iterator[str]:
    while True:
        letters = [chance.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(chance.randint(1, 6))]
        yield chance.choice([", ".join(letters), f"Spell it {', '.join(letters)}"]) + "."


def _short(chance: random.Random) -> Iterator[str]:
    while True:
        words = [chance.choice(SHORT) for _ in range(chance.randint(3, 9))]
        words.insert(chance.randrange(len(words)), chance.choice(NOUNS))
        yield " ".join(words).capitalize() + "."


def _paragraphs(chance: random.Random) -> Iterator[str]:
    while True:
        parts: list[str] = []
        while sum(len(part.split()) for part in parts) < 290:
            parts.append(chance.choice(PARTS))
        yield " ".join(parts)


_MAKERS = {
    "repeated words": _repeated,
    "numbers": _numbers,
    "single words": _single,
    "letters": _letters,
    "short words": _short,
    "paragraphs": _paragraphs,
}
