"""A WAV file that is written while its samples are made: 16-bit PCM, the sizes filled in at the end.

Into a pipe nothing can be filled in, so there the header says the largest size, which players read as "until it ends"
(as ffmpeg and sox write it).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import torch
from torch import Tensor

HEADER_BYTES = 44
UNKNOWN = 0xFFFFFFFF


class WavWriter:
    """Writes samples [C, n] one chunk after the other.

    Args:
        file: where to; it is the caller's to close.
        sample_rate: Hz.
        channels: C.
        seekable: False for a pipe.
    """

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int = 1, seekable: bool = True):
        self.file, self.sample_rate, self.channels, self.seekable = file, sample_rate, channels, seekable
        self.num_samples = 0
        self.file.write(self._header(UNKNOWN))

    def write(self, samples: Tensor) -> None:
        """Add float samples [C, n] in [-1, 1] (clipped beyond), and hand them on at once. ValueError: another shape."""
        if samples.dim() != 2 or samples.shape[0] != self.channels:
            raise ValueError(f"samples must be [{self.channels}, n], found {list(samples.shape)}")
        self.file.write(pcm16(samples).T.contiguous().numpy().astype("<i2").tobytes())
        self.file.flush()
        self.num_samples += samples.shape[1]

    def finish(self) -> None:
        """Fill in the sizes. ValueError: more than a WAV file can say (4 GiB)."""
        if not self.seekable:
            return
        size = 2 * self.channels * self.num_samples
        if size + HEADER_BYTES - 8 >= UNKNOWN:
            raise ValueError(f"a .wav holds at most 4 GiB, found {size} bytes of samples; write several")
        self.file.seek(0)
        self.file.write(self._header(size))
        self.file.seek(0, 2)
        self.file.flush()

    def _header(self, size: int) -> bytes:
        block = 2 * self.channels
        described = (1, self.channels, self.sample_rate, self.sample_rate * block, block, 16)
        whole = min(size + HEADER_BYTES - 8, UNKNOWN)
        return b"RIFF%sWAVEfmt %sdata%s" % (
            struct.pack("<I", whole),
            struct.pack("<IHHIIHH", 16, *described),
            struct.pack("<I", size),
        )


def pcm16(samples: Tensor) -> Tensor:
    """Float samples in [-1, 1] as int16, rounded, clipped beyond."""
    return (samples.detach().cpu().float() * 32768).round().clamp(-32768, 32767).to(torch.int16)
