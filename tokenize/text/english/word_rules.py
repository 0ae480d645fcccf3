"""How English abbreviations, initials, numerals in names, addresses and marks are spoken.

Rules as in number_rules.py. What depends on the lexicon, such as capitals that are spelled, is left to
pronunciation.py.
"""

from __future__ import annotations

import re

from .number_rules import END, Rule, alternatives, is_ending
from .number_words import cardinal, code_number, digit_words, ordinal
from .tables import (
    ABBREVIATIONS,
    ALWAYS_TITLES,
    BEFORE_NUMBERS,
    DAYS,
    DOMAINS,
    FILE_TYPES,
    GREEK,
    MARKS_AS,
    MONTH_OF,
    NEVER_LAST,
    NUMBERED,
    REIGNING,
    STREETS,
    SYMBOLS,
    TITLES,
    WITHOUT_SOUND,
)

LETTER = r"[^\W\d_]"
WORD = rf"{LETTER}{{1,60}}(?:['’]{LETTER}{{1,20}}){{0,3}}"
_ROMAN = r"(?=[IVXL])(X{0,3}(?:IX|IV|V?I{0,3})|XL(?:IX|IV|V?I{0,3})|L)"
_ADDRESS_SIGNS = {
    **{".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon", "?": "question mark"},
    **{"=": "equals", "&": "and", "#": "hash", "%": "percent", "~": "tilde", "+": "plus"},
}


def _previous_word(match: re.Match[str]) -> str:
    """The word before a match, "" if a mark stands between."""
    before = re.search(rf"({WORD})\s{{1,3}}\Z", match.string[max(0, match.start() - 64) : match.start()])
    return before[1] if before else ""


def _title(match: re.Match[str]) -> str | None:
    """Before a name: Saint John, Doctor Smith. After a name: Elm Street."""
    name = match[1]
    named = re.match(r"\s{1,2}[A-Z]", match.string[match.end() : match.end() + 3])
    if name in STREETS and _previous_word(match)[:1].isupper() and (not named or not match[2]):
        return STREETS[name] + (" ." if match[2] and is_ending(match) else "")
    return TITLES[name] if named or name in ALWAYS_TITLES else None


def _abbreviation(match: re.Match[str]) -> str:
    ends = match[0].endswith(".") and match[0] not in NEVER_LAST and is_ending(match)
    return ABBREVIATIONS[match[0]] + (" ." if ends else "")


def _before_number(match: re.Match[str]) -> str:
    return BEFORE_NUMBERS[match[1].lower()]


def _day_or_month(match: re.Match[str]) -> str | None:
    name = {**DAYS, **MONTH_OF}[match[1]]
    if match[1] in ("Sun", "Sat", "Mar") and is_ending(match) and not _previous_word(match)[:1].islower():
        return None
    return name + (" ." if is_ending(match) else "")


def _initials(match: re.Match[str]) -> str:
    """U.S., I.B.M., a.m.: letters."""
    letters = "-".join(match[0].replace(".", "").upper())
    return letters + (" ." if match[0].endswith(".") and not match.string[match.end() :].strip(" \"”’')\n") else "")


def _with_and(match: re.Match[str]) -> str:
    """AT&T, R&D, Q&A."""
    return " and ".join("-".join(part) for part in match[0].split("&"))


def _roman_after_noun(match: re.Match[str]) -> str | None:
    """Henry VIII, Chapter IV, Rocky II."""
    noun, numeral = match[1], match[2]
    value = _roman_value(numeral)
    if noun.lower() in NUMBERED and noun[0].isupper():
        return f"{noun} {cardinal(value)}"
    if noun in REIGNING and numeral not in ("I", "L", "X"):
        return f"{noun} the {ordinal(value)}"
    if len(numeral) > 1 and noun[0].isupper() and numeral not in ("XL", "LI", "LX"):
        return f"{noun} {cardinal(value)}"
    return None


def _roman_value(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[letter] for letter in numeral]
    return sum(-value if value < max(values[place:]) else value for place, value in enumerate(values))


def _code(match: re.Match[str]) -> str:
    """A380, B-52, MP3, GPT-4, v2.0."""
    numeral = re.fullmatch("[IVXL]+|v", match[1])
    whole, *parts = match[2].split(".")
    number = " point ".join([code_number(whole), *map(digit_words, parts)])
    return f"{'-'.join(match[1].upper()) if numeral else match[1]} {number}"


def _address(match: re.Match[str]) -> str:
    """E-mail and web addresses and file names, without the scheme."""
    parts = re.findall(r"[^\W\d_]+|[0-9]+|[\W_]", re.sub(r"(?i)\A[a-z]{2,6}://", "", match[0]).rstrip("/"))
    words = []
    for place, part in enumerate(parts):
        if part.isdecimal():
            words.append(code_number(part[:60]))
        elif part[0].isalpha():
            spelled = part.lower() == "www" or (place and parts[place - 1] == "." and _is_spelled(part.lower()))
            words.append("-".join(part.upper()) if spelled else part)
        else:
            words.append(_ADDRESS_SIGNS.get(part, ""))
    return " ".join(word for word in words if word)


def _is_spelled(ending: str) -> bool:
    """Whether the ending of an address or a file name is spelled: not com, org, zip."""
    return len(ending) < 4 and ending in {*DOMAINS, *FILE_TYPES} - _SAID


_SAID = set("com org net biz me be in it at no us app dev mil int zip doc tar go wav exe py".split())
"""Short endings that are words."""


def _hashtag(match: re.Match[str]) -> str:
    return "hashtag" if match[1] else "number"


def _mark(match: re.Match[str]) -> str | None:
    return MARKS_AS.get(match[0])


def _symbol(match: re.Match[str]) -> str | None:
    return SYMBOLS.get(match[0])


def _greek(match: re.Match[str]) -> str | None:
    return GREEK.get(match[0].lower())


_ENDINGS = alternatives("com org net edu gov io ai co uk de fr info dev app tv".split())
_FILES = alternatives(FILE_TYPES)

ADDRESS_RULES: list[Rule] = [
    (re.compile(r"(?i)(?:https?|ftp)://[^\s<>\"'”“()]{1,300}[\w/]"), _address),
    (re.compile(r"(?i)www\.[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}(?:/[^\s<>\"'”“()]{0,300}[\w/]|/)?"), _address),
    (re.compile(r"[\w+-]{1,64}(?:\.[\w+-]{1,64}){0,6}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"), _address),
    (
        re.compile(
            rf"(?i)[a-z0-9][\w-]{{0,63}}(?:\.[\w-]{{1,63}}){{0,6}}\.(?:{_ENDINGS})"
            r"(?:/[^\s<>\"'”“()]{0,300}[\w/]|/)?(?![\w@-]|\.\w)"
        ),
        _address,
    ),
    (re.compile(rf"(?i)[a-z0-9][\w-]{{0,63}}\.(?:{_FILES})(?!\w)"), _address),
]
"""Begin with a letter or a digit."""

WORD_RULES: list[Rule] = [
    (re.compile(rf"({alternatives(TITLES)})(\.?){END}"), _title),
    (re.compile(rf"(?:{alternatives(set(ABBREVIATIONS) - {'c.', 'v.'})}){END}"), _abbreviation),
    (re.compile(r"c\.(?=\s?[0-9])|v\.(?=\s[A-Z])"), _abbreviation),
    (re.compile(rf"(?i)({alternatives(BEFORE_NUMBERS)})\.(?=\s?[0-9])"), _before_number),
    (re.compile(rf"({alternatives({*DAYS, *MONTH_OF} - {'May'})})\."), _day_or_month),
    (re.compile(rf"(?:{LETTER}\.){{2,8}}(?:{LETTER}(?![^\W_]))?|[A-Z]\.[A-Z](?![^\W_])"), _initials),
    (re.compile(r"[A-Z]{1,4}&[A-Z]{1,4}(?![^\W_])"), _with_and),
    (re.compile(rf"({LETTER}{{1,30}})\s{_ROMAN}(?!\w|['’-]\w)"), _roman_after_noun),
    (re.compile(rf"([A-Z]{{1,5}}|v)-?([0-9]{{1,6}}(?:\.[0-9]{{1,6}}){{0,3}}){END}"), _code),
    (re.compile(r"[\u0370-\u03ff\u00b5](?![^\W\d_])"), _greek),
]
"""Begin with a letter."""

SIGN_RULES: list[Rule] = [
    (re.compile(r"#(?:(?=[0-9])|(?=([^\W\d_])))"), _hashtag),
    (re.compile(r"/(?=(?:day|week|month|year|hour|minute|second|person|head|kg|lb|GB)\b)"), lambda match: "per"),
    (re.compile(r"['’](?:n|N)['’](?!\w)"), lambda match: "and"),
    (re.compile(r"(?<=\s)\*(?=\s[0-9])"), lambda match: "times"),
    (re.compile(r"(?<=\s)<(?=\s)"), lambda match: "is less than"),
    (re.compile(r"(?<=\s)>(?=\s)"), lambda match: "is greater than"),
    (re.compile(r"(?<=\s)/(?=\s)"), lambda match: "slash"),
    (re.compile(r"-{2,9}|(?<=\s)[-–](?=\s)"), lambda match: ","),
    (re.compile(r"\.{2,9}|…"), lambda match: "." if is_ending(match) else ","),
    (re.compile(r"\.(?=[A-Z]{2,9}(?![^\W_]))(?<!\w\.)"), lambda match: "dot"),
    (re.compile("."), _mark),
    (re.compile("."), _symbol),
    (re.compile(f"[{re.escape(''.join(WITHOUT_SOUND))}]"), lambda match: ""),
]
"""Begin with anything else."""
