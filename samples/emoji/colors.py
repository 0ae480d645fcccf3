"""Colors of pictures: what color word describes one, and the same picture in another color.

All of it in OKLab (Björn Ottosson, 2020), where distances are about those that are seen; L is lightness, the angle of
(a, b) the hue, its length the chroma.

**The rule** (`obeys`): a picture has the color of a word if, of its pixels that are not background (white), the word's
color covers more than any other color word's, and at least a quarter. A pixel's word is that of the nearest prototype
(PROTOTYPES); pixels with little chroma (black, gray, white) have none.

**Another color** (`recolored`): the hue that covers most of the picture is found; pixels within 50 degrees of it get
the hue of the new color, keeping half of their differences in hue, and their lightness and chroma move so that their
means become those of the new color. So the red of an apple changes, and its leaf stays. There is no such picture where
no hue covers half of the foreground (gray and many-colored pictures), or where the result does not fulfill the rule.
"""

from __future__ import annotations

import numpy as np

PROTOTYPES = {
    "red": (222, 45, 45),
    "orange": (250, 140, 30),
    "yellow": (253, 205, 55),
    "green": (80, 165, 70),
    "blue": (55, 125, 215),
    "purple": (140, 75, 195),
    "pink": (245, 125, 180),
    "brown": (125, 80, 55),
}
"""Color words and their sRGB."""
CHANGES = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
"""Words of the pictures in another color."""
GRAY = 0.055
"""Chroma below which a pixel has no color word."""
WHITE = 0.965
"""Lightness from which a pixel with little chroma is background."""
LEAST_SHARE = 0.25
NEAR = 50.0
"""Degrees."""
MOST_SHARE = 0.5

_TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                    [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
_TO_LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                    [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip


def to_oklab(pixels: np.ndarray) -> np.ndarray:
    """sRGB in [0, 255], [..., 3] -> OKLab, float."""
    value = np.asarray(pixels, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T


def to_srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab [..., 3] -> sRGB uint8, clipped."""
    linear = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T
    linear = linear.clip(0, 1)
    value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (value * 255).round().astype(np.uint8)


_WORDS = (*PROTOTYPES, None)
_PLACES = to_oklab(np.array(list(PROTOTYPES.values())))


def color_shares(picture: np.ndarray) -> dict[str, float]:
    """Share of the foreground that each color word covers.

    Args:
        picture: uint8 [H, W, 3].
    """
    lab = to_oklab(picture).reshape(-1, 3)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    lab = lab[(chroma >= 0.02) | (lab[:, 0] < WHITE)]
    if not len(lab):
        return dict.fromkeys(PROTOTYPES, 0.0)
    steps = lab[:, None] - _PLACES
    steps[..., 0] *= 0.6  # lightness counts less than hue
    nearest = (steps**2).sum(-1).argmin(1)
    nearest[np.hypot(lab[:, 1], lab[:, 2]) < GRAY] = len(PROTOTYPES)
    counts = np.bincount(nearest, minlength=len(_WORDS)) / len(lab)
    return dict(zip(PROTOTYPES, counts.tolist(), strict=False))


def color_of(picture: np.ndarray) -> str | None:
    """The color word of a picture, None if it has none; see the rule."""
    shares = color_shares(picture)
    word = max(shares, key=lambda name: shares[name])
    return word if shares[word] >= LEAST_SHARE else None


def obeys(picture: np.ndarray, word: str) -> bool:
    """Whether a picture uint8 [H, W, 3] has the color of a word; see the rule."""
    return color_of(picture) == word


def recolored(drawing: np.ndarray, word: str) -> np.ndarray | None:
    """A drawing in another color, None where that does not work; see the module.

    Args:
        drawing: uint8 [H, W, 4], RGBA. word: one of CHANGES.
    """
    lab, weight = to_oklab(drawing[..., :3]), drawing[..., 3] / 255
    chroma, hue = np.hypot(lab[..., 1], lab[..., 2]), np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))
    colored = weight * (chroma >= GRAY)
    hues, _ = np.histogram(hue, bins=72, range=(-180, 180), weights=colored)
    smooth = sum(np.roll(hues, shift) for shift in range(-3, 4))
    main = -177.5 + 5 * int(np.argmax(smooth))
    away = (hue - main + 180) % 360 - 180
    inside = (chroma >= 0.02) & (np.abs(away) < NEAR)
    whole = (weight * (inside & (chroma >= GRAY))).sum()
    if whole < MOST_SHARE * weight.sum():
        return None
    target = to_oklab(np.array(PROTOTYPES[word]))
    mean = (lab[..., 0] * weight * inside).sum() / (weight * inside).sum()
    mean_chroma = (chroma * weight * inside).sum() / (weight * inside).sum()
    light = (lab[..., 0] + target[0] - mean).clip(0, 1)
    strong = chroma * np.hypot(target[1], target[2]) / mean_chroma
    turned = np.arctan2(target[2], target[1]) + np.radians(away / 2)
    changed = np.stack([light, strong * np.cos(turned), strong * np.sin(turned)], axis=-1)
    fade = np.clip((NEAR - np.abs(away)) / 10, 0, 1)[..., None] * inside[..., None]
    made = drawing.copy()
    made[..., :3] = to_srgb(lab + fade * (changed - lab))
    return made if obeys(on_white(made), word) else None


def on_white(drawing: np.ndarray) -> np.ndarray:
    """RGBA uint8 [H, W, 4] on a white background: uint8 [H, W, 3]."""
    alpha = drawing[..., 3:].astype(np.float64) / 255
    return (drawing[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
