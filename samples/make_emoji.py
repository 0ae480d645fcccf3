"""Make the corpus of the picture model: emoji in five styles with captions, moved, in other colors, and in scenes.

    mkdir -p out/emoji/packages && cd out/emoji/packages && npm pack @iconify-json/noto@1.2.9 \\
        @iconify-json/noto-v1@1.2.5 @iconify-json/twemoji@1.2.5 @iconify-json/fluent-emoji-flat@1.2.6 \\
        @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0 && cd -
    pip install resvg-py==0.5.0
    python -m tessera.samples.make_emoji --packages out/emoji/packages --out out/emoji/corpus

Styles, sources and licences are listed in emoji/packages.py; out/sources.json says what was read. The same seed and
packages give the same corpus. Four minutes on one CPU core; drawings that exist are not drawn again.

    out/train      PNG on white; metadata.jsonl {file, text, label}: text is a caption (emoji/ideas.py), label a style
    out/test       pairs/ of idea and style, colors/ of idea and color word, and scenes/, none of them in out/train
    out/drawings   STYLE/CODE.png, RGBA of 96 pixels
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from .emoji.ideas import first_caption, read_ideas
from .emoji.packages import NAMES, STYLES, Package, write_drawings
from .emoji.painter import Painter
from .emoji.plan import SIDE, Drawings, Picture, hold_out, single_pictures, test_pictures
from .emoji.scenes import Scenes

DRAWING_SIDE = 96
PAIRS, COLORS, TEST_SCENES = 300, 200, 300


def main() -> None:
    """Parse the command line, draw, and write the pictures and their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder where npm pack was run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to continue")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side, a multiple of 32, at most 96")
    parser.add_argument("--scenes", type=int, default=3000, help="training scenes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_corpus(arguments.packages, arguments.out, arguments.size, arguments.scenes, arguments.seed)


def make_corpus(packages: Path, out: Path, size: int = 32, scenes: int = 3000, seed: int = 0) -> None:
    """Write the corpus, see the module docstring. Raises ValueError and FileNotFoundError."""
    if size % SIDE or not SIDE <= size <= DRAWING_SIDE:
        raise ValueError(f"--size: {size} is not a multiple of {SIDE} of at most {DRAWING_SIDE}")
    names = Package(packages, NAMES)
    styles = {style: Package(packages, name) for style, name in STYLES.items()}
    out.mkdir(parents=True, exist_ok=True)
    sources = {
        package.name: {"version": package.version, "licence": package.licence} for package in (names, *styles.values())
    }
    (out / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")
    ideas = read_ideas(names)
    write_drawings(out / "drawings", styles, [idea.code for idea in ideas], DRAWING_SIDE)
    painter = Painter(out / "drawings", size)
    drawings = Drawings(ideas, list(styles), painter.colors(ideas, styles))
    for folder, pictures in plan(drawings, scenes, seed).items():
        write_pictures(out / folder, pictures, painter)


def plan(drawings: Drawings, scenes: int, seed: int) -> dict[str, list[Picture]]:
    """All pictures of the folders "train" and "test"."""
    held = hold_out(drawings, PAIRS, COLORS, seed)
    tests = list(Scenes(drawings, held, f"test {seed}").pictures("scenes", TEST_SCENES))
    taken = frozenset(key for key, _ in tests)
    trained = Scenes(drawings, held, f"train {seed}", taken).pictures("scenes", scenes)
    tested = [*test_pictures(drawings, held, seed), *(picture for _, picture in tests)]
    return {
        "test": [replace(picture, text=first_caption(picture.text)) for picture in tested],
        "train": [*single_pictures(drawings, held, seed), *(picture for _, picture in trained)],
    }


def write_pictures(folder: Path, pictures: Iterable[Picture], painter: Painter) -> None:
    """Write the pictures that can be painted, and metadata.jsonl."""
    import torch

    from ..tokenize.data.media import bytes_to_image, write_image

    lines = []
    for picture in _progress(list(pictures), folder.name):
        pixels = painter.paint(picture)
        if pixels is None:
            continue
        path = folder / picture.file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, bytes_to_image(torch.from_numpy(pixels)))
        lines.append(json.dumps({"file": picture.file, "text": picture.text, "label": picture.style}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _progress(pictures: list[Picture], name: str) -> Iterator[Picture]:
    from tqdm import tqdm

    return iter(tqdm(pictures, desc=name, unit="picture", file=sys.stderr, disable=None))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, FileNotFoundError) as error:
        sys.exit(f"make_emoji: {error}")
