"""Picture files: read within limits, written exactly. The only file that imports Pillow."""

from __future__ import annotations

import io
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .files import write_atomic
from .media_file import DEFAULT_LIMITS, PICTURE_FORMATS, MediaError, MediaLimits, Notes, open_media, reason, silenced

PICTURE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
PICTURE_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"optimize": True}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95, "method": 4}),
}
"""Extension -> the Pillow encoder and its settings. Only PNG keeps every value."""
MAX_SIDE = 16383
"""Pixels of a side that is written; WebP holds no more."""
MAX_SCANS = 200
"""Of a JPEG; progressive ones have about ten for each picture in the file."""
SECOND_PICTURES = ("MPO",)
"""Formats of a main picture with others about it, such as a thumbnail or a gain map, which nobody misses."""

Fit = Literal["exact", "crop", "stretch"]


def read_picture(
    path: str | Path,
    height: int,
    width: int,
    channels: int = 3,
    limits: MediaLimits = DEFAULT_LIMITS,
    fit: Fit = "exact",
    notes: Notes | None = None,
) -> Tensor:
    """Read a picture at the wanted size.

    Args:
        path: one of the extensions in PICTURE_FORMATS. Of several pictures (animation, pages) the first is read.
        height, width: wanted size in pixels.
        channels: 1 grey, 3 RGB, 4 RGB and opacity; for 1 and 3 transparent pixels are laid on white.
        fit: "exact": another size is an error; "crop": scaled until it covers the size, the middle is taken;
            "stretch": scaled to the size, whatever its shape.
        notes: is told of files with several pictures.
    Returns:
        picture [C, height, width], float32 in [-1, 1] (byte b becomes b / 127.5 - 1).
    Raises:
        MediaError: empty, truncated, not what its extension says, over a limit, or another size with "exact".
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if channels not in PICTURE_MODES:
        raise ValueError(f"pictures have 1, 3 or 4 channels, not {channels}")
    # libtiff writes to stderr.
    quiet = silenced() if PICTURE_FORMATS.get(path.suffix.lower()) == "TIFF" else nullcontext()
    with open_media(path, "picture") as file, warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")  # of Pillow, about bombs and broken metadata; our own limit is checked below
        _check_scans(path, file)
        with _open_picture(path, file) as image:
            if image.width * image.height > limits.max_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise MediaError(f"{path}: {size}, the limit is {limits.max_pixels} in all; make it smaller")
            try:
                several = getattr(image, "is_animated", False) and image.format not in SECOND_PICTURES
                image.seek(0)
                image.load()
                image = _upright(image)
                image = _to_mode(image, PICTURE_MODES[channels])
            except Exception as error:  # decoders fail in every way there is
                raise MediaError(f"{path}: damaged or cut short ({reason(error)})") from None
    if image.size != (width, height):
        image = _without_scale(image, height, width)
    if image.size != (width, height):
        if fit == "exact":
            size = f"{image.width} x {image.height} pixels, needed are {width} x {height}"
            raise MediaError(f"{path}: {size}; scale it, or set fit to crop or stretch")
        if fit == "crop":
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        else:
            image = image.resize((width, height), Image.Resampling.LANCZOS)
    if several and notes is not None:
        notes.add("of several pictures (animations, pages): the first is read", path)
    return bytes_to_picture(torch.from_numpy(np.array(image)).reshape(height, width, channels))


def _open_picture(path: Path, file: BinaryIO) -> Image.Image:
    """Read the header only."""
    decoder = PICTURE_FORMATS[path.suffix.lower()]
    try:
        return Image.open(file, formats=[decoder])
    except UnidentifiedImageError:
        raise MediaError(f"{path}: its content is not {decoder}") from None
    except Exception as error:
        raise MediaError(f"{path}: cannot be read as {path.suffix.lower()} ({reason(error)})") from None


def _check_scans(path: Path, file: BinaryIO) -> None:
    """MediaError: a progressive JPEG that draws the whole picture over and over; each of its scans is as much work."""
    if PICTURE_FORMATS[path.suffix.lower()] == "JPEG" and file.read().count(b"\xff\xda") > MAX_SCANS:
        raise MediaError(f"{path}: a JPEG of more than {MAX_SCANS} scans; save it again")
    file.seek(0)


def _upright(image: Image.Image) -> Image.Image:
    """Cameras store a turned picture and a note in EXIF; a note that cannot be read turns nothing."""
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes it upright; 1 is upright."""


def _without_scale(image: Image.Image, height: int, width: int) -> Image.Image:
    """A picture that was enlarged to a multiple of a size by repeating pixels, as it was; others as they are."""
    factor = image.width // width
    if factor < 2 or image.size != (width * factor, height * factor):
        return image
    small = image.resize((width, height), Image.Resampling.NEAREST)
    return small if small.resize(image.size, Image.Resampling.NEAREST).tobytes() == image.tobytes() else image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers of an unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
        steps = np.array(image)
        if steps.min() < 0 or steps.max() > 65535:
            raise ValueError("its pixels have 32 bits of an unknown range; save it with 8 or 16 bits")
        image = Image.fromarray((steps.astype(np.float32) / 257).round().astype(np.uint8))
    if mode != "RGBA" and ("A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


def bytes_to_picture(pixels: Tensor) -> Tensor:
    """Pixels [height, width, C] uint8 -> picture [C, height, width] float32 in [-1, 1]; `write_picture` undoes it."""
    return (pixels.permute(2, 0, 1).float() / 127.5 - 1).contiguous()


def write_picture(path: str | Path, picture: Tensor, scale: int = 1) -> None:
    """Write a picture [C, height, width] in [-1, 1] (clipped beyond), atomically, as its suffix says (PICTURE_WRITTEN).

    Args:
        scale: repeat each pixel so many times in both directions (nearest neighbour); `read_picture` undoes it.
    Raises:
        ValueError: another suffix or shape, values that are not finite, opacity in JPEG, a side beyond MAX_SIDE.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in PICTURE_WRITTEN:
        raise ValueError(f"{path}: pictures are written as {', '.join(PICTURE_WRITTEN)}, not '{path.suffix}'")
    if picture.dim() != 3 or picture.shape[0] not in PICTURE_MODES or not bool(torch.isfinite(picture).all()):
        raise ValueError(
            f"{path}: needs finite values [C, height, width] with C 1, 3 or 4, found {list(picture.shape)}"
        )
    kind, options = PICTURE_WRITTEN[suffix]
    if kind == "JPEG" and picture.shape[0] == 4:
        raise ValueError(f"{path}: JPEG holds no opacity; write .png or .webp")
    check_scale(scale, picture.shape[1], picture.shape[2], str(path))
    pixels = ((picture.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    pixels = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    image = Image.fromarray(pixels.squeeze(2).numpy() if pixels.shape[2] == 1 else pixels.contiguous().numpy())
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    write_atomic(path, content.getvalue(), durable=False)


def check_scale(scale: int, height: int, width: int, what: str) -> None:
    """ValueError unless `scale` is a whole number from 1 that keeps a picture's sides within MAX_SIDE."""
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"{what}: scale must be a whole number, at least 1, found {scale!r}")
    if max(height, width) * scale > MAX_SIDE:
        size = f"{width * scale} x {height * scale} pixels"
        raise ValueError(f"{what}: scale {scale} makes {size}; a side has at most {MAX_SIDE}")
