"""JSON is measured before it is parsed."""

import json
import random

import pytest

from tessera.configs.files import read_json
from tessera.configs.json_limits import BLOCK, INDEX, LINE, SMALL, JsonLimits, _Counter, parse_json, read_json_lines

SIZES = JsonLimits(1000, 3, 5)


@pytest.mark.parametrize(
    "text, message",
    [
        (b"[[],[],[],[]]", "more than 3 lists"),
        (b"[1,2,3,4,5,6,7]", "5 values"),
        (b'["' + b"x" * 1000 + b'"]', "more than 1000 bytes"),
        (b'{"a": 1, "a": 2}', "occurs twice: 'a'"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "range"),
        (b"[9223372036854775808]", "64 bits"),
        (b"[" + b"9" * 900 + b"]", "64 bits"),
        ("[1]".encode("utf-16"), "UTF-8"),
        (b"[\xff]", "UTF-8"),
        (b"[1,]", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\x00", "not valid JSON"),
    ],
)
def test_refused(text, message):
    with pytest.raises(ValueError, match="^here: ") as caught:
        parse_json(text, "here", SIZES)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_allowed():
    assert parse_json(b"\xef\xbb\xbf[9223372036854775807]", "here", SIZES) == [2**63 - 1]
    # Brackets and commas in strings do not count, escaped quotes do not end one.
    text = json.dumps(['[,{\\"[[[,,,,,,', "\\", "[[[[[["])
    assert parse_json(text, "here", SIZES) == json.loads(text)
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 40_000, "here", SMALL)


def test_counting_does_not_depend_on_the_cut_of_blocks():
    draw = random.Random(0)
    for _ in range(300):
        data = ["".join(draw.choices('[{,"\\ax', k=draw.randrange(9))) for _ in range(draw.randrange(5))]
        text = json.dumps([data, {entry: [] for entry in data}]).encode()
        whole = _Counter()
        whole.feed(text)
        cut = _Counter()
        while text:
            size = draw.randrange(1, 5)
            cut.feed(text[:size])
            text = text[size:]
        containers = 3 + len(set(data))
        assert (whole.containers, cut.containers) == (containers, containers)
        assert whole.values == cut.values == 1 + max(0, len(data) - 1) + max(0, len(set(data)) - 1)


def test_a_bomb_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "index.json"
    with open(path, "wb") as file:
        file.write(b'{"ids": [' + b"[]," * BLOCK)
        file.truncate(INDEX.num_bytes)  # a sparse file
    with pytest.raises(ValueError, match=rf"in {2 * BLOCK} bytes of JSON"):
        read_json(path, INDEX)


def lines_of(path, *limit):
    with open(path, "rb") as file:
        return list(read_json_lines(file, path, *limit))


def test_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes('\ufeff\n{"a": "\u2028\x85"}\r\n\n[1]'.encode())
    assert lines_of(path) == [(f"{path}, line 2", {"a": "\u2028\x85"}), (f"{path}, line 4", [1])]
    path.write_bytes(b'"' + b"x" * LINE.num_bytes + b'"\n')
    with pytest.raises(ValueError, match="line 1: more than"):
        lines_of(path)
    path.write_bytes(b"[1]\n[2]\n")
    with pytest.raises(ValueError, match="line 2: more than 7 bytes"):
        lines_of(path, 7)
