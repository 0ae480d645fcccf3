"""Scenes of two to four drawings: how many there are, beside and above each other, in colors.

two cats | two cats beside a red house | a star above a tree | a house to the right of two cats
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .ideas import Idea, plural
from .plan import Drawings, HeldOut, Picture, Placed

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
Slot = tuple[int, int, int]
"""Left, top and side, in units of a picture of 32."""
COUNTED: dict[int, tuple[Slot, ...]] = {
    2: ((0, 8, 16), (16, 8, 16)),
    3: ((8, 0, 16), (0, 16, 16), (16, 16, 16)),
    4: ((0, 0, 16), (16, 0, 16), (0, 16, 16), (16, 16, 16)),
}
LEFT: dict[int, tuple[Slot, ...]] = {1: ((0, 7, 17),), 2: ((0, 1, 15), (0, 16, 15))}
RIGHT: Slot = (15, 7, 17)
ABOVE: tuple[Slot, Slot] = ((8, 0, 16), (8, 16, 16))
KINDS = {"counted": 0.3, "beside": 0.35, "above": 0.2, "two beside": 0.15}
"""Share of the scenes of each kind."""
COLORED = 0.35
"""Share of the things in another color."""


@dataclass(frozen=True)
class Thing:
    """One or several of an idea."""

    idea: Idea
    color: str | None
    count: int = 1

    @property
    def phrase(self) -> str:
        """As in "a red house" or "two cats"."""
        name = self.idea.name if self.count == 1 else plural(self.idea.name)
        words = f"{self.color} {name}" if self.color else name
        if self.count > 1:
            return f"{NUMBERS[self.count]} {words}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def at(self, slots: tuple[Slot, ...]) -> tuple[Placed, ...]:
        """Its drawings in these slots."""
        return tuple(Placed(self.idea, *slot, color=self.color) for slot in slots)


Key = tuple[str, ...]
"""What makes two scenes the same: the ideas of two things, or the count and the idea of one."""


class Scenes:
    """An endless series of scenes, a function of the seed.

    Args:
        taken: keys that do not occur.
    """

    def __init__(self, drawings: Drawings, held: HeldOut, seed: str, taken: frozenset[Key] = frozenset()):
        self.drawings, self.held, self.taken = drawings, held, taken
        self.draw = random.Random(seed)
        self.things = [idea for idea in drawings.ideas if idea.is_thing]

    def pictures(self, folder: str, count: int) -> Iterator[tuple[Key, Picture]]:
        """That many scenes with their keys."""
        number = 0
        while number < count:
            style = self.draw.choice(self.drawings.styles)
            (kind,) = self.draw.choices(list(KINDS), list(KINDS.values()))
            key, text, things = self._scene(kind, style)
            if key not in self.taken:
                yield key, Picture(f"{folder}/{style}-{number:05d}.png", text, style, things)
                number += 1

    def _scene(self, kind: str, style: str) -> tuple[Key, str, tuple[Placed, ...]]:
        if kind == "counted":
            thing = self._thing(style, self.draw.randint(2, 4))
            return (str(thing.count), thing.idea.code), thing.phrase, thing.at(COUNTED[thing.count])
        first, second = self._thing(style, 2 if kind == "two beside" else 1), self._thing(style)
        while second.idea == first.idea:
            second = self._thing(style)
        key = tuple(sorted((first.idea.code, second.idea.code)))
        a, b = first.phrase, second.phrase
        if kind == "above":
            text = f"{a} above {b} | {b} below {a} | {a} over {b} | {b} under {a}"
            return key, text, first.at(ABOVE[:1]) + second.at(ABOVE[1:])
        text = f"{a} beside {b} | {a} to the left of {b} | {b} to the right of {a} | {a} and {b} | {b} beside {a}"
        return key, text, first.at(LEFT[first.count]) + second.at((RIGHT,))

    def _thing(self, style: str, count: int = 1) -> Thing:
        while True:
            idea = self.draw.choice(self.things)
            if style in self.drawings.styles_of[idea.code] and (idea.code, style) not in self.held.pairs:
                break
        color = None
        if self.drawings.is_recolored(idea) and self.draw.random() < COLORED:
            color = self.draw.choice([*self.drawings.changes(idea), None])
            color = None if (idea.code, color) in self.held.colors else color
        return Thing(idea, color, count)
