"""The part of an audio tokenizer's config that its encoders and decoders use."""

from __future__ import annotations

from typing import Any, Protocol


class AudioShape(Protocol):
    """Sizes of an audio tokenizer; `AudioTokenizerConfig` (networks.py) implements it."""

    @property
    def sample_rate(self) -> int:
        """Samples per second and channel."""
        ...

    @property
    def channels(self) -> int:
        """1: mono, 2: stereo."""
        ...

    @property
    def hop(self) -> int:
        """Samples per frame."""
        ...

    @property
    def window(self) -> int:
        """STFT window length in samples."""
        ...

    @property
    def latent_dim(self) -> int:
        """Channels between encoder, quantizer and decoder."""
        ...

    def model_copy(self, *, update: Any = None) -> AudioShape:
        """A copy with updated values."""
        ...
