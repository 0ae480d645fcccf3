"""Image files: reading within limits, and writing. This is the only file that imports Pillow."""

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

from ...configs.files import write_atomic
from .media_file import DEFAULT_LIMITS, IMAGE_FORMATS, MediaError, MediaLimits, Notes, open_media, reason, silenced

IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
IMAGE_FORMATS_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"optimize": True}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95, "method": 4}),
}
"""Extension -> Pillow encoder and its settings. Only PNG is lossless."""
MAX_SIDE = 16383
"""Maximum side of a written image in pixels; the limit of WebP."""
MAX_SCANS = 200
"""Maximum number of scans of a JPEG; a progressive one has about ten per image in the file."""
SECOND_IMAGES = ("MPO",)
"""Formats with one main image and auxiliary ones (thumbnail, gain map) that can be ignored."""

Fit = Literal["exact", "crop", "stretch"]


def read_image(
    path: str | Path,
    height: int,
    width: int,
    channels: int = 3,
    limits: MediaLimits = DEFAULT_LIMITS,
    fit: Fit = "exact",
    notes: Notes | None = None,
) -> Tensor:
    """Read an image at a given size.

    Args:
        path: file with an extension in IMAGE_FORMATS. Of several images (animation, pages) the first is read.
        height, width: output size in pixels.
        channels: 1 gray, 3 RGB, 4 RGBA; for 1 and 3, transparent pixels are composited on white.
        fit: "exact": another size is an error; "crop": resize to cover the size, then center crop; "stretch": resize to
            the size, ignoring the aspect ratio.
        notes: collects a note about files with several images.
    Returns:
        image [C, height, width], float32 in [-1, 1] (byte b becomes b / 127.5 - 1).
    Raises:
        MediaError: empty, truncated, content does not match the extension, over a limit, or another size with "exact".
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if channels not in IMAGE_MODES:
        raise ValueError(f"images have 1, 3 or 4 channels, not {channels}")
    image, several = _decode(path, IMAGE_MODES[channels], limits)
    image = _resize(path, image, height, width, fit)
    if several and notes is not None:
        notes.add("of several images (animations, pages): the first is read", path)
    return bytes_to_image(torch.from_numpy(np.array(image)).reshape(height, width, channels))


def _decode(path: Path, mode: str, limits: MediaLimits) -> tuple[Image.Image, bool]:
    """Decode an image in a Pillow mode, upright, and whether the file has further images."""
    # libtiff writes to stderr.
    quiet = silenced() if IMAGE_FORMATS.get(path.suffix.lower()) == "TIFF" else nullcontext()
    with open_media(path, "picture") as file, warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")  # Pillow warns about bombs and broken metadata; our limit is checked below
        _check_scans(path, file)
        with _open_image(path, file) as image:
            if image.width * image.height > limits.max_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise MediaError(f"{path}: {size}, the limit is {limits.max_pixels} in all; make it smaller")
            try:
                several = getattr(image, "is_animated", False) and image.format not in SECOND_IMAGES
                image.seek(0)
                image.load()
                return _to_mode(_upright(image), mode), several
            except Exception as error:  # decoders raise all kinds of errors
                raise MediaError(f"{path}: damaged or cut short ({reason(error)})") from None


def _resize(path: Path, image: Image.Image, height: int, width: int, fit: Fit) -> Image.Image:
    """The image at the given size, see `read_image`."""
    if image.size != (width, height):
        image = _without_scale(image, height, width)
    if image.size == (width, height):
        return image
    if fit == "exact":
        size = f"{image.width} x {image.height} pixels, needed are {width} x {height}"
        raise MediaError(f"{path}: {size}; scale it, or set fit to crop or stretch")
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _open_image(path: Path, file: BinaryIO) -> Image.Image:
    """Open an image and read only its header."""
    decoder = IMAGE_FORMATS[path.suffix.lower()]
    try:
        return Image.open(file, formats=[decoder])
    except UnidentifiedImageError:
        raise MediaError(f"{path}: its content is not {decoder}") from None
    except Exception as error:
        raise MediaError(f"{path}: cannot be read as {path.suffix.lower()} ({reason(error)})") from None


def _check_scans(path: Path, file: BinaryIO) -> None:
    """Raise MediaError for a JPEG of too many scans: decoding time grows with their number."""
    if IMAGE_FORMATS[path.suffix.lower()] == "JPEG" and file.read().count(b"\xff\xda") > MAX_SCANS:
        raise MediaError(f"{path}: a JPEG of more than {MAX_SCANS} scans; save it again")
    file.seek(0)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of camera images; unreadable EXIF data is ignored."""
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
"""EXIF orientation -> transposition that makes the image upright; 1 is upright."""


def _without_scale(image: Image.Image, height: int, width: int) -> Image.Image:
    """Undo an enlargement to a multiple of the size by pixel repetition; other images are returned unchanged."""
    factor = image.width // width
    if factor < 2 or image.size != (width * factor, height * factor):
        return image
    small = image.resize((width, height), Image.Resampling.NEAREST)
    return small if small.resize(image.size, Image.Resampling.NEAREST).tobytes() == image.tobytes() else image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers of an unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit gray at 255
        steps = np.array(image)
        if steps.min() < 0 or steps.max() > 65535:
            raise ValueError("its pixels have 32 bits of an unknown range; save it with 8 or 16 bits")
        image = Image.fromarray((steps.astype(np.float32) / 257).round().astype(np.uint8))
    if mode != "RGBA" and ("A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


def bytes_to_image(pixels: Tensor) -> Tensor:
    """Pixels [height, width, C] uint8 -> image [C, height, width] float32 in [-1, 1]; inverse of `write_image`."""
    return (pixels.permute(2, 0, 1).float() / 127.5 - 1).contiguous()


def write_image(path: str | Path, image: Tensor, scale: int = 1) -> None:
    """Write an image [C, height, width], clipped to [-1, 1], atomically; the suffix sets the format
    (IMAGE_FORMATS_WRITTEN).

    Args:
        scale: integer upscaling factor (nearest neighbor); `read_image` undoes it.
    Raises:
        ValueError: unknown suffix, wrong shape, non-finite values, an alpha channel in JPEG, a side beyond MAX_SIDE.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_FORMATS_WRITTEN:
        raise ValueError(f"{path}: images are written as {', '.join(IMAGE_FORMATS_WRITTEN)}, not '{path.suffix}'")
    if image.dim() != 3 or image.shape[0] not in IMAGE_MODES or not bool(torch.isfinite(image).all()):
        raise ValueError(f"{path}: needs finite values [C, height, width] with C 1, 3 or 4, found {list(image.shape)}")
    kind, options = IMAGE_FORMATS_WRITTEN[suffix]
    if kind == "JPEG" and image.shape[0] == 4:
        raise ValueError(f"{path}: JPEG has no alpha channel; write .png or .webp")
    check_scale(scale, image.shape[1], image.shape[2], str(path))
    pixels = ((image.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    pixels = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    encoded = Image.fromarray(pixels.squeeze(2).numpy() if pixels.shape[2] == 1 else pixels.contiguous().numpy())
    content = io.BytesIO()
    encoded.save(content, format=kind, **options)
    write_atomic(path, content.getvalue(), durable=False)


def check_scale(scale: int, height: int, width: int, what: str) -> None:
    """Raise ValueError unless `scale` is a positive integer that keeps the sides of an image within MAX_SIDE."""
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"{what}: scale must be a whole number, at least 1, found {scale!r}")
    if max(height, width) * scale > MAX_SIDE:
        size = f"{width * scale} x {height * scale} pixels"
        raise ValueError(f"{what}: scale {scale} makes {size}; a side has at most {MAX_SIDE}")
