"""Sentences and words of WordNet (Debian: apt install wordnet-base): examples and definitions that read cleanly.

Source: WordNet 3.0, https://wordnet.princeton.edu, WordNet licence (free for any use, with its notice).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
CLEAN = re.compile(r"[A-Za-z][A-Za-z' ,;:?!-]*[A-Za-z][.?!]?")
UNWANTED = re.compile(
    r"\b(slurs?|offensive|disparag\w*|vulgar|obscene|derogatory|taboo|racist|sexual\w*|coitus|genital\w*|prostitut\w*)\b",
    re.I,
)
"""Synsets whose gloss has one of these words are left out."""


@dataclass(frozen=True)
class WordNet:
    """What sentences are made from, in a fixed order."""

    examples: tuple[str, ...]
    """Example sentences and phrases, with a capital letter and an end mark."""
    definitions: tuple[tuple[str, str], ...]
    """A noun and its definition, without end mark: ("heifer", "young cow")."""
    nouns: tuple[str, ...]
    """Common nouns of one word, the most frequent ones first."""
    verbs: tuple[str, ...]
    """Common verbs of one word, the most frequent ones first."""
    adjectives: tuple[str, ...]
    """Common adjectives of one word, the most frequent ones first."""
    names: tuple[str, ...]
    """Names of people and places, of one word."""


def read_wordnet(folder: Path = WORDNET) -> WordNet:
    """Read the database. Raises FileNotFoundError if it is not installed."""
    if not (folder / "data.noun").is_file():
        raise FileNotFoundError(f"{folder}: WordNet is not installed; on Debian: apt install wordnet-base")
    examples: dict[str, None] = {}
    definitions: dict[tuple[str, str], None] = {}
    names: dict[str, None] = {}
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{kind}").read_text(encoding="latin-1").splitlines():
            if line.startswith(" ") or "|" not in line:
                continue
            fields, gloss = line.split("|", 1)
            if UNWANTED.search(gloss):
                continue
            examples |= dict.fromkeys(found for found in map(as_sentence, quoted(gloss)) if found)
            word = fields.split()[4].replace("_", " ")
            definition = first_definition(gloss)
            if kind == "noun" and definition and re.fullmatch(r"[a-z][a-z' -]+", word):
                definitions[word, definition] = None
            if kind == "noun" and re.fullmatch(r"[A-Z][a-z]{2,}", word) and " @i " in f" {fields} ":
                names[word] = None
    common = [frequent_words(folder, number) for number in (1, 2, 3)]
    return WordNet(tuple(examples), tuple(definitions), common[0], common[1], common[2], tuple(names))


def quoted(gloss: str) -> list[str]:
    """Quoted examples of a gloss, without citations, which name their author after the quote."""
    return [found.group(1) for found in re.finditer(r'"([^"]+)"(?!\s*[-(]|[^";]*[A-Z])', gloss)]


def as_sentence(text: str) -> str | None:
    """The text with a capital letter and an end mark; None if it is not 2 to 30 words of letters and plain marks."""
    text = " ".join(text.replace("`", "'").split()).strip(" ;,")
    if not CLEAN.fullmatch(text) or not 2 <= len(text.split()) <= 30:
        return None
    if re.search(r"[A-Z]{2}|--|(?<![a-z])'(?!s\b)|'(?![a-z])|\s[,;:?!-]|-\s|[,;:?!]\S", text):
        return None  # initials, nested quotes, and stray marks
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def first_definition(gloss: str) -> str | None:
    """The first definition of a gloss; None if it does not read cleanly or is not 2 to 25 words."""
    text = " ".join(re.split(r'[;"]', gloss)[0].split())
    clean = re.fullmatch(r"[a-z][A-Za-z' ,-]+[a-z]", text) and not re.search(r"[A-Z]{2}|--|\s[,-]|-\s|,\S", text)
    return text if clean and 2 <= len(text.split()) <= 25 else None


def frequent_words(folder: Path, part: int, least: int = 3) -> tuple[str, ...]:
    """Words of one part of speech (1 noun, 2 verb, 3 adjective) that occur at least `least` times in WordNet's tagged
    texts, the most frequent first."""
    counts: dict[str, int] = {}
    for line in (folder / "cntlist.rev").read_text(encoding="latin-1").splitlines():
        sense, _, count = line.split()
        word, rest = sense.split("%")
        if rest.startswith(f"{part}:") and re.fullmatch(r"[a-z]{2,}", word):
            counts[word] = counts.get(word, 0) + int(count)
    kept = [word for word, count in counts.items() if count >= least]
    return tuple(sorted(kept, key=lambda word: (-counts[word], word)))
