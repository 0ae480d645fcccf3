"""The part of an image tokenizer's config that its encoders and decoders use."""

from __future__ import annotations

from typing import Any, Protocol


class ImageShape(Protocol):
    """Sizes of an image tokenizer; `ImageTokenizerConfig` (networks.py) implements it."""

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
        """Number of times that networks with a grid halve the resolution."""
        ...

    @property
    def features(self) -> int:
        """Channels at full resolution in `convolutional` networks."""
        ...

    @property
    def blocks(self) -> int:
        """Residual blocks per resolution in `convolutional` networks."""
        ...

    @property
    def latent_dim(self) -> int:
        """Channels between encoder, quantizer and decoder."""
        ...

    def model_copy(self, *, update: Any = None) -> ImageShape:
        """The same sizes, with some replaced."""
        ...
