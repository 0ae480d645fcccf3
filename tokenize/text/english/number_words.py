"""Numbers in words, as American English says them: cardinals, ordinals, years, decimals, digits one by one."""

from __future__ import annotations

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = ("", *"thousand million billion trillion quadrillion quintillion sextillion septillion octillion".split())
MOST_DIGITS = 3 * len(SCALES)
"""Of a number that is read as one; a longer one is read digit by digit."""
_ORDINALS = {
    **{"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"},
    "twelve": "twelfth",
}


def cardinal(number: int) -> str:
    """Words of a number from 0 to 10^30 - 1.

    >>> cardinal(1021)
    "one thousand twenty one"
    """
    if number < 20:
        return ONES[number]
    words = []
    for power in range(len(SCALES) - 1, -1, -1):
        group = number // 1000**power % 1000
        if group >= 100:
            words += [ONES[group // 100], "hundred"]
        if group % 100 >= 20:
            words += [TENS[group % 100 // 10]] + [ONES[group % 10]] * (group % 10 > 0)
        elif group % 100:
            words.append(ONES[group % 100])
        if group and power:
            words.append(SCALES[power])
    return " ".join(words)


def ordinal(number: int) -> str:
    """first, twenty-second, one hundred third; limits as `cardinal`."""
    *before, last = cardinal(number).split()
    if last in _ORDINALS:
        last = _ORDINALS[last]
    else:
        last = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    if number % 10 and before and before[-1] in TENS:
        last = f"{before.pop()}-{last}"
    return " ".join([*before, last])


def hyphenated(number: int) -> str:
    """A number below 100 as one word: forty-five."""
    return cardinal(number).replace(" ", "-")


def year(number: int) -> str:
    """A number of three or four digits read in pairs: nineteen oh five, eighteen hundred, two thousand one."""
    high, low = divmod(number, 100)
    if not 10 <= high <= 99 or (high % 10 == 0 and low < 10):
        return cardinal(number)
    if low == 0:
        return f"{cardinal(high)} hundred"
    return f"{cardinal(high)} {'oh ' if low < 10 else ''}{cardinal(low)}"


def code_number(digits: str) -> str:
    """The number in a name like A380, B-52 or GPT-4: one or two digits as a number, three or four in pairs."""
    if (digits[0] == "0" and len(digits) > 1) or len(digits) > 4:
        return digit_words(digits)
    if len(digits) < 3:
        return cardinal(int(digits))
    high, low = int(digits[:-2]), int(digits[-2:])
    if low == 0:
        return cardinal(int(digits)) if high % 10 == 0 else f"{cardinal(high)} hundred"
    return f"{cardinal(high)} {'oh ' if low < 10 else ''}{cardinal(low)}"


def digit_words(digits: str) -> str:
    """Digits one by one; other characters are left out."""
    return " ".join(ONES[int(digit)] for digit in digits if digit.isdecimal())


def number(text: str) -> str:
    """Words of a number as written: digits with thousands separators and a decimal point.

    Leading zeros, and more digits than numbers have names, are read one by one.

    >>> number("1,234.50")
    "one thousand two hundred thirty four point five zero"
    """
    whole, point, fraction = text.replace(",", "").partition(".")
    if len(whole) > MOST_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        words = digit_words(whole)
    else:
        words = cardinal(int(whole or "0"))
    return f"{words} point {digit_words(fraction)}" if point and fraction else words


def plural(words: str) -> str:
    """The plural of a number in words: nineties, sevens, sixes."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith(("x", "s")) else "s")
