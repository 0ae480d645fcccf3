"""Write docs/images/voice.png: the log-mel spectrogram of a sentence of the bundled voice, with its words below.

    python docs/tools/make_images.py

docs/images/digits.png is written by `python benchmarks/digits_quality.py --sheet docs/images/digits.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

import tessera
from tessera.tokenize.alignment.spoken_text import TimedWord

TEXT = "Dr. Smith paid $3.50 for 21 apples on May 3rd."
BANDS, HOP, WINDOW, TOP = 80, 96, 768, 10000.0
FLOOR_DB = -70.0
"""Darkest level, relative to the loudest."""
SIZE, MARGIN = (240, 1000), 30
"""Pixels of the spectrogram, and of the words below it."""
SHADES = 20
"""Few colors make a small file."""
COLOURS = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
"""From silent to loud, as in matplotlib's `inferno`."""


CAPTIONS = (
    *("a red apple", "a blue car", "a yellow flower", "a smiling face", "two cats", "a green house"),
    *("a purple heart", "a dog beside a tree", "a ship", "an orange fish", "a cup of coffee", "a rainbow"),
)
CELL, SCALE, COLUMNS = (160, 158), 4, 6
"""Width and height of a picture with its caption, pixels of a pixel, pictures of a row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "images")
    out = parser.parse_args().out
    for name, made in {"voice.png": spoken(TEXT), "emoji.png": drawn(CAPTIONS)}.items():
        made.save(out / name, optimize=True)
        print(f"{out / name}: {(out / name).stat().st_size} bytes")


def spoken(text: str) -> Image.Image:
    """A sentence of the bundled voice."""
    model = tessera.load("voice")
    result = model.generate(text, seed=0)
    spectrogram = coloured(log_mel(result.media[0][0].float(), model.spec.geometry.sample_rate))
    return with_words(spectrogram, result.alignment.words, result.seconds)


def drawn(captions: Sequence[str]) -> Image.Image:
    """A sheet of pictures of the bundled model, in its styles by turns: the first sample of each caption."""
    model = tessera.load("emoji")
    styles = [model.labels[number % len(model.labels)] for number in range(len(captions))]
    result = model.generate(text=list(captions), label=styles, seed=0)
    width, height = CELL
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(captions) // COLUMNS) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (caption, media) in enumerate(zip(captions, result.media, strict=True)):
        pixels = ((media.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(pixels).resize(
            [SCALE * side for side in pixels.shape[1::-1]], Image.Resampling.NEAREST
        )
        left, top = number % COLUMNS * width, number // COLUMNS * height
        sheet.paste(picture, (left + (width - picture.width) // 2, top))
        middle = (left + width / 2, top + (picture.height + height) / 2)
        draw.text(middle, caption, fill="black", font=font, anchor="mm")
    return sheet


def log_mel(samples: Tensor, sample_rate: int) -> Tensor:
    """Samples [N] -> levels [BANDS, frames] from 0 to 1, low bands first."""
    spectrum = torch.stft(samples, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs().square()
    points = torch.linspace(0, mel(TOP), BANDS + 2)
    edges = 700 * (10 ** (points / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, WINDOW // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    bands = torch.minimum(rising, falling).clamp_min(0) @ spectrum
    level = 10 * (bands.clamp_min(1e-12) / bands.max()).log10()
    return (1 - level / FLOOR_DB).clamp(0, 1)


def mel(frequency: float) -> float:
    """Hertz -> mel."""
    return float(2595 * torch.log10(torch.tensor(1 + frequency / 700)))


def coloured(levels: Tensor) -> Tensor:
    """Levels [bands, frames] -> an image [3, *SIZE] in [-1, 1], high bands at the top."""
    table = torch.tensor(COLOURS, dtype=torch.float32).T[None] / 127.5 - 1  # [1, 3, colours]
    table = F.interpolate(table, size=SHADES, mode="linear", align_corners=True)[0]
    smooth = F.interpolate(levels.flip(0)[None, None], size=SIZE, mode="bilinear", antialias=True)[0, 0]
    return table[:, (smooth.clamp(0, 1) * (SHADES - 1)).round().long()]


def with_words(image: Tensor, words: Sequence[TimedWord], seconds: float) -> Image.Image:
    """An image [3, height, width] in [-1, 1] with words below it, each at its time."""
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
    picture = Image.new("RGB", (SIZE[1], SIZE[0] + MARGIN), "white")
    picture.paste(Image.fromarray(pixels))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(17)
    for word in words:
        left, right = (SIZE[1] * time / seconds for time in (word.start, word.end))
        draw.line([(left, SIZE[0]), (left, SIZE[0] + MARGIN)], fill="silver")
        draw.text(((left + right) / 2, SIZE[0] + MARGIN // 2), word.word, fill="black", font=font, anchor="mm")
    return picture


if __name__ == "__main__":
    main()
