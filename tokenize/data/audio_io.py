"""Audio files: reading within limits, lossless 16-bit writing. This is the only file that imports soundfile.

The limits are checked against the length in the header first, and then against the decoded samples: WAV, AIFF and FLAC
headers have an exact number of samples, MP3 files often an estimate, streams none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import BinaryIO

import soundfile
import torch
from torch import Tensor

from ...configs.files import write_atomic
from ..audio.resample import Resampler
from ..audio.wav_writer import pcm16
from .audio_pyav import MISSING, AudioTrack, has_av
from .media_file import (
    AUDIO_FORMATS,
    CONTAINER_FORMATS,
    DEFAULT_LIMITS,
    MediaError,
    MediaLimits,
    Notes,
    open_media,
    open_regular,
    reason,
    silenced,
)

LOUDEST = 4.0
"""Float samples may slightly exceed full scale (they are clipped); samples beyond this are in another unit."""
BLOCK_FRAMES = 1 << 16
UNKNOWN_FRAMES = 1 << 48
"""libsndfile reports lengths near 2**63 for streamed files."""
OTHER_HEADS = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS")
"""First bytes of files that are not MP3, whatever their name."""
ESTIMATED = ("MP3", "MPEG", "OGG")
"""Formats with an estimated length."""


def read_audio(
    path: str | Path,
    sample_rate: int,
    channels: int = 1,
    limits: MediaLimits = DEFAULT_LIMITS,
    notes: Notes | None = None,
) -> Tensor:
    """Read an audio file at a given sample rate.

    Args:
        path: .wav, .flac, .ogg, .opus, .mp3, .aiff; with PyAV also .m4a, .aac, .wma, and the audio of .mp4, .webm, ...
        sample_rate: output rate in Hz; the file is resampled.
        channels: output channels: 1 mixes down (the mean); a mono file is repeated for more.
        notes: collects a note about files that are mixed down.
    Returns:
        samples [C, N], float32 in [-1, 1]. Memory use is that of the result, however high the file's own rate is.
    Raises:
        MediaError: empty, truncated, content does not match the extension, over a limit, or non-finite samples.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with open_media(path, "audio") as file, closing(_open_audio(path, file)) as audio:
        _check_audio(path, audio, limits)
        if channels != audio.channels and 1 not in (channels, audio.channels):
            raise MediaError(f"{path}: {audio.channels} channels, expected {channels}; mix it first")
        resampler = Resampler(min(channels, audio.channels), audio.samplerate, sample_rate)
        blocks = [resampler.push(block) for block in _mixed_blocks(path, audio, channels, limits)]
        if not resampler.num_read:
            raise MediaError(f"{path}: holds no samples")
        samples = torch.cat([*blocks, resampler.finish()], dim=-1).clamp_(-1, 1)
        if channels == 1 < audio.channels and notes is not None:
            notes.add("with several channels: they are mixed down to one", path)
    return samples.expand(channels, -1).contiguous()


class UnknownFormat(MediaError):
    """libsndfile does not know the format."""


class AudioFile:
    """A file read by libsndfile, with the interface of `AudioTrack`."""

    def __init__(self, path: Path, file: BinaryIO):
        extension = path.suffix.lower()
        self.path, self.given = path, file
        missing = _missing_bytes(file)
        # Open by descriptor: errors in callbacks to a Python file would go to stderr. It has its own file position.
        self.opened = open_regular(path)
        try:
            with self._quiet():
                self.file = soundfile.SoundFile(self.opened.fileno(), closefd=False)
        except Exception as error:
            raise UnknownFormat(f"{path}: cannot be read as {extension} ({reason(error)})") from None
        self.samplerate, self.channels = self.file.samplerate, self.file.channels
        self.exact = self.file.format not in ESTIMATED and self.file.frames < UNKNOWN_FRAMES
        """Whether the length in the header is exact."""
        if self.file.format not in AUDIO_FORMATS[extension]:
            raise MediaError(f"{path}: contains {self.file.format}, not {extension}; rename it to match")
        if missing:
            raise MediaError(f"{path}: cut short, {missing} bytes of its samples are missing")
        if self.exact and self.file.frames < 1:
            raise MediaError(f"{path}: holds no samples")

    def _quiet(self) -> AbstractContextManager[None]:
        """Silence mpg123, which writes to stderr."""
        return silenced() if self.path.suffix.lower() == ".mp3" else nullcontext()

    def ends_early(self, file: BinaryIO) -> bool:
        """Whether libsndfile stops before the end: FLAC of unknown length, several concatenated Ogg streams."""
        if self.file.format == "FLAC":
            return self.file.frames >= UNKNOWN_FRAMES
        return self.file.format == "OGG" and _count_in(file, b"OggS\0\2") > 1

    @property
    def seconds(self) -> float:
        """Length according to the header."""
        return self.file.frames / max(1, self.samplerate)

    def blocks(self) -> Iterator[Tensor]:
        """Decode blocks of samples [C, n] float32. Raises MediaError if the file is damaged or truncated."""
        num_read, promised = 0, self.file.frames
        while True:
            try:
                with self._quiet():
                    block = torch.from_numpy(self.file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)).T
            except Exception as error:
                raise MediaError(f"{self.path}: damaged after {num_read} samples ({reason(error)})") from None
            if block.shape[1] == 0:
                break
            num_read += block.shape[1]
            yield block
        if self.exact and num_read < promised:
            raise MediaError(f"{self.path}: cut short, it has {num_read} of {promised} samples")
        if self.file.format == "MP3" and num_read >= promised and not _says_length(self.given):
            # libsndfile stops at its estimate, which is too low if the file starts with high bit rates.
            raise MediaError(f"{self.path}: an MP3 file without its length; {MISSING}")

    def close(self) -> None:
        """Free the decoder."""
        self.file.close()
        self.opened.close()


def _open_audio(path: Path, file: BinaryIO) -> AudioFile | AudioTrack:
    """Open with libsndfile if it supports the format well, otherwise with FFmpeg."""
    extension = path.suffix.lower()
    head = file.read(4)
    file.seek(0)
    # libsndfile reads MP3 files only up to the length in the header or its estimate.
    if extension not in AUDIO_FORMATS or (extension == ".mp3" and has_av() and head not in OTHER_HEADS):
        return AudioTrack(path, file)
    try:
        found = AudioFile(path, file)
    except UnknownFormat:
        if CONTAINER_FORMATS.get(extension) != "ogg" or not has_av():  # Speex, for instance
            raise
    else:
        if not found.ends_early(file):
            return found
        found.close()
    file.seek(0)
    return AudioTrack(path, file)


def _check_audio(path: Path, audio: AudioFile | AudioTrack, limits: MediaLimits) -> None:
    """Check a header against the limits before decoding."""
    if not limits.min_sample_rate <= audio.samplerate <= limits.max_sample_rate:
        wanted = f"{limits.min_sample_rate} to {limits.max_sample_rate} Hz"
        raise MediaError(f"{path}: sample rate {audio.samplerate} Hz, expected {wanted}")
    if not 1 <= audio.channels <= limits.max_channels:
        raise MediaError(f"{path}: {audio.channels} channels, expected 1 to {limits.max_channels}")
    # An estimate can be twice too long, so it does not justify rejecting a file.
    if audio.exact and audio.seconds > limits.max_seconds:
        raise MediaError(_too_long(path, f"{audio.seconds:.0f} s long", limits))


def _too_long(path: Path, found: str, limits: MediaLimits) -> str:
    return f"{path}: {found}, the limit is {limits.max_seconds:.0f} s; split it"


def _mixed_blocks(path: Path, audio: AudioFile | AudioTrack, channels: int, limits: MediaLimits) -> Iterator[Tensor]:
    """Checked blocks [C, n] of an audio file, mixed down if `channels` is 1."""
    num_read, allowed = 0, int(limits.max_seconds * audio.samplerate)
    for block in audio.blocks():
        num_read += block.shape[1]
        if num_read > allowed:
            raise MediaError(_too_long(path, f"more than {limits.max_seconds:.0f} s long", limits))
        if not bool(torch.isfinite(block).all()):
            raise MediaError(f"{path}: holds samples that are not finite numbers")
        if block.numel() and float(block.abs().max()) > LOUDEST:
            raise MediaError(f"{path}: samples reach {float(block.abs().max()):.4g}, expected -1 to 1; rescale it")
        yield block.mean(dim=0, keepdim=True) if channels == 1 else block


def _missing_bytes(file: BinaryIO) -> int:
    """Number of bytes by which the sample chunk of a RIFF or AIFF file exceeds the file; libsndfile silently truncates
    such files."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    outer = file.read(4)
    order = {b"RIFF": "little", b"FORM": "big"}.get(outer)
    if order is None:
        return 0
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = file.read(4), int.from_bytes(file.read(4), "little" if order == "little" else "big")
        if name in (b"data", b"SSND"):
            # Streams of unknown length have sizes like 0xFFFFFFFF and 0x7FFFFFFF.
            return 0 if length >= 0x7FFFF000 else max(0, position + 8 + length - size)
        position += 8 + length + length % 2
    return 0


def _count_in(file: BinaryIO, mark: bytes) -> int:
    """Number of occurrences of a byte string in a file."""
    file.seek(0)
    count, tail = 0, b""
    while block := file.read(1 << 20):
        count += (tail + block).count(mark)
        tail = block[1 - len(mark) :]
    return count


def _says_length(file: BinaryIO) -> bool:
    """Whether an MP3 file states its length in the first frame (Xing, Info or VBRI header)."""
    file.seek(0)
    head = file.read(10)
    skip = 0
    if head[:3] == b"ID3":  # its size has 7 bits per byte
        skip = 10 + sum((byte & 127) << 7 * place for place, byte in enumerate(reversed(head[6:10])))
    file.seek(skip)
    first = file.read(4096)
    return any(name in first for name in (b"Xing", b"Info", b"VBRI"))


def write_audio(path: str | Path, samples: Tensor, sample_rate: int) -> None:
    """Write samples [C, N], clipped to [-1, 1], as 16-bit .wav or .flac, atomically.

    Reading and rewriting a 16-bit file preserves its samples. Raises ValueError on another extension or shape, or on
    non-finite samples.
    """
    path = Path(path)
    if path.suffix.lower() not in (".wav", ".flac"):
        raise ValueError(f"{path}: audio is written as .wav or .flac, not '{path.suffix}'")
    if samples.dim() != 2 or not 1 <= samples.shape[0] <= 8 or not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{path}: needs finite samples [C, N] with 1 to 8 channels, found {list(samples.shape)}")
    steps = pcm16(samples)
    kind = path.suffix[1:].upper()
    level = 1.0 if kind == "FLAC" else None  # smallest files

    content = io.BytesIO()
    soundfile.write(content, steps.T.numpy(), sample_rate, subtype="PCM_16", format=kind, compression_level=level)
    write_atomic(path, content.getvalue(), durable=False)
