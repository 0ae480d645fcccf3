"""What the pictures show: the ideas of Unicode emoji with their names and keywords, and captions for them.

A caption of the corpus lists alternatives, separated by "|"; an alternative may list parts, separated by commas, of
which any may be used in any order. The first alternative is the name.

    red apple | a red apple | red apple, fruit, healthy, diet

Left out: flags of countries and regions, skin tones, families by their members, people who face the other way, letters
and hair alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .packages import Package, plain_code

LEFT_OUT = {"country-flag", "subdivision-flag", "skin-tone", "hair-style", "family"}
"""Subgroups. Of "family", couples without named members stay."""
CONCRETE = {"animals-nature", "food-drink", "travel-places", "activities", "objects"}
"""Groups of things that can be counted and stand beside others."""
SKY = {"sky-weather", "time", "place-map", "place-other", "place-geographic", "hotel"}
"""Subgroups of views and instruments, of which there are no two side by side."""
ORDINALS = {"1st": "first", "2nd": "second", "3rd": "third"}
UNCOUNTABLE = {
    "bread", "rice", "corn", "salt", "ice", "butter", "honey", "sake", "milk", "garlic", "ginger", "herb", "wood",
    "fire", "yarn", "thread", "soap", "money", "dna", "mate", "oden", "popcorn", "water", "food", "tea", "luggage",
    "camping", "confetti", "ballet", "fog", "wind", "construction", "jeans", "scissors", "glasses", "goggles",
    "shorts", "chopsticks", "sunglasses", "pants", "grapes", "pancakes", "beans", "fries", "maracas", "skis",
    "fireworks", "sparkles", "books", "socks", "gloves", "cards", "dice", "houses", "clubs", "swords", "wave",
    "rain", "snow",
}  # fmt: skip
"""Last words of names without "a" and without a plural."""


@dataclass(frozen=True)
class Idea:
    """One emoji."""

    code: str
    """Plain code points, as in file names: "1f34e"."""
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def article(self) -> str:
        """The name as a noun phrase: "a red apple", "grapes"."""
        return self.name if not countable(self.name) else f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    @property
    def is_thing(self) -> bool:
        """Whether it is a thing with a short name that can be counted: good for scenes."""
        short = re.fullmatch(r"[a-z]+( [a-z]+)?", self.name) is not None
        return short and countable(self.name) and self.group in CONCRETE and self.subgroup not in SKY


def read_ideas(package: Package) -> list[Idea]:
    """All ideas, in the order of Unicode."""
    messages = package.json("en/messages.json")
    groups = {entry["order"]: entry["key"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    ideas = []
    for entry in sorted(package.json("en/data.json"), key=lambda entry: entry.get("order", 0)):
        label, subgroup = entry["label"], subgroups.get(entry.get("subgroup"))
        unwanted = subgroup in LEFT_OUT and (subgroup != "family" or ":" in label)
        if subgroup is None or unwanted or "facing right" in label:
            continue
        keywords = tuple(clean(word) for word in entry.get("tags", ()) if re.fullmatch(r"[A-Za-z -]+", word))
        group = groups[entry["group"]]
        ideas.append(Idea(plain_code(entry["hexcode"]), clean(label), keywords, group, subgroup))
    return ideas


def clean(label: str) -> str:
    """A label in lower case, without marks: "person: blond hair" -> "person with blond hair"."""
    text = label.replace("’", "'").lower()
    text = re.sub(r"\([^)]*\)|[“”!.]", "", text)
    text = re.sub(r"^(keycap): ", r"\1 ", text)
    text = re.sub(r"^(family): ", r"\1 of ", text).replace(": ", " with ")
    text = re.sub(r"\b(1st|2nd|3rd)\b", lambda found: ORDINALS[found.group()], text)
    text = text.replace("#", "hash").replace("*", "asterisk").replace("&", "and")
    return " ".join(text.replace(", ", " and ").replace(",", " ").replace("|", " ").split())


def countable(name: str) -> bool:
    """Whether "a" can stand before a name."""
    last = name.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    return name[0].isalpha() and last not in UNCOUNTABLE and not plural and " and " not in name


def plural(name: str) -> str:
    """The plural of a countable name: "two ..."."""
    irregular = {"mouse": "mice", "goose": "geese", "leaf": "leaves", "knife": "knives", "ox": "oxen", "sheep": "sheep",
                 "fish": "fish", "deer": "deer", "wolf": "wolves", "tooth": "teeth", "loaf": "loaves", "foot": "feet",
                 "squid": "squid", "shrimp": "shrimp", "bison": "bison", "salmon": "salmon"}  # fmt: skip
    words = name.split()
    last = words[-1]
    if last in irregular:
        made = irregular[last]
    elif re.search(r"(s|x|z|ch|sh|[^aeiou]o)$", last) and last not in ("yo-yo", "piano", "photo", "mango", "kimono"):
        made = last + "es"
    elif re.search(r"[^aeiou]y$", last):
        made = last[:-1] + "ies"
    else:
        made = last + "s"
    return " ".join([*words[:-1], made])


def first_caption(text: str) -> str:
    """The first alternative of a caption."""
    return text.partition("|")[0].strip()


def caption(idea: Idea, color: str | None = None) -> str:
    """Alternatives for a picture of an idea.

    Args:
        color: the color word of the picture, if it has one that the name does not say.
    """
    phrases = [idea.name, idea.article]
    if color is not None:
        phrases += [f"{color} {idea.name}"]
    parts = [idea.name, *([color] if color else []), *(word for word in idea.keywords if word != idea.name)]
    if len(parts) > 1:
        phrases.append(", ".join(dict.fromkeys(parts)))
    return " | ".join(dict.fromkeys(phrases))
