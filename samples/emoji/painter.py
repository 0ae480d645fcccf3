"""Paints pictures from drawings in files STYLE/CODE.png."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from .colors import color_of, on_white, recolored
from .ideas import Idea
from .plan import FULL, SIDE, Picture, Placed


class Painter:
    """Paints pictures of one size.

    Args:
        folder: of the drawings. size: pixels, a multiple of 32.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self._read = lru_cache(4096)(self._read_file)

    def colors(self, ideas: Iterable[Idea], styles: Iterable[str]) -> dict[tuple[str, str], str | None]:
        """The color word of every drawing that exists, by (code, style)."""
        found = {}
        styles = list(styles)
        for idea in ideas:
            for style in styles:
                if (self.folder / style / f"{idea.code}.png").exists():
                    found[idea.code, style] = color_of(on_white(self._read_file(style, idea.code, FULL)))
        return found

    def paint(self, picture: Picture) -> np.ndarray | None:
        """uint8 [size, size, 3]; None if a drawing cannot have its color."""
        scale = self.size // SIDE
        canvas = np.full((self.size, self.size, 3), 255, dtype=np.uint8)
        for thing in picture.things:
            drawing = self._drawing(thing, picture.style, thing.side * scale)
            if drawing is None:
                return None
            rows = slice(thing.top * scale, (thing.top + thing.side) * scale)
            columns = slice(thing.left * scale, (thing.left + thing.side) * scale)
            alpha = drawing[..., 3:].astype(np.float64) / 255
            mixed = drawing[..., :3] * alpha + canvas[rows, columns] * (1 - alpha)
            canvas[rows, columns] = mixed.round().astype(np.uint8)
        return canvas

    def _drawing(self, thing: Placed, style: str, side: int) -> np.ndarray | None:
        drawing = self._read(style, thing.idea.code, side)
        if thing.color is not None:
            drawing = recolored(drawing, thing.color)
        return drawing[:, ::-1] if thing.mirrored and drawing is not None else drawing

    def _read_file(self, style: str, code: str, side: int) -> np.ndarray:
        from ...tokenize.data.media import read_image

        image = read_image(self.folder / style / f"{code}.png", side, side, 4, fit="stretch")
        return ((image.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
