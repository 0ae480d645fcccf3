"""Audio and image files: the interface of `media_file`, `audio_io` and `image_io`.

Files are probed before decoding: a few kilobytes of FLAC or PNG can expand to gigabytes of samples or pixels.
"""

from __future__ import annotations

from .audio_io import read_audio, write_audio
from .image_io import Fit, bytes_to_image, check_scale, read_image, write_image
from .media_file import (
    AUDIO_EXTENSIONS,
    AUDIO_FORMATS,
    DEFAULT_LIMITS,
    IMAGE_FORMATS,
    MEDIA_EXTENSIONS,
    MediaError,
    MediaLimits,
    Notes,
    media_kind,
    open_regular,
    print_notes,
)

__all__ = [
    "AUDIO_EXTENSIONS",
    "AUDIO_FORMATS",
    "DEFAULT_LIMITS",
    "IMAGE_FORMATS",
    "MEDIA_EXTENSIONS",
    "Fit",
    "MediaError",
    "MediaLimits",
    "Notes",
    "bytes_to_image",
    "check_scale",
    "media_kind",
    "open_regular",
    "print_notes",
    "read_audio",
    "read_image",
    "write_audio",
    "write_image",
]
