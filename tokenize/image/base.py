"""What an image tokenizer's encoders and decoders read of its config."""

from __future__ import annotations

from typing import Protocol


class ImageShape(Protocol):
    """The sizes of an image tokenizer, as `ImageTokenizerConfig` (networks.py) has them."""

    @property
    def height(self) -> int:
        """Pixels."""
        ...

    @property
    def width(self) -> int:
        """Pixels."""
        ...

    @property
    def channels(self) -> int:
        """Color channels."""
        ...

    @property
    def downsamplings(self) -> int:
        """How often parts with a grid halve the size."""
        ...

    @property
    def features(self) -> int:
        """Channels at full size of `convolutional` parts."""
        ...

    @property
    def blocks(self) -> int:
        """Residual blocks at each size of `convolutional` parts."""
        ...

    @property
    def latent_dim(self) -> int:
        """Channels between encoder, quantizer and decoder."""
        ...
