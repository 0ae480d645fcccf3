"""Config of a codec that transformers computes: its own config.json, and what was measured of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from ...configs.names import ShownName
from ...configs.schema import FingerprintedConfig
from ..spec import AudioGeometry

NOT_STORED = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Keys of config.json and preprocessor_config.json that change no code: where it came from, and how it was stored."""
REFUSED = (
    *("auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation"),
    *("_attn_implementation_internal", "experts_implementation", "_experts_implementation", "use_kernels"),
)
"""Keys that name code, or kernels that transformers would download."""
MOST_FRAMES = 8
"""Largest number of frames that a codec may need at least."""


def check_settings(settings: Any, where: str) -> None:
    """Raise ValueError if settings, at any depth, have a key of `REFUSED` with a value."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key in REFUSED and value is not None:
                raise ValueError(f"{where}: has '{key}', which can name code or other files; remove it")
            check_settings(value, where)
    elif isinstance(settings, list):
        for value in settings:
            check_settings(value, where)


class TransformersCodecConfig(FingerprintedConfig):
    """A codec of transformers. All but the first four settings are measured when it is first read (probe.py)."""

    kind: Literal["transformers"] = "transformers"
    name: ShownName
    settings: dict[str, Any]
    """Its config.json, with model_type."""
    preprocessor: dict[str, Any] | None = None
    """Its preprocessor_config.json; None: the class reads samples."""
    codebooks: PositiveInt
    """Codebooks in use, coarse first."""
    all_codebooks: PositiveInt
    """Codebooks that the class encodes."""
    codebook_size: Annotated[int, Field(ge=1, le=1 << 32)]
    """Codes of each codebook."""
    sample_rate: Annotated[int, Field(ge=1, le=1 << 20)]
    """Of the tokenizer, and of decoded audio, Hz."""
    encoder_rate: Annotated[int, Field(ge=1, le=1 << 20)]
    """Of the audio that the class encodes, Hz; audio is resampled to it."""
    hop: Annotated[int, Field(ge=1, le=1 << 20)]
    """Samples per frame."""
    lost: int = 0
    """Samples by which decoded audio is shorter than its frames."""
    whole_frames: bool
    """Whether audio is completed with silence to whole frames: the class loses an incomplete last frame."""
    shortest: Annotated[int, Field(ge=1, le=MOST_FRAMES)] = 1
    """Frames that the class needs at least; shorter audio is completed with silence."""

    @field_validator("settings", "preprocessor")
    @classmethod
    def _is_data_alone(cls, value: Any) -> Any:
        check_settings(value, "tokenizer")
        return value

    @property
    def channels(self) -> int:
        """Media channels: 1."""
        return 1

    @property
    def segments(self) -> None:
        """There are none."""
        return None

    @property
    def geometry(self) -> AudioGeometry:
        """Geometry of the code frames."""
        return AudioGeometry(sample_rate=self.sample_rate, samples_per_frame=self.hop)
