"""Audio tracks that libsndfile cannot read (AAC, m4a, WMA, video), through FFmpeg. The only file that imports PyAV.

The extension determines the demuxer: a guessed one could be that of a playlist, which opens other files. Encoder delay
is trimmed as FFmpeg does. PyAV is optional: extra `media`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .media_file import CONTAINER_FORMATS, MediaError, reason

MISSING = "reading it needs PyAV: pip install 'tessera-lm[media]'"
MAX_INDEX_BYTES = 64 << 20


def has_av() -> bool:
    """Whether PyAV can be imported."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


class AudioTrack:
    """The first audio track of a file; samplerate and channels are those of the header.

    Args:
        path: used in messages; its extension selects the demuxer. file: opened for reading; the caller closes it.
    Raises:
        MediaError: PyAV is missing, the container has another format, or it has no audio.
    """

    def __init__(self, path: Path, file: BinaryIO):
        try:
            import av
            import av.logging
        except ImportError:
            raise MediaError(f"{path}: {MISSING}") from None
        av.logging.set_level(None)  # FFmpeg would write to stderr
        self.path, self.av = path, av
        self.demuxer = CONTAINER_FORMATS[path.suffix.lower()]
        self.exact = self.demuxer == "mov"
        """Whether the length in the header is exact."""
        self.loose = self.demuxer in ("mp3", "aac")
        """Whether it is a raw sequence of frames without a container, where tags and joins are skipped."""
        if self.demuxer == "mov":
            _check_sample_table(path, file)
        try:
            self.container = av.open(file, "r", format=self.demuxer, metadata_errors="replace")
            self.stream: Any = next(iter(self.container.streams.audio), None)
            if self.stream is not None:
                codec = self.stream.codec_context
                self.samplerate, self.channels = int(codec.sample_rate or 0), int(codec.channels or 0)
                codec.thread_count = 1
                missing = self._missing_bytes(os.fstat(file.fileno()).st_size)
        except Exception as error:
            raise MediaError(f"{path}: cannot be read as {path.suffix.lower()} ({reason(error)})") from None
        if self.stream is None:
            raise MediaError(f"{path}: has no audio track")
        if not self.samplerate or not self.channels:
            raise MediaError(f"{path}: cannot be read as {path.suffix.lower()} (no sample rate or no channels)")
        if missing:
            raise MediaError(f"{path}: cut short, {missing} bytes of its packets are missing")

    def _missing_bytes(self, size: int) -> int:
        """Number of bytes by which the index of an MP4 file exceeds the file; other formats have no index."""
        if self.demuxer != "mov":
            return 0
        return max(0, max((entry.pos + entry.size for entry in self.stream.index_entries), default=0) - size)

    @property
    def seconds(self) -> float:
        """Length according to the header, 0 if unknown. Not trusted, but too long a length is rejected early."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        return float(self.container.duration or 0) / 1e6

    def blocks(self) -> Iterator[Tensor]:
        """Decode blocks of samples [C, n] float32.

        Raises:
            MediaError: damaged or truncated, or the rate or channels change within the file.
        """
        num_read, packets, bad = 0, 0, 0
        convert = self.av.AudioResampler(format="fltp")
        try:
            for packet in self.container.demux(self.stream):
                packets += 1
                try:
                    frames = packet.decode()
                except self.av.error.InvalidDataError:
                    bad += 1
                    if not self.loose or bad > max(2, packets // 50):
                        raise
                    continue
                for frame in frames:
                    if frame.sample_rate != self.samplerate or frame.layout.nb_channels != self.channels:
                        raise MediaError(
                            f"{self.path}: the sample rate or the channels change after {num_read} samples"
                        )
                    for plain in convert.resample(frame):
                        block = torch.from_numpy(plain.to_ndarray().copy())
                        num_read += block.shape[1]
                        yield block
        except MediaError:
            raise
        except Exception as error:
            raise MediaError(f"{self.path}: damaged after {num_read} samples ({reason(error)})") from None

    def close(self) -> None:
        """Free the decoder."""
        self.container.close()


def _check_sample_table(path: Path, file: BinaryIO) -> None:
    """Reject an MP4 file whose tables list more samples than it has bytes: FFmpeg would allocate an index of all."""
    size = os.fstat(file.fileno()).st_size
    for name, start, end in _boxes(file, 0, size):
        if name != b"moov":
            continue
        if end - start > MAX_INDEX_BYTES:
            raise MediaError(f"{path}: an index of {end - start} bytes, the limit is {MAX_INDEX_BYTES}")
        file.seek(start)
        index = file.read(end - start)
        for table, field in ((b"stsz", 8), (b"stz2", 8)):
            place = index.find(table)
            while place >= 0:
                count = int.from_bytes(index[place + 4 + field : place + 8 + field], "big")
                if count > size:
                    raise MediaError(f"{path}: its index lists {count} samples, the file has {size} bytes")
                place = index.find(table, place + 4)
    file.seek(0)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Top-level boxes of an MP4 file: name, start and end of the content."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        length, name, begin = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:
            length, begin = int.from_bytes(head[8:16], "big"), start + 16
        stop = end if length == 0 else min(end, start + length)
        if stop < begin:
            return
        yield name, begin, stop
        start = stop
