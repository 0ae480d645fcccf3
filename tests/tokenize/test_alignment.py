"""Alignments: seconds to frames against an exhaustive search, the files that hold them, and what is refused."""

import itertools
import random

import pytest

from tessera.tokenize.alignment.alignment import (
    MAX_UNITS,
    Alignment,
    TimedUnits,
    format_alignment,
    nearest_ascending,
    parse_alignment,
    time_units,
    to_frames,
    to_seconds,
)
from tessera.tokenize.alignment.alignment_file import (
    MAX_FILE_BYTES,
    read_alignment,
    read_intervals,
    write_alignment,
)


def slow_nearest_ascending(numbers: list[int], low: int, high: int) -> int:
    """The smallest sum of moves, by trying every ascending sequence."""
    choices = itertools.combinations_with_replacement(range(low, high + 1), len(numbers))
    return min(sum(abs(a - b) for a, b in zip(numbers, choice, strict=True)) for choice in choices)


def test_nearest_ascending_equals_exhaustive_search():
    chance = random.Random(0)
    for _ in range(300):
        numbers = [chance.randrange(6) for _ in range(chance.randrange(7))]
        found = nearest_ascending(numbers)
        assert found == sorted(found)
        assert sum(abs(a - b) for a, b in zip(numbers, found, strict=True)) == slow_nearest_ascending(numbers, 0, 5)


def slow_moves(rounded: list[int], needed: list[int], num_frames: int) -> int | None:
    """The smallest sum of moves of inner boundaries such that every unit has the frames it needs; None: impossible."""
    inner = itertools.combinations_with_replacement(range(num_frames + 1), len(rounded))
    costs = []
    for choice in inner:
        places = [0, *choice, num_frames]
        if all(b - a >= need for a, b, need in zip(places, places[1:], needed, strict=False)):
            costs.append(sum(abs(a - b) for a, b in zip(rounded, choice, strict=True)))
    return min(costs, default=None)


def random_intervals(chance: random.Random, units: int) -> list[tuple[float, float, str]]:
    kinds = ["|", "a", ",", "ˈO"]
    places = sorted(round(chance.uniform(0, 0.08), 3) for _ in range(units - 1))
    places = [0.0, *places, 0.08]
    found, run = [], 0
    for first, last in itertools.pairwise(places):
        unit = chance.choice(kinds) if run < 2 else "a"
        unit = "|" if first == last else unit
        run = run + 1 if unit in "|," else 0
        found.append((first, last, unit))
    return found


def test_frames_are_the_nearest_with_a_frame_for_each_sounding_unit():
    chance, impossible = random.Random(1), 0
    for _ in range(400):
        try:
            timed = time_units(random_intervals(chance, chance.randrange(1, 6)))
        except ValueError as error:
            assert "silent units in a row" in str(error)
            continue
        rate = chance.choice([30.0, 50.0, 75.0, 100.0])
        num_frames = round(0.08 * rate)
        needed = [0 if unit in "|," else 1 for unit in timed.units]
        rounded = [min(int(time * rate + 0.5), num_frames) for time in timed.boundaries[1:-1]]
        cost = slow_moves(rounded, needed, num_frames)
        if cost is None:
            impossible += 1
            with pytest.raises(ValueError, match=rf"{sum(needed)} sounding units but only {num_frames} frames"):
                to_frames(timed, rate, num_frames)
            continue
        found = to_frames(timed, rate, num_frames)
        assert found.units == timed.units and found.num_frames == num_frames
        assert all(count >= need for count, need in zip(found.frames, needed, strict=True))
        places = list(itertools.accumulate(found.frames))[:-1]
        assert sum(abs(a - b) for a, b in zip(rounded, places, strict=True)) == cost
        assert parse_alignment(format_alignment(found), num_frames, "x") == found
        assert to_frames(to_seconds(found, rate), rate, num_frames) == found
    assert impossible > 5


def test_ends_may_be_a_frame_away():
    timed = TimedUnits(("|", "a", "|"), (0.0, 0.1, 0.3, 1.0))
    assert to_frames(timed, 10, 10).frames == (1, 2, 7)
    assert to_frames(timed, 10, 11).frames == (1, 2, 8) and to_frames(timed, 10, 9).frames == (1, 2, 6)
    with pytest.raises(ValueError, match=r"the alignment ends at 1 seconds, the recording at 1\.2 \(12 frames\)"):
        to_frames(timed, 10, 12)
    late = TimedUnits(("|", "a", "|"), (0.2, 0.2, 0.3, 1.0))
    with pytest.raises(ValueError, match=r"the alignment starts at 0\.2 seconds instead of 0"):
        to_frames(late, 10, 10)


def test_label_track():
    data = "0\t0.25\t|\r\n0.25\t0.5\tˈO\n0.5\t1.5e0\t\n".encode()
    timed = read_alignment(data, ".align")
    assert timed == TimedUnits(("|", "ˈO", "|"), (0.0, 0.25, 0.5, 1.5))
    assert read_alignment(write_alignment(timed), ".align") == timed
    bare = read_alignment(b"0\t0.5\ta\n0.5\t0.75\t,\n0.75\t0.75\t|\n0.7495\t1\tb", ".align")
    assert bare == TimedUnits(("|", "a", ",", "|", "b", "|"), (0, 0, 0.5, 0.75, 0.75, 1, 1))


LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "TextTier"
        name = "notes ""quoted"" 3"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.3
            mark = "click"
    item [2]:
        class = "IntervalTier"
        name = "Phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = ""
        intervals [2]:
            xmin = 0.2
            xmax = 0.25
            text = "sil"
        intervals [3]:
            xmin = 0.25
            xmax = 0.5
            text = "ˈO"
        intervals [4]:
            xmin = 0.5
            xmax = 1.5
            text = ""
"""
SHORT = (
    '"ooTextFile"\n"TextGrid"\n0\n1.5\n<exists>\n2\n"IntervalTier"\n"phones"\n0\n1.5\n1\n0\n1.5\n"x"\n'
    '"IntervalTier"\n"units"\n0\n1.5\n3\n0\n0.25\n""\n0.25\n0.5\n"ˈO"\n0.5\n1.5\n""\n'
)


@pytest.mark.parametrize("text", [LONG, SHORT])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_grid(text, encoding):
    found = read_alignment(text.encode(encoding), ".TextGrid")
    assert found == TimedUnits(("|", "ˈO", "|"), (0.0, 0.25, 0.5, 1.5))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text[:300], "not a complete TextGrid: expected"),
        (lambda text: "", "not a complete TextGrid: expected a text in quotes, found None"),
        (lambda text: text.replace("ooTextFile", "x"), "not a TextGrid in Praat's text format"),
        (lambda text: text.replace("<exists>", "<absent>"), "a TextGrid without tiers"),
        (lambda text: text.replace("Phones", "words"), "no interval tier is called units or phones; .*: words"),
        (lambda text: text.replace("xmax = 0.25", "xmax = 0.25x"), "'0.25x' is not a number"),
        (lambda text: text.replace("xmax = 0.25", "xmax = 1e999"), "lasts from 0.2 to inf seconds"),
        (lambda text: text.replace("size = 4", "size = 4000000000"), "4e.09 tiers or intervals"),
        (lambda text: text.replace("size = 4", "size = 2.5"), "2.5 tiers or intervals"),
        (lambda text: text.replace("IntervalTier", "PitchTier"), "a tier of class 'PitchTier'"),
        (lambda text: text.replace('"ˈO"', '"a b"'), "interval 3: 'a b' is not a unit"),
        (lambda text: text + '"', "x"),
    ],
)
def test_wrong_text_grid(change, message):
    data = change(LONG).encode()
    if message == "x":  # what follows the tiers is not read
        assert read_alignment(data, ".TextGrid").units == ("|", "ˈO", "|")
        return
    with pytest.raises(ValueError, match=message):
        read_alignment(data, ".TextGrid")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1 is not start<TAB>end<TAB>unit, ''"),
        ("0\t1", "line 1 is not start<TAB>end<TAB>unit"),
        ("0\t1\ta\n\n", "line 2 is not"),
        ("0,0\t1\ta", "line 1 is not"),
        ("nan\t1\ta", "line 1 is not"),
        ("-1\t1\ta", r"interval 1 \('a'\) lasts from -1.0 to 1.0 seconds"),
        ("1\t0.5\ta", r"interval 1 \('a'\) lasts from 1.0 to 0.5 seconds"),
        ("0\t1\ta\n0.5\t2\tb", r"interval 2 \('b'\) starts at 0.5 and overlaps the one before, which ends at 1.0"),
        (
            "0\t1\ta\n1.5\t2\tb",
            r"interval 2 \('b'\) starts at 1.5 and leaves a gap after the one before.* pauses as \|",
        ),
        ("0\t1\ta\n1\t1\tb", "interval 2: 'b' sounds but has no duration"),
        ("0\t1\ta b", "interval 1: 'a b' is not a unit"),
        ("0\t1\t" + "a" * 33, "is not a unit"),
        ("0\t1\ta\x1b[31m", "is not a unit"),
        ("0\t1\ta\n1\t2\t.\n2\t3\t,\n3\t4\t|\n4\t5\tb", r"more than 2 silent units in a row, the last is '\|'"),
    ],
)
def test_wrong_label_track(text, message):
    with pytest.raises(ValueError, match=message):
        read_alignment(text.encode(), ".align")


def test_wrong_bytes():
    with pytest.raises(ValueError, match=r"not UTF-8 text \(.* at byte 4\)"):
        read_alignment(b"0\t1\t\xff", ".align")
    with pytest.raises(ValueError, match="more than 16777216 bytes"):
        read_alignment(b" " * (MAX_FILE_BYTES + 1), ".align")
    with pytest.raises(ValueError, match=f"more than {MAX_UNITS} lines"):
        read_alignment(b"0\t0\t|\n" * (MAX_UNITS + 1), ".align")
    strange = ('"' * 500_001).encode()  # no time beyond the length of the text
    with pytest.raises(ValueError, match="not a TextGrid"):
        read_alignment(b'"a" ' + strange, ".TextGrid")


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "0 intervals"),
        ([[0, 1]], r"interval 1 is not \[start, end, unit\]"),
        ([[0, "1", "a"]], r"interval 1 is not \[start, end, unit\]"),
        ([[0, True, "a"]], r"interval 1 is not"),
        ([[0, 1, "a"], 7], "interval 2 is not"),
        ([[0, 1, 7]], "interval 1 is not"),
    ],
)
def test_wrong_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        read_intervals(rows)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "x: not an alignment"),
        ("a", "x: not an alignment"),
        ("a x", "x: not an alignment"),
        ("a -3", "x: not an alignment"),
        ("a ²", "x: not an alignment"),
        ("a 2", "x: its alignment does not have the 3 frames of the item"),
        ("a 9999999999999", "x: its alignment does not have the 3 frames"),
        ("a 0 b 3", "x: 'a' sounds but has no frame"),
        (" 3", "x: '' is not a unit"),
    ],
)
def test_wrong_index_entry(text, message):
    with pytest.raises(ValueError, match=message):
        parse_alignment(text, 3, "x")


def test_alignment_of_the_index():
    found = parse_alignment("| 0 ˈO 2 . 1 | 0", 3, "x")
    assert found == Alignment(("|", "ˈO", ".", "|"), (0, 2, 1, 0))
