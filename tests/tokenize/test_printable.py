"""Text in messages cannot act on a terminal."""

import sys

import pytest

from tessera.configs.printable import one_line, printable


def test_harmless_text_stays_and_everything_else_is_escaped():
    assert printable("a ü 日本 عربي 🙂.wav") == "a ü 日本 عربي 🙂.wav"
    assert printable("a\x1b[31mb\r\n\x9b\x7f") == "a\\x1b[31mb\\r\\n\\x9b\\x7f"
    assert printable("\u202egpj.exe\u2028\u200b") == "\\u202egpj.exe\\u2028\\u200b"
    assert printable("\udcff\ud800") == "\\udcff\\ud800"


@pytest.mark.slow
def test_no_character_of_all_survives_that_is_not_printable():
    every = "".join(chr(code) for code in range(sys.maxunicode + 1))
    shown = printable(every, max_characters=len(every))
    assert shown.isprintable()
    shown.encode("utf-8")  # no surrogates


def test_long_text_loses_its_middle():
    shown = printable("a" * 5000 + "b" * 5000, 100)
    assert len(shown) < 130 and shown.startswith("aaa") and shown.endswith("bbb") and "9909" in shown, shown


def test_one_line_joins_lines():
    assert one_line("a\n  b\r\n\tc\x1b[0m") == "a b c\\x1b[0m"
