"""The corpus of the picture model, from made-up packages: captions, colors, scenes, and what is held out."""

import io
import json
import re
import sys
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

from tessera.samples import make_emoji
from tessera.samples.emoji import colors, ideas, packages, plan, scenes
from tessera.samples.emoji.ideas import Idea, clean, countable, plural
from tessera.samples.emoji.plan import COLORS_EACH, Drawings, HeldOut, hold_out, single_pictures

THINGS = ("cat", "red apple", "house", "star", "bus", "grapes", "fox", "key", "leaf", "cherry", "box", "knife")
FILLS = ("#e03030", "#3060d0", "#808080", "#fdcd37")


def pack(folder, name, files, version="1.0.0"):
    stem = name.lstrip("@").replace("/", "-")
    with tarfile.open(folder / f"{stem}-{version}.tgz", "w:gz") as archive:
        for path, content in {"package.json": {"version": version, "license": "MIT"}, **files}.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def picture(fill, side=24):
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    image.paste(Image.new("RGBA", (side // 2, side - 4), fill), (2, 2))
    content = io.BytesIO()
    image.save(content, "WEBP", lossless=True)
    return content.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """npm packages of twelve ideas in five styles, and a rasterizer that paints the fill color."""

    def rasterize(svg_string):
        found = re.search(r'width="(\d+)".*fill="(#\w+)"', svg_string)
        image, content = Image.open(io.BytesIO(picture(found[2]))).resize((int(found[1]),) * 2), io.BytesIO()
        image.save(content, "PNG")
        return list(content.getvalue())

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=rasterize))
    codes = [f"1F40{place:X}" for place in range(len(THINGS))]
    data = [
        {"label": name, "hexcode": code, "tags": ["thing", name], "order": place, "group": 3, "subgroup": 5}
        for place, (name, code) in enumerate(zip(THINGS, codes, strict=True))
    ]
    data.append({"label": "flag: Chad", "hexcode": "1F1F9", "order": 99, "group": 9, "subgroup": 7})
    messages = {
        "groups": [{"order": 3, "key": "objects"}, {"order": 9, "key": "flags"}],
        "subgroups": [{"order": 5, "key": "tool"}, {"order": 7, "key": "country-flag"}],
    }
    packed = tmp_path / "packages"
    packed.mkdir()
    pack(packed, "emojibase-data", {"en/data.json": data, "en/messages.json": messages})
    for place, (style, name) in enumerate(packages.STYLES.items()):
        if style == "fluent3d":
            files = {f"assets/{code.lower()}-fe0f.webp": picture(FILLS[0]) for code in codes}
        else:
            icons = {
                f"icon-{number}": {"body": f'<rect fill="{FILLS[(number + place) % 4]}"/>'}
                for number in range(len(codes))
            }
            chars = {} if style == "blob" else {code.lower(): f"icon-{i}" for i, code in enumerate(codes)}
            files = {
                "icons.json": {"icons": icons, "width": 36, "height": 36},
                "chars.json": chars,
                "info.json": {"license": {"spdx": packages.LICENCES[name]}},
            }
        pack(packed, name, files)
    monkeypatch.setattr(make_emoji, "PAIRS", 5)
    monkeypatch.setattr(make_emoji, "COLORS", 4)
    monkeypatch.setattr(make_emoji, "TEST_SCENES", 8)
    return packed


def read(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_the_corpus_is_a_function_of_packages_and_seed(folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_emoji.make_corpus(folder, tmp_path / name, scenes=30, seed=seed)
    made = {
        name: {path.relative_to(tmp_path / name): path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))}
        for name in "abc"
    }
    assert made["a"] == made["b"] != made["c"]
    assert json.loads(made["a"][next(path for path in made["a"] if path.name == "sources.json")])["emojibase-data"] == {
        "version": "1.0.0",
        "licence": "MIT",
    }
    train, test = read(tmp_path / "a" / "train"), read(tmp_path / "a" / "test")
    assert {entry["label"] for entry in train} == set(packages.STYLES)
    files = [entry["file"] for entry in train]
    assert len(set(files)) == len(files) and all((tmp_path / "a" / "train" / file).is_file() for file in files)
    image = np.array(Image.open(tmp_path / "a" / "train" / files[0]))
    assert image.shape == (32, 32, 3) and (image[0] == 255).all() and (image < 255).any()
    assert "|" not in "".join(entry["text"] for entry in test) and any("|" in entry["text"] for entry in train)
    assert [entry["file"].split("/")[0] for entry in test].count("pairs") == 5


def test_nothing_held_out_is_in_training(folder, tmp_path):
    make_emoji.make_corpus(folder, tmp_path / "out", scenes=150, size=64)
    listed = ideas.read_ideas(packages.Package(folder, packages.NAMES))
    assert [idea.name for idea in listed] == list(THINGS), "flags of countries are left out"
    painter = make_emoji.Painter(tmp_path / "out" / "drawings", 32)
    drawings = Drawings(listed, list(packages.STYLES), painter.colors(listed, packages.STYLES))
    planned = make_emoji.plan(drawings, 150, 0)
    held = hold_out(drawings, 5, 4, 0)
    assert len(held.pairs) == 5 and {style for _, style in held.pairs} == set(packages.STYLES) and held.colors
    shown = {(thing.idea.code, picture.style) for picture in planned["train"] for thing in picture.things}
    assert not shown & held.pairs
    assert {code for code, _ in held.pairs} <= {code for code, _ in shown}, "the idea is drawn in other styles"
    tinted = {(thing.idea.code, thing.color) for picture in planned["train"] for thing in picture.things}
    natural = {(code, color) for (code, _), color in drawings.colors.items()}
    assert not (tinted | natural) & held.colors
    keys = [key for key, _ in scenes.Scenes(drawings, held, "test 0").pictures("scenes", 8)]
    again = scenes.Scenes(drawings, held, "train 0", frozenset(keys)).pictures("scenes", 150)
    assert not {key for key, _ in again} & set(keys)
    tests = {picture.file for picture in planned["test"]}
    assert len([file for file in tests if file.startswith("colors/")]) == len(held.colors)
    size = Image.open(tmp_path / "out" / "train" / "noto" / "1f400.png").size
    assert size == (64, 64)


def test_packages_under_another_licence_are_refused(folder):
    with pytest.raises(FileNotFoundError, match="no package emoji-x; in that folder: npm pack emoji-x"):
        packages.Package(folder, "emoji-x")
    name = packages.STYLES["twemoji"]
    pack(folder, name, {"info.json": {"license": {"spdx": "CC-BY-SA-4.0"}}}, "1.0.1")
    with pytest.raises(ValueError, match="twemoji is there more than once"):
        packages.Package(folder, name)
    next(folder.glob("*twemoji-1.0.0.tgz")).unlink()
    with pytest.raises(ValueError, match="its licence is CC-BY-SA-4.0, expected CC-BY-4.0"):
        packages.Package(folder, name)
    with pytest.raises(ValueError, match="--size: 40 is not a multiple of 32"):
        make_emoji.make_corpus(folder, folder / "out", size=40)


def test_names_captions_and_plurals():
    assert clean("person: blond hair") == "person with blond hair"
    assert clean("kiss: woman, man") == "kiss with woman and man"
    assert clean("1st place medal") == "first place medal" and clean("A button (blood type)") == "a button"
    assert clean("keycap: 7") == "keycap 7" and clean("Japanese “secret” button") == "japanese secret button"
    assert [countable(name) for name in ("cat", "grapes", "bus", "bread", "fork and knife")] == [1, 0, 1, 0, 0]
    assert [plural(name) for name in ("red apple", "bus", "cherry", "mouse", "fox", "key")] == [
        *("red apples", "buses", "cherries", "mice", "foxes", "keys")
    ]
    apple = Idea("1f34e", "apple", ("fruit", "apple"), "food-drink", "food-fruit")
    assert ideas.caption(apple) == "apple | an apple | apple, fruit"
    assert ideas.caption(apple, "red") == "apple | an apple | red apple | apple, red, fruit"


@pytest.mark.parametrize("word", colors.CHANGES)
def test_another_color_has_its_word(word):
    draw = np.random.default_rng(0)
    drawing = np.zeros((20, 20, 4), np.uint8)
    drawing[2:18, 2:18] = (205, 60, 50, 255)
    drawing[2:6, 8:12] = (70, 150, 60, 255)  # the leaf
    drawing[2:18, 2:18, :3] += draw.integers(0, 12, (16, 16, 3)).astype(np.uint8)
    made = colors.recolored(drawing, word)
    assert made is not None and colors.color_of(colors.on_white(made)) == word
    assert np.array_equal(made[..., 3], drawing[..., 3])
    assert np.abs(made[3:5, 9:11].astype(int) - drawing[3:5, 9:11]).max() < 12, "the leaf stays green"


def test_gray_and_many_colored_pictures_have_no_other_color():
    gray = np.full((8, 8, 4), 128, np.uint8)
    gray[..., 3] = 255
    stripes = gray.copy()
    for column, rgb in enumerate([(255, 0, 0), (0, 160, 0), (0, 0, 255), (200, 0, 200)] * 2):
        stripes[:, column, :3] = rgb
    assert colors.recolored(gray, "blue") is None and colors.recolored(stripes, "blue") is None
    assert colors.color_of(colors.on_white(gray)) is None
    white = np.full((8, 8, 3), 255, np.uint8)
    assert colors.color_of(white) is None and not colors.obeys(white, "red")


def test_scenes_say_what_they_show():
    listed = [Idea(f"1f40{i}", name, (), "objects", "tool") for i, name in enumerate(("cat", "box", "key", "hat"))]
    drawings = Drawings(listed, ["noto"], dict.fromkeys(((idea.code, "noto") for idea in listed), "brown"))
    held = HeldOut(frozenset(), frozenset({("1f400", "blue")}))
    made = list(scenes.Scenes(drawings, held, "x").pictures("scenes", 400))
    texts = [picture.text.split(" | ")[0] for _, picture in made]
    assert not [text for text in texts if re.search(r"blue cats?\b", text)] and any(
        "blue box" in text for text in texts
    )
    for _, picture in made:
        first = picture.text.split(" | ")[0]
        count = next((n for n, word in scenes.NUMBERS.items() if first.startswith(f"{word} ")), 1)
        assert len(picture.things) == count + (" beside " in first or " above " in first)
        for thing in picture.things:
            assert 0 <= thing.left <= 32 - thing.side and 0 <= thing.top <= 32 - thing.side
        if " above " in first:
            assert picture.things[0].top < picture.things[1].top and "| " + first.split(" above ")[1] in picture.text
    kinds = [any(word in text for text in texts) for word in ("two ", "three ", "four ", " beside ", " above ")]
    assert all(kinds) and {"two cats", "four boxes"} <= set(texts)


def test_every_drawing_is_shown_alone_moved_and_in_other_colors(monkeypatch):
    monkeypatch.setattr(plan, "MOVED", 1.0)
    listed = [Idea("1f400", "cat", (), "animals-nature", "mammal"), Idea("1f401", "red hat", (), "objects", "clothing")]
    drawings = Drawings(listed, ["noto"], {("1f400", "noto"): "orange", ("1f401", "noto"): "red"})
    made = list(single_pictures(drawings, HeldOut(frozenset(), frozenset()), 0))
    files = [picture.file for picture in made]
    assert {"noto/1f400.png", "noto/1f400.moved.png", "noto/1f401.png", "noto/1f401.moved.png"} <= set(files)
    assert len(files) == 4 + COLORS_EACH and "noto/1f400.orange.png" not in files
    assert (
        next(picture for picture in made if picture.file == "noto/1f400.png").text
        == "cat | a cat | orange cat | cat, orange"
    )
    assert "red red" not in " ".join(picture.text for picture in made)
    moved = [picture.things[0] for picture in made if ".moved." in picture.file]
    assert all(thing.side <= 30 and thing.left + thing.side <= 32 for thing in moved)
    assert not moved[1].mirrored
    monkeypatch.setattr(plan, "MOVED", 0.0)
    assert not any(
        ".moved." in picture.file for picture in single_pictures(drawings, HeldOut(frozenset(), frozenset()), 0)
    )
