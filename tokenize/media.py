"""Sound and picture files: read within limits, written exactly. The only file that imports soundfile and Pillow.

A file is probed before it is decoded: a few kilobytes of FLAC or PNG can promise gigabytes of samples or pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from .config import Config
from .files import write_atomic
from .resample import Resampler
from .wav_file import pcm16

AUDIO_FORMATS = {
    ".wav": ("WAV", "WAVEX", "RF64"),
    ".flac": ("FLAC",),
    ".ogg": ("OGG",),
    ".opus": ("OGG",),
    ".mp3": ("MP3", "MPEG"),
}
"""Extension -> what libsndfile may call its content."""
PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
"""Extension -> the one Pillow decoder that is tried."""
PICTURE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

LOUDEST = 4.0
"""Samples of float files may overshoot full scale a little (they are clipped); beyond this they are in another unit."""
BLOCK_FRAMES = 1 << 16
UNKNOWN_FRAMES = 1 << 48
"""libsndfile's lengths of streamed files are near 2**63."""


class MediaError(ValueError):
    """A media file that cannot be used; one line that names the file and the reason."""


class MediaLimits(Config):
    """What a media file may ask for before any of it is decoded."""

    max_seconds: PositiveFloat = 1800.0
    min_sample_rate: PositiveInt = 4000
    max_sample_rate: PositiveInt = 192_000
    max_channels: PositiveInt = 16
    max_pixels: PositiveInt = 32_000_000


DEFAULT_LIMITS = MediaLimits()

Fit = Literal["exact", "crop", "stretch"]


def media_kind(path: str | Path) -> Literal["audio", "picture"]:
    """Tell sound from pictures by the extension; MediaError when it is neither."""
    extension = Path(path).suffix.lower()
    if extension in AUDIO_FORMATS:
        return "audio"
    if extension in PICTURE_FORMATS:
        return "picture"
    known = " ".join([*AUDIO_FORMATS, *PICTURE_FORMATS])
    raise MediaError(f"{path}: '{extension}' is no media file known here; use one of {known}")


def read_audio(path: str | Path, sample_rate: int, channels: int = 1, limits: MediaLimits = DEFAULT_LIMITS) -> Tensor:
    """Read a sound file at the wanted rate.

    Args:
        path: .wav, .flac, .ogg, .opus or .mp3.
        sample_rate: wanted rate in Hz; the file is resampled.
        channels: wanted channels: 1 mixes down (the mean), more than the file's single one repeats it.
    Returns:
        samples [C, N], float32 in [-1, 1]. Memory is that of the result, however high the file's own rate is.
    Raises:
        MediaError: empty, truncated, not what its extension says, over a limit, or with samples that are not finite.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    _check_file(path, "audio")
    with _open_sound(path) as file:
        _check_sound(path, file, limits)
        resampler = Resampler(min(channels, file.channels), file.samplerate, sample_rate)
        pieces = [resampler.push(block) for block in _read_blocks(path, file, channels)]
        samples = torch.cat([*pieces, resampler.finish()], dim=-1).clamp_(-1, 1)
    return samples.expand(channels, -1).contiguous()


def _open_sound(path: Path) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:  # TypeError: headerless formats
        raise MediaError(f"{path}: cannot be read as {path.suffix.lower()} ({_reason(error)})") from None


def _check_sound(path: Path, file: soundfile.SoundFile, limits: MediaLimits) -> None:
    """Compare a header with the limits, before any sample is decoded."""
    if file.format not in AUDIO_FORMATS[path.suffix.lower()]:
        raise MediaError(f"{path}: contains {file.format}, not {path.suffix.lower()}; rename it to what it is")
    if not limits.min_sample_rate <= file.samplerate <= limits.max_sample_rate:
        wanted = f"{limits.min_sample_rate} to {limits.max_sample_rate} Hz"
        raise MediaError(f"{path}: sample rate {file.samplerate} Hz, allowed are {wanted}")
    if not 1 <= file.channels <= limits.max_channels:
        raise MediaError(f"{path}: {file.channels} channels, allowed are 1 to {limits.max_channels}")
    if file.frames < 1:
        raise MediaError(f"{path}: holds no samples")
    if file.frames >= UNKNOWN_FRAMES:
        raise MediaError(f"{path}: does not say how long it is; save it again from a program that knows")
    if file.frames > limits.max_seconds * file.samplerate:
        seconds = file.frames / file.samplerate
        raise MediaError(f"{path}: {seconds:.0f} s long, the limit is {limits.max_seconds:.0f} s; cut it into pieces")
    missing = _missing_wav_bytes(path) if path.suffix.lower() == ".wav" else 0
    if missing:
        raise MediaError(f"{path}: cut short, {missing} bytes of the promised samples are missing")


def _missing_wav_bytes(path: Path) -> int:
    """Bytes that the data chunk of a RIFF file promises beyond its end; libsndfile shortens the promise silently."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        position = 12
        while position + 8 <= size:
            file.seek(position)
            name, length = file.read(4), int.from_bytes(file.read(4), "little")
            if name == b"data":
                # 0xFFFFFFFF and 0x7FFFFFFF-like sizes are how a stream says that it does not know its length.
                return 0 if length >= 0x7FFFF000 else max(0, position + 8 + length - size)
            position += 8 + length + length % 2
    return 0


def _read_blocks(path: Path, file: soundfile.SoundFile, channels: int) -> Iterator[Tensor]:
    """Blocks [C, n] of a sound file, mixed to `channels` (or to its single one), each checked."""
    if channels != file.channels and 1 not in (channels, file.channels):
        raise MediaError(f"{path}: {file.channels} channels, {channels} are needed; mix it first")
    num_read = 0
    while num_read < file.frames:
        try:
            block = torch.from_numpy(file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)).T
        except (soundfile.SoundFileError, OSError) as error:
            raise MediaError(f"{path}: damaged after {num_read} of {file.frames} samples ({_reason(error)})") from None
        if block.shape[1] == 0:
            raise MediaError(f"{path}: cut short, {num_read} of {file.frames} promised samples are there")
        if not bool(torch.isfinite(block).all()):
            raise MediaError(f"{path}: holds samples that are not finite numbers")
        if float(block.abs().max()) > LOUDEST:
            raise MediaError(f"{path}: samples reach {float(block.abs().max()):.4g}, expected are -1 to 1; rescale it")
        num_read += block.shape[1]
        yield block.mean(dim=0, keepdim=True) if channels == 1 else block


def write_audio(path: str | Path, samples: Tensor, sample_rate: int) -> None:
    """Write samples [C, N] in [-1, 1] (clipped beyond) as 16-bit .wav or .flac, atomically.

    A 16-bit file that is read and written again has the same samples. Raises ValueError on another extension or shape,
    or on samples that are not finite.
    """
    path = Path(path)
    if path.suffix.lower() not in (".wav", ".flac"):
        raise ValueError(f"{path}: sound is written as .wav or .flac, not '{path.suffix}'")
    if samples.dim() != 2 or not 1 <= samples.shape[0] <= 8 or not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{path}: needs finite samples [C, N] with 1 to 8 channels, found {list(samples.shape)}")
    steps = pcm16(samples)
    kind = path.suffix[1:].upper()
    level = 1.0 if kind == "FLAC" else None  # smallest

    content = io.BytesIO()
    soundfile.write(content, steps.T.numpy(), sample_rate, subtype="PCM_16", format=kind, compression_level=level)
    write_atomic(path, content.getvalue(), durable=False)


def read_picture(
    path: str | Path,
    height: int,
    width: int,
    channels: int = 3,
    limits: MediaLimits = DEFAULT_LIMITS,
    fit: Fit = "exact",
) -> Tensor:
    """Read a picture at the wanted size.

    Args:
        path: .png, .jpg, .jpeg, .webp or .bmp.
        height, width: wanted size in pixels.
        channels: 1 grey, 3 RGB, 4 RGB and opacity; for 1 and 3 transparent pixels are laid on white.
        fit: "exact": another size is an error; "crop": scaled until it covers the size, the middle is taken;
            "stretch": scaled to the size, whatever its shape.
    Returns:
        picture [C, height, width], float32 in [-1, 1] (byte b becomes b / 127.5 - 1).
    Raises:
        MediaError: empty, truncated, not what its extension says, over a limit, animated, or another size with "exact".
        FileNotFoundError: no such file.
    """
    path = Path(path)
    _check_file(path, "picture")
    if channels not in PICTURE_MODES:
        raise ValueError(f"pictures have 1, 3 or 4 channels, not {channels}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked just below
            image = Image.open(path, formats=[PICTURE_FORMATS[path.suffix.lower()]])  # reads the header only
    except UnidentifiedImageError:
        raise MediaError(f"{path}: its content is not {PICTURE_FORMATS[path.suffix.lower()]}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: cannot be read as {path.suffix.lower()} ({_reason(error)})") from None
    with image:
        if image.width * image.height > limits.max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise MediaError(f"{path}: {size}, the limit is {limits.max_pixels} in all; make it smaller")
        if getattr(image, "n_frames", 1) > 1:
            raise MediaError(f"{path}: animated ({image.n_frames} pictures); save one of them")  # type: ignore[attr-defined]
        try:
            image.load()
            image = ImageOps.exif_transpose(image)  # cameras store a turned picture and a note
            image = _to_mode(image, PICTURE_MODES[channels])
        except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
            raise MediaError(f"{path}: damaged or cut short ({_reason(error)})") from None
    if image.size != (width, height):
        if fit == "exact":
            size = f"{image.width} x {image.height} pixels, needed are {width} x {height}"
            raise MediaError(f"{path}: {size}; scale it, or set fit to crop or stretch")
        if fit == "crop":
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        else:
            image = image.resize((width, height), Image.Resampling.LANCZOS)
    return bytes_to_picture(torch.from_numpy(np.array(image)).reshape(height, width, channels))


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
        image = Image.fromarray((np.array(image).astype(np.float32) / 257).round().astype(np.uint8))
    if mode != "RGBA" and ("A" in image.getbands() or "transparency" in image.info):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


def bytes_to_picture(pixels: Tensor) -> Tensor:
    """Pixels [height, width, C] uint8 -> picture [C, height, width] float32 in [-1, 1]; `write_picture` undoes it."""
    return (pixels.permute(2, 0, 1).float() / 127.5 - 1).contiguous()


def write_picture(path: str | Path, picture: Tensor) -> None:
    """Write a picture [C, height, width] in [-1, 1] (clipped beyond) as PNG of that size, atomically.

    Raises ValueError on another extension or shape, or on values that are not finite.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are written as .png, not '{path.suffix}'")
    if picture.dim() != 3 or picture.shape[0] not in PICTURE_MODES or not bool(torch.isfinite(picture).all()):
        raise ValueError(
            f"{path}: needs finite values [C, height, width] with C 1, 3 or 4, found {list(picture.shape)}"
        )
    pixels = ((picture.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    image = Image.fromarray(pixels.squeeze(2).numpy() if pixels.shape[2] == 1 else pixels.contiguous().numpy())
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    write_atomic(path, content.getvalue(), durable=False)


def _check_file(path: Path, kind: str) -> None:
    if media_kind(path) != kind:
        raise MediaError(f"{path}: {kind} is needed here, '{path.suffix}' is {media_kind(path)}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise MediaError(f"{path}: not a file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty")


def _reason(error: BaseException) -> str:
    """The message of a decoder in one line, without the path it repeats."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix("Error opening ").rsplit(": ", 1)[-1][:200]
