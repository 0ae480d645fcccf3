"""What an audio tokenizer's encoders and decoders read of its config."""

from __future__ import annotations

from typing import Any, Protocol


class AudioShape(Protocol):
    """The sizes of an audio tokenizer, as `AudioTokenizerConfig` (networks.py) has them."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of a channel."""
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
        """Samples of the STFT window."""
        ...

    @property
    def latent_dim(self) -> int:
        """Channels between encoder, quantizer and decoder."""
        ...

    def model_copy(self, *, update: Any = None) -> AudioShape:
        """The same with other values."""
        ...
