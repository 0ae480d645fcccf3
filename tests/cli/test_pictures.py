"""Pictures as files: enlarged where tiny, on one sheet, in other formats, and what is said of older files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_tiny_models

from tessera.cli.app import run
from tessera.generate.loading import load
from tessera.generate.result import make_grid

FACTOR = 43  # the smallest that takes 6 x 4 pixels to 256


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def shapes(models):
    return load(models / "shapes")


@pytest.fixture
def draw(models, tmp_path, monkeypatch, capsys):
    """Runs tessera image in an empty folder; gives the lines on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words, code=0, verb=("image", "star", "--model", models / "shapes")):
        capsys.readouterr()
        assert run([str(word) for word in (*verb, *words)]) == code, capsys.readouterr().err
        printed = capsys.readouterr()
        return json.loads(printed.out) if "--json" in words and not code else printed.err.splitlines()

    return call


def pixels(path) -> np.ndarray:
    return np.array(Image.open(path))


def test_tiny_pictures_are_enlarged_and_it_is_said_once(draw, shapes):
    told = draw("-n", 3, "-o", "many")
    assert [line for line in told if "--scale 1" in line] == [
        f"images of 6 x 4 pixels are enlarged {FACTOR} times; --scale 1 writes them as generated"
    ]
    shapes.generate(label="star", n=3).save("made")
    for name in ("0000.png", "0001.png", "0002.png"):
        made = pixels(f"made/{name}")
        assert made.shape[:2] == (4, 6), "Python writes them as they are made"
        assert (pixels(f"many/{name}") == made.repeat(FACTOR, 0).repeat(FACTOR, 1)).all(), "nearest neighbour"
    assert not any("--scale" in line for line in draw("-o", "a.png", "--scale", 3))
    assert (pixels("a.png") == pixels("made/0000.png").repeat(3, 0).repeat(3, 1)).all()
    draw("-o", "b.png", "--scale", 1)
    assert Path("b.png").read_bytes() == Path("made/0000.png").read_bytes()


def test_an_enlarged_picture_is_read_as_it_was_made(draw, models):
    draw("-o", "large.png")
    draw("-o", "small.png", "--scale", 1)
    for name in ("large", "small"):
        encode = ("encode", f"{name}.png", "--tokenizer", models / "shapes", "-o", f"{name}.safetensors")
        draw(verb=encode)
    from tessera.tokenize.data.codes_file import read_codes

    (_, (large,)), (_, (small,)) = read_codes("large.safetensors"), read_codes("small.safetensors")
    assert torch.equal(large.codes, small.codes)


@pytest.mark.sample(2)
@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".PNG"])
def test_the_suffix_chooses_the_format(draw, suffix):
    draw("-o", f"a{suffix}")
    draw("-o", "a.png")
    found, exact = (np.array(Image.open(name).convert("L")).astype(int) for name in (f"a{suffix}", "a.png"))
    assert found.shape == exact.shape and np.abs(found - exact).max() < 16


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.wav", "a.xyz", "a.png.txt"])
def test_other_suffixes_are_refused_with_those_there_are(draw, name):
    (line,) = draw("-o", name, code=2)
    assert "use a name ending in .png or .jpg or .jpeg or .webp, not" in line and not list(Path().iterdir())


def test_a_folder_may_have_a_dot(draw):
    draw("-n", 2, "-o", "v1.2")
    Path("set.large").mkdir()
    draw("-n", 2, "-o", "set.large")
    assert len(list(Path("v1.2").iterdir())) == len(list(Path("set.large").iterdir())) == 2


def test_a_grid_holds_all_samples_in_order(draw, shapes, models):
    found = draw("-n", 5, "--seed", 3, "--grid", "-o", "sheet.png", "--scale", 1, "--json")
    assert [one["file"] for one in found["samples"]] == ["sheet.png"] * 5
    result = shapes.generate(label="star", n=5, seed=3)
    sheet = pixels("sheet.png")
    assert sheet.shape[:2] == (2 * 4 + 1, 3 * 6 + 2), "three columns, a line of one pixel between"
    result.save("made")
    for i in range(5):
        top, left = i // 3 * 5, i % 3 * 7
        assert (sheet[top : top + 4, left : left + 6] == pixels(f"made/{i:04d}.png")).all()
    assert (sheet[4] == 255).all() and (sheet[5:, 14:] == 255).all(), "what is left is white"
    result.save_grid("same.png")
    assert Path("same.png").read_bytes() == Path("sheet.png").read_bytes()
    labels = ("generate", models / "shapes", "--label", "star", "--label", "circle", "-n", 4)
    draw("--grid", "-o", "rows.png", "--scale", 1, verb=labels)
    assert pixels("rows.png").shape[:2] == (2 * 4 + 1, 4 * 6 + 3), "a row for each label"
    draw("-n", 4, "--grid", "-o", "large.webp")
    assert Image.open("large.webp").size == (13 * FACTOR, 9 * FACTOR)
    (line,) = draw("-n", 4, "--grid", "-o", "folder", code=2)
    assert "--grid writes one image; name it with -o" in line


def test_grids_have_as_many_columns_as_are_asked_for():
    pictures = [torch.full((1, 2, 2), float(i)) for i in range(3)]
    assert make_grid(pictures, 3).shape == (1, 2, 8) and make_grid(pictures, 1).shape == (1, 8, 2)
    assert make_grid(pictures, 9).shape == (1, 2, 8) and make_grid(pictures[:1]).shape == (1, 2, 2)
    with pytest.raises(ValueError, match="columns must be at least 1, found 0"):
        make_grid(pictures, 0)


def test_the_summary_says_what_each_sample_is(draw, models):
    found = draw("-n", 2, "--seed", 7, "-o", "o", "--json")["samples"]
    assert [(one["file"], one["label"], one["text"], one["seed"]) for one in found] == [
        ("o/0000.png", "star", None, 7),
        ("o/0001.png", "star", None, 8),
    ]
    both = ("generate", models / "voices", "--text", "one", "--text", "two", "--label", 2, "-n", 2, "-o", "v")
    found = draw("--max-seconds", 0.02, "--json", verb=both)["samples"]
    assert [(one["label"], one["text"], one["seed"]) for one in found] == [
        ("star", "one", 0), ("star", "one", 1), ("star", "two", 2), ("star", "two", 3),
    ]  # fmt: skip
    alone = ("generate", models / "shapes", "--unconditional", "-o", "u.png")
    (one,) = draw("--json", verb=alone)["samples"]
    assert one["label"] is None and one["text"] is None and one["file"] == "u.png"


@pytest.mark.slow
def test_older_files_are_named_and_stay(draw, models):
    draw("-n", 4, "-o", "o")
    assert any(line == "replaced 4 older files" for line in draw("-n", 5, "-o", "o"))
    before = Path("o/0003.png").read_bytes()
    Path("o/notes.txt").write_text("mine")
    (line,) = [line for line in draw("-n", 2, "--seed", 9, "-o", "o") if "older" in line]
    assert line == (
        "tessera: o also holds 3 older files, not from this run: 0002.png, 0003.png, 0004.png; 2 others were replaced"
    )
    assert Path("o/0003.png").read_bytes() == before and Path("o/notes.txt").exists(), "nothing is removed"
    draw("-n", 30, "-o", "many")
    (line,) = [line for line in draw("-n", 2, "-o", "many") if "older" in line]
    assert "28 older files, not from this run: 0002.png, 0003.png, 0004.png, 0005.png, ... 0029.png" in line
    assert not any("older" in line for line in draw("-o", "o.png")), "of one named file nothing is said"
    draw("--frames", "grown", "-o", "a.png")
    Path("grown/0009.png").write_bytes(before)
    assert any("grown also holds 1 older file, not from this run: 0009.png" in line for line in draw(
        "--frames", "grown", "-o", "a.png"
    ))  # fmt: skip
    draw(verb=("encode", "a.png", "--tokenizer", models / "shapes", "-o", "c.safetensors"))
    told = draw(verb=("decode", "c.safetensors", "--tokenizer", models / "shapes", "-o", "o"))
    assert any("o also holds 5 older files" in line for line in told)


def test_text_and_label_by_position(models, shapes):
    def same(one, other):
        assert torch.equal(one.codes, other.codes) and one.seeds == other.seeds

    tones, voices = load(models / "tones"), load(models / "voices")
    same(tones.generate("a word", seed=2), tones.generate(text="a word", seed=2))
    same(tones.generate(["a", "b"], seed=2), tones.generate(text=["a", "b"], seed=2))
    same(shapes.generate("star"), shapes.generate(label="star"))
    same(shapes.generate(2), shapes.generate(label=2))
    same(shapes.generate([0, "star"]), shapes.generate(label=[0, "star"]))
    same(voices.generate("a", label="star"), voices.generate(text="a", label="star"))
    same(voices.generate(2, text="a"), voices.generate(label=2, text="a"))
    streamed = torch.cat(list(tones.stream("a word", seed=2)), dim=1)
    assert torch.equal(streamed, tones.generate("a word", seed=2).media[0])
    for call, message in (
        (lambda: tones.generate("a", text="b"), "text was given twice, 'a' by position and 'b' by name"),
        (lambda: shapes.generate(2, label=1), "label was given twice"),
        (lambda: tones.generate(7), "text must be a string, found 7"),
        (lambda: tones.generate(text=["a", 7]), "text must be a string, found 7"),
        (lambda: shapes.generate("sqare"), "did you mean 'square'"),
        (lambda: shapes.generate(True), "no label True"),
        (lambda: shapes.generate([]), "list of labels is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
