"""Streaming WAV writer: 16-bit PCM, with the sizes filled in at the end.

A pipe cannot seek back, so its header has the largest size, which players interpret as "until the end" (like the output
of ffmpeg and sox).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import torch
from torch import Tensor

HEADER_BYTES = 44
UNKNOWN = 0xFFFFFFFF


class WavWriter:
    """Writes samples [C, n] chunk by chunk.

    Args:
        file: output file; the caller closes it.
        sample_rate: Hz.
        channels: C.
        seekable: False for a pipe.
    """

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int = 1, seekable: bool = True):
        self.file, self.sample_rate, self.channels, self.seekable = file, sample_rate, channels, seekable
        self.num_samples = 0
        self.file.write(self._header(UNKNOWN))

    def write(self, samples: Tensor) -> None:
        """Write float samples [C, n], clipped to [-1, 1], and flush. Raises ValueError on a wrong shape."""
        if samples.dim() != 2 or samples.shape[0] != self.channels:
            raise ValueError(f"samples must be [{self.channels}, n], found {list(samples.shape)}")
        self.file.write(pcm16(samples).T.contiguous().numpy().astype("<i2").tobytes())
        self.file.flush()
        self.num_samples += samples.shape[1]

    def finish(self) -> None:
        """Fill in the sizes. Raises ValueError above the size limit of WAV (4 GiB)."""
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
    """Convert float samples in [-1, 1] to int16, rounded and clipped."""
    return (samples.detach().cpu().float() * 32768).round().clamp(-32768, 32767).to(torch.int16)
