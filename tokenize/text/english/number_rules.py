"""How English text with digits is spoken: dates, times, money, units, fractions, ranges, telephone numbers, versions.

A rule is a pattern and a function from its match to spoken words, or to None where the pattern does not apply. The
first rule that applies at a place of the text is taken. Repetitions are bounded, so that the time is linear in the
text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

from . import number_words
from .number_words import cardinal, digit_words, hyphenated, number, ordinal, plural
from .tables import AREAS, CURRENCIES, MAGNITUDES, MONTH_OF, MONTHS, ONLY_TOUCHING, UNITS

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]]

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}(?![0-9])|[0-9]{1,60})(?:\.[0-9]{1,60})?"
DASH = r"[-–—‑−]"
END = r"(?![^\W_])"
"""No letter or digit follows."""
FRACTION_NAMES = {2: "half", 4: "quarter"}
FRACTION_PARTS = {*range(2, 11), 12, 15, 16, 20, 32, 64, 100, 1000}
AS_NAMES = {(24, 7), (9, 11), (7, 11), (50, 50)}
"""Fractions that are read without "over"."""


def alternatives(names: Iterable[str]) -> str:
    """A pattern for any of several strings, longer ones first."""
    return "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))


def is_ending(match: re.Match[str]) -> bool:
    """Whether a sentence may end after the match: the text does, or a capitalized word follows."""
    rest = match.string[match.end() : match.end() + 4].lstrip(" \"”’')")
    return not rest or rest[0] == "\n" or (match.string[match.end()].isspace() and rest[0].isupper())


def _iso_date(match: re.Match[str]) -> str | None:
    return _date(match[3], match[2], match[1])


def _slash_date(match: re.Match[str]) -> str | None:
    """Month first; day first where the first number is no month, and with dots."""
    first, second, year = match[1], match[3], match[4]
    day_first = int(first) > 12 or match[2] == "."
    if len(year) == 3:
        return None
    if len(year) == 2:
        year = f"{'19' if int(year) > 50 else '20'}{year}"
    return _date(first, second, year) if day_first else _date(second, first, year)


def _date(day: str, month: str, year: str) -> str | None:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return None
    return f"{MONTHS[int(month) - 1]} {ordinal(int(day))} {number_words.year(int(year))}"


def _month_day(match: re.Match[str]) -> str | None:
    if not 1 <= int(match[2]) <= 31:
        return None
    year = f" , {number_words.year(int(match[3]))}" if match[3] else ""
    return f"{MONTH_OF[match[1]]} {ordinal(int(match[2]))}{year}"


def _day_month(match: re.Match[str]) -> str | None:
    if not 1 <= int(match[1]) <= 31:
        return None
    the = "" if re.search(r"(?i)\bthe\s{1,3}\Z", match.string[max(0, match.start() - 8) : match.start()]) else "the "
    return f"{the}{ordinal(int(match[1]))} of {MONTH_OF[match[2]]}"


def _time(match: re.Match[str]) -> str | None:
    hour, minute, second, half = int(match[1]), int(match[2] or 0), match[3], match[4]
    if hour > 24 or minute > 59 or (match[2] is None and half is None):
        return None
    words = cardinal(hour)
    if minute:
        words += f" {'oh ' if minute < 10 else ''}{hyphenated(minute)}"
    elif not half and not second:
        words += " hundred" if hour > 12 or hour == 0 else " o'clock"
    if second:
        words += f" and {cardinal(int(second))} second{'s' * (int(second) != 1)}"
    if half:
        words += f" {half[0].upper()}-M" + (" ." if half.endswith(".") and is_ending(match) else "")
    return words + (" to" if match[5] else "")


def _phone(match: re.Match[str]) -> str:
    plus = "plus " if match[0].startswith("+") else ""
    return plus + " , ".join(digit_words(group) for group in re.findall("[0-9]+", match[0]))


def _money(match: re.Match[str]) -> str:
    symbol, amount, magnitude = match["symbol"] or match["code"], match["amount"], match["magnitude"]
    one, many, hundredth, hundredths = CURRENCIES[symbol]
    minus = "minus " if match[0].startswith(("-", "−")) else ""
    if magnitude:
        return f"{minus}{number(amount)} {MAGNITUDES[magnitude]} {many}"
    whole, _, cents = amount.replace(",", "").partition(".")
    if len(cents) not in (0, 2):
        return f"{minus}{number(amount)} {many}"
    parts = [f"{number(whole)} {one if int(whole) == 1 else many}"] if int(whole) or not int(cents or 0) else []
    if int(cents or 0):
        parts.append(f"{cardinal(int(cents))} {hundredth if int(cents) == 1 else hundredths}")
    return minus + " and ".join(parts)


def _money_range(match: re.Match[str]) -> str:
    magnitude = f" {MAGNITUDES[match['magnitude']]}" if match["magnitude"] else ""
    return f"{number(match['from'])} to {number(match['to'])}{magnitude} {CURRENCIES[match['symbol']][1]}"


def _money_after(match: re.Match[str]) -> str:
    one, many, *_ = CURRENCIES[match[2]]
    return f"{number(match[1])} {one if match[1] == '1' else many}"


def _degrees(match: re.Match[str]) -> str:
    scales = {"C": " Celsius", "F": " Fahrenheit", "K": " Kelvin"}
    directions = {"N": " north", "S": " south", "E": " east", "W": " west"}
    words = f"{number(match[1])} degree{'s' * (match[1] != '1')}"
    return words + ({**scales, **directions}[match[2]] if match[2] else "")


def _unit(match: re.Match[str]) -> str | None:
    amount, gap, symbol, area, per = match["n"], match["gap"], match["unit"], match["area"], match["per"]
    if gap and symbol in ONLY_TOUCHING and not (area or per):
        return None
    one, many = UNITS[symbol]
    square = f"{AREAS[area]} " if area else ""
    words = f"{number(amount)} {square}{one if amount == '1' or gap == '-' else many}"
    if per:
        below = re.sub(r"[²³]|\^?[23]", "", per)
        words += f" per {UNITS[below][0] if below in UNITS else below}"
        words += {"²": " squared", "2": " squared", "³": " cubed", "3": " cubed"}.get(per[-1], "")
    return words + (" ." if match["dot"] and is_ending(match) else "")


def _feet(match: re.Match[str]) -> str:
    return f"{cardinal(int(match[1]))} foot {cardinal(int(match[2]))}"


def _percent(match: re.Match[str]) -> str:
    return f"{number(match[1])} {'percent' if match[2] == '%' else 'per mille'}"


def _fraction(match: re.Match[str]) -> str | None:
    whole, top, bottom = match[1], int(match[2]), int(match[3])
    if not 0 < top < bottom or bottom not in FRACTION_PARTS:
        return None if whole else f"{cardinal(top)} {'' if (top, bottom) in AS_NAMES else 'over '}{cardinal(bottom)}"
    return _with_whole(whole, _part(top, bottom))


def _part(top: int, bottom: int) -> str:
    name = FRACTION_NAMES.get(bottom) or ordinal(bottom)
    return f"{cardinal(top)} {name if top == 1 else 'halves' if name == 'half' else name + 's'}"


def _with_whole(whole: str | None, part: str) -> str:
    if not whole:
        return part
    return f"{number(whole)} and {part.replace('one ', 'a ', 1) if part in ('one half', 'one quarter') else part}"


def _vulgar_fraction(match: re.Match[str]) -> str | None:
    """½, 3¾."""
    top, slash, bottom = unicodedata.normalize("NFKD", match[2]).partition("\u2044")
    if not slash or not bottom:
        return None
    return _with_whole(match[1], "zero thirds" if top == "0" else _part(int(top), int(bottom)))


def _ordinal(match: re.Match[str]) -> str | None:
    digits = match[1].replace(",", "")
    return ordinal(int(digits)) if len(digits) <= number_words.MOST_DIGITS else None


def _plural_number(match: re.Match[str]) -> str:
    """the 1980s, the '90s, 747s."""
    digits = match[1]
    return plural(number_words.year(int(digits)) if len(digits) == 4 else number_words.code_number(digits))


def _range(match: re.Match[str]) -> str:
    """The first number of a range; the second one is read by the rules for what it is."""
    return f"{_plain(match[1])} to"


def _ratio(match: re.Match[str]) -> str:
    return f"{number(match[1])} to {number(match[2])}"


def _by(match: re.Match[str]) -> str:
    sign = match[2]
    return f"{_plain(match[1])} {'by' if sign in 'xX' else 'times' if sign in '×*' else 'to the power of'}"


def _version(match: re.Match[str]) -> str:
    """3.11.4, 192.168.0.1."""
    groups = match[0].split(".")
    return (" dot " if len(groups) > 3 else " point ").join(number_words.code_number(group) for group in groups)


def _magnitude(match: re.Match[str]) -> str:
    """5M, 2.5bn; 10K and 221B as letters."""
    letter = match[2] in ("k", "K") or (match[2] == "B" and "." not in match[1])
    return f"{number(match[1])} {match[2].upper() if letter else MAGNITUDES[match[2]]}"


def _number(match: re.Match[str]) -> str:
    text = match[0]
    if text == "911":
        return digit_words(text)
    after = re.match(r"\s{1,2}([a-z]{2,20}s)\b", match.string[match.end() : match.end() + 30])
    return _plain(text, counts=after is not None and after[1] not in ("is", "was", "has", "as", "this", "its", "does"))


def _plain(text: str, counts: bool = False) -> str:
    """A number; four digits are read as a year unless they count things."""
    if re.fullmatch("(1[1-9]|20)[0-9]{2}", text) and not counts:
        return number_words.year(int(text))
    return number(text)


def _signed(match: re.Match[str]) -> str:
    return {"-": "minus", "−": "minus", "–": "minus", "+": "plus", "±": "plus or minus", "~": "about"}[match[0]]


_MONTH = rf"({alternatives(MONTH_OF)})"
_UNIT = rf"(?P<unit>{alternatives(UNITS)})"
_MAGNITUDE = rf"(?P<magnitude>{alternatives(MAGNITUDES)})"
_SYMBOLS = r"US\$|[$£€¥₹₩₽₿]"
_HALF = r"([AaPp]\.?\s?[Mm]\b\.?)"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e\u2189]"

DATE_RULES: list[Rule] = [
    (
        re.compile(
            rf"{_MONTH}\.?\s{{1,2}}([0-9]{{1,2}})(?:st|nd|rd|th)?(?![\w:%$]|[.,]?[0-9])"
            r"(?:,?\s([12][0-9]{3})(?!\w|[.,][0-9]))?"
        ),
        _month_day,
    ),
]
"""Begin with the name of a month."""

NUMBER_RULES: list[Rule] = [
    (re.compile(rf"([0-9]{{4}}){DASH}([0-9]{{2}}){DASH}([0-9]{{2}})(?![0-9])"), _iso_date),
    (re.compile(r"([0-9]{1,2})([/.])([0-9]{1,2})\2([0-9]{2,4})(?![0-9]|[./][0-9])"), _slash_date),
    (re.compile(rf"([0-9]{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?{_MONTH}\b\.?"), _day_month),
    (
        re.compile(
            rf"([0-9]{{1,2}})(?::([0-5][0-9])(?::([0-5][0-9]))?)?(?:\s?{_HALF})?(?![\w:])(\s?{DASH}\s?(?=[0-9]))?"
        ),
        _time,
    ),
    (re.compile(r"(?:\+?[0-9]{1,3}[-. ])?\(?[0-9]{3}\)?[-. ]\s?[0-9]{3}[-. ][0-9]{4}(?![-\w])"), _phone),
    (re.compile(r"[0-9]{3}-[0-9]{4}(?![-\w])"), _phone),
    (re.compile(rf"({NUMBER})\s?(€|¢|£|USD|EUR|GBP|JPY){END}"), _money_after),
    (re.compile(rf"({NUMBER})\s?°\s?([CFKNSEW]\b)?"), _degrees),
    (re.compile(rf"({NUMBER})\s?([%‰])"), _percent),
    (re.compile(rf"((?:[0-9]{{2}})?[0-9]0)['’]?s{END}"), _plural_number),
    (re.compile(r"([0-9]{1,2})['′]\s?([0-9]{1,2})(?:[\"″”]|'')"), _feet),
    (
        re.compile(
            rf"(?P<n>{NUMBER})(?P<gap>[\s-]?){_UNIT}(?P<area>[²³]|\^[23](?![0-9]))?"
            rf"(?:/(?P<per>(?:{alternatives(UNITS)}|day|week|month|year)(?:[²³]|\^?[23])?))?{END}(?P<dot>\.(?![0-9]))?"
        ),
        _unit,
    ),
    (re.compile(rf"({NUMBER})(k|K|m|M|mn|bn|B|tn){END}"), _magnitude),
    (re.compile(r"(?:([0-9]{1,9})[\s-])?([0-9]{1,4})/([0-9]{1,4})(?![\w/])"), _fraction),
    (re.compile(rf"([0-9]{{1,9}})?\s?({_VULGAR})"), _vulgar_fraction),
    (re.compile(rf"([0-9]{{1,3}}(?:,[0-9]{{3}}){{1,9}}|[0-9]{{1,30}})(?:st|nd|rd|th|ST|ND|RD|TH){END}"), _ordinal),
    (re.compile(rf"([0-9]{{2,4}})['’]?s{END}"), _plural_number),
    (re.compile(rf"({NUMBER})\s?(?:[-–‑−]|—)\s?(?={NUMBER}(?!{DASH}?[0-9]))"), _range),
    (re.compile(r"([0-9]{1,6}):([0-9]{1,6})(?![\w:])"), _ratio),
    (re.compile(rf"({NUMBER})\s?([x×*^])\s?(?=[0-9])"), _by),
    (re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){2,9}(?![0-9])"), _version),
    (re.compile(NUMBER), _number),
]
"""Begin with a digit. The last one takes any number."""

SIGN_RULES: list[Rule] = [
    (
        re.compile(
            rf"(?P<symbol>{_SYMBOLS})(?P<from>{NUMBER})\s?(?:{DASH}|—)\s?(?:{_SYMBOLS})?(?P<to>{NUMBER})"
            rf"(?:[\s-]?{_MAGNITUDE}{END})?"
        ),
        _money_range,
    ),
    (
        re.compile(
            rf"[-−]?(?:(?P<symbol>{_SYMBOLS})|(?P<code>USD|EUR|GBP|JPY)\s)\s?(?P<amount>{NUMBER})"
            rf"(?:[\s-]?{_MAGNITUDE}{END})?"
        ),
        _money,
    ),
    (re.compile(r"(?:\+[0-9]{1,3}[-. ])\(?[0-9]{2,4}\)?(?:[-. ][0-9]{2,4}){1,4}(?![-\w])"), _phone),
    (re.compile(r"\([0-9]{3}\)[-. ]?[0-9]{3}[-. ][0-9]{4}(?![-\w])"), _phone),
    (re.compile(rf"()({_VULGAR})"), _vulgar_fraction),
    (re.compile(r"['’](?=[0-9]{2}s\b)"), lambda match: ""),
    (re.compile(r"(?<!\w)\.([0-9]{1,60})"), lambda match: f"point {digit_words(match[1])}"),
    (re.compile(r"(?<![\w)])[-−–+±~](?=[0-9]|\.[0-9])"), _signed),
]
"""Begin with a sign or a currency before a number."""
