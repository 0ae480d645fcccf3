"""The pictures of the corpus as lists of placed drawings, and what of them is held out for testing.

    pictures   one drawing, filling the picture
    moved      of one in four the same drawing smaller, elsewhere, and mirrored where nothing is written on it
    colors     one drawing in another color, with the color word in its caption
    scenes     two to four drawings (scenes.py)

Held out are pairs of idea and style (the idea is drawn in other styles in training, and no training picture of any
kind has the pair), pairs of idea and color, and scenes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .colors import CHANGES, PROTOTYPES
from .ideas import Idea, caption

SIDE = 32
"""Side of a picture in the units of places; a picture of 64 pixels is twice as large."""
FULL = 30
"""Side of the drawing of a picture: one pixel of white around it."""
COLOR_NAMES = re.compile(rf"\b({'|'.join(PROTOTYPES)}|black|white|gr[ae]y|gold(en)?|silver|rainbow|colou?r\w*)\b")
MIRRORED = {"animals-nature", "food-drink"}
"""Groups whose drawings show the same when mirrored."""
COLORS_EACH = 1
"""Pictures in another color of each drawing."""
MOVED = 0.25
"""Share of the drawings that are also there moved: more of them, and a caption says less of where things are."""


@dataclass(frozen=True)
class Placed:
    """A drawing at its place."""

    idea: Idea
    left: int = 1
    top: int = 1
    side: int = FULL
    color: str | None = None
    """Another color; None: its own."""
    mirrored: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture of the corpus."""

    file: str
    text: str
    """Its caption, see ideas.py."""
    style: str
    things: tuple[Placed, ...]


@dataclass(frozen=True)
class HeldOut:
    """What no training picture has."""

    pairs: frozenset[tuple[str, str]]
    """(code, style)."""
    colors: frozenset[tuple[str, str]]
    """(code, color)."""


class Drawings:
    """Which ideas are drawn in which styles, and the color word of each drawing.

    Args:
        colors: by (code, style), for all drawings that exist; None: it has no color word.
    """

    def __init__(self, ideas: Sequence[Idea], styles: Sequence[str], colors: dict[tuple[str, str], str | None]):
        self.ideas, self.styles, self.colors = list(ideas), list(styles), colors
        self.styles_of = {idea.code: [style for style in styles if (idea.code, style) in colors] for idea in ideas}

    def color(self, idea: Idea, style: str) -> str | None:
        """The color word for a caption: none for people, and where the name says it."""
        if idea.group == "people-body" or COLOR_NAMES.search(idea.name):
            return None
        return self.colors[idea.code, style]

    def is_recolored(self, idea: Idea) -> bool:
        """Whether its drawings get other colors."""
        return idea.group != "people-body" and not COLOR_NAMES.search(idea.name)

    def changes(self, idea: Idea) -> list[str]:
        """Colors that no drawing of an idea has."""
        own = {self.colors[idea.code, style] for style in self.styles_of[idea.code]}
        return [word for word in CHANGES if word not in own]


def hold_out(drawings: Drawings, pairs: int, colors: int, seed: int) -> HeldOut:
    """Draw the pairs that are held out: as many of each style, at most one of an idea."""
    draw = random.Random(f"held out {seed}")
    ideas = [idea for idea in drawings.ideas if len(drawings.styles_of[idea.code]) >= 3]
    draw.shuffle(ideas)
    wanted = {style: pairs // len(drawings.styles) for style in drawings.styles}
    chosen = set()
    for idea in ideas:
        open_styles = [style for style in drawings.styles_of[idea.code] if wanted[style]]
        if open_styles:
            style = max(open_styles, key=lambda name: wanted[name])
            wanted[style] -= 1
            chosen.add((idea.code, style))
    draw.shuffle(ideas)
    colored = [idea for idea in ideas if drawings.is_recolored(idea) and drawings.changes(idea)]
    words = {(idea.code, draw.choice(drawings.changes(idea))) for idea in colored[:colors]}
    return HeldOut(frozenset(chosen), frozenset(words))


def single_pictures(drawings: Drawings, held: HeldOut, seed: int) -> Iterator[Picture]:
    """Training pictures of one drawing."""
    draw = random.Random(f"pictures {seed}")
    for idea in drawings.ideas:
        for style in drawings.styles_of[idea.code]:
            if (idea.code, style) in held.pairs:
                continue
            text = caption(idea, drawings.color(idea, style))
            yield Picture(f"{style}/{idea.code}.png", text, style, (Placed(idea),))
            if draw.random() < MOVED:
                yield Picture(f"{style}/{idea.code}.moved.png", text, style, (moved(idea, draw),))
            if drawings.is_recolored(idea):
                words = [word for word in drawings.changes(idea) if (idea.code, word) not in held.colors]
                for word in draw.sample(words, min(COLORS_EACH, len(words))):
                    yield colored(idea, style, word)


def moved(idea: Idea, draw: random.Random) -> Placed:
    """A drawing somewhat smaller, at a random place."""
    side = draw.randint(22, FULL)
    left, top = draw.randint(0, SIDE - side), draw.randint(0, SIDE - side)
    return Placed(idea, left, top, side, mirrored=idea.group in MIRRORED and draw.random() < 0.5)


def colored(idea: Idea, style: str, word: str) -> Picture:
    """A drawing in another color."""
    text = f"{word} {idea.name} | {'an' if word[0] in 'aeiou' else 'a'} {word} {idea.name}"
    if idea.article == idea.name:
        text = f"{word} {idea.name}"
    return Picture(f"{style}/{idea.code}.{word}.png", text, style, (Placed(idea, color=word),))


def test_pictures(drawings: Drawings, held: HeldOut, seed: int) -> Iterator[Picture]:
    """Pictures of the held-out pairs, "pairs/..." and "colors/..."."""
    draw = random.Random(f"test {seed}")
    for idea in drawings.ideas:
        for style in drawings.styles_of[idea.code]:
            if (idea.code, style) in held.pairs:
                text = caption(idea, drawings.color(idea, style))
                yield Picture(f"pairs/{style}/{idea.code}.png", text, style, (Placed(idea),))
        for word in CHANGES:
            if (idea.code, word) in held.colors:
                styles = [style for style in drawings.styles_of[idea.code] if (idea.code, style) not in held.pairs]
                picture = colored(idea, draw.choice(styles), word)
                yield Picture(f"colors/{picture.file}", picture.text, picture.style, picture.things)
