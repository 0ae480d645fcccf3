"""A codec class of transformers as a network: samples of one recording to codes and back.

    samples [n] ──► preprocessor, if there is one ──► model.encode ──► audio_codes [1, K, T]
    codes [K, T] ──► model.decode ──► audio_values [1, 1, n]

The class is looked up by `model_type` in the package's own tables; no code of a folder is run and nothing is
downloaded. Source: the tables of transformers 5 (Apache-2.0), `AutoModelForAudioTokenization` and `AutoModel`.
"""

from __future__ import annotations

import inspect
import math
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from ...configs.printable import one_line
from ..base import exact_float32
from .config import TransformersCodecConfig
from .package import import_transformers

RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")
"""Names of the sample rate of decoded audio in the configs of transformers."""
USUAL_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError, AssertionError)
"""What the classes raise for input or settings that they cannot use."""


def codec_class(model_type: str) -> tuple[Any, Any]:
    """Classes of the config and of the model of a codec.

    Raises:
        ImportError: transformers is not installed. ValueError: it has no such codec, or one without codes.
    """
    transformers = import_transformers(f"model_type '{model_type}'")
    if model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(f"transformers {transformers.__version__} has no model_type '{model_type}'")
    config_class = transformers.CONFIG_MAPPING[model_type]
    tables = (getattr(transformers, "MODEL_FOR_AUDIO_TOKENIZATION_MAPPING", {}), transformers.MODEL_MAPPING)
    for table in tables:
        found = table.get(config_class, None)
        if found is not None and hasattr(found, "encode") and hasattr(found, "decode"):
            if "input_values" not in _arguments(found.encode) or "audio_codes" not in _arguments(found.decode):
                raise ValueError(f"model_type '{model_type}': {found.__name__} has no codes, only continuous latents")
            return config_class, found
    raise ValueError(f"model_type '{model_type}' is no codec in transformers {transformers.__version__}")


def make_hub_config(settings: dict[str, Any]) -> Any:
    """The class's config object; ValueError: a setting that it refuses."""
    model_type = str(settings.get("model_type"))
    config_class, _ = codec_class(model_type)
    try:
        return config_class.from_dict(deepcopy(settings))
    except Exception as error:  # StrictDataclassError and others
        raise ValueError(f"config of '{model_type}': {one_line(error)[:200]}") from None


class HubNet(nn.Module):
    """A codec of transformers, with its preprocessor."""

    def __init__(self, config: TransformersCodecConfig, read_files: bool = False):
        """Random weights. read_files: ignored, there are none."""
        super().__init__()
        _, model_class = codec_class(str(config.settings.get("model_type")))
        self._set(_made(model_class, make_hub_config(config.settings)), config.preprocessor)

    @classmethod
    def around(cls, model: nn.Module, preprocessor: dict[str, Any] | None) -> HubNet:
        """With a model that exists."""
        net = cls.__new__(cls)
        nn.Module.__init__(net)
        net._set(model, preprocessor)
        return net

    def _set(self, model: Any, preprocessor: dict[str, Any] | None) -> None:
        self.model = model
        self.model_type = str(model.config.model_type)
        self.takes = _arguments(model.encode)
        self.extractor = None if preprocessor is None else _make_extractor(preprocessor)
        needed = [name for name, one in self.takes.items() if one.default is one.empty and one.kind not in (2, 4)]
        if self.extractor is None and needed != ["input_values"]:
            raise ValueError(
                f"'{self.model_type}' encodes {' and '.join(needed)}, which its preprocessor makes, but "
                "preprocessor_config.json is missing; copy it from the public model"
            )

    @property
    def sample_rate(self) -> int:
        """Of decoded audio, Hz; ValueError: the config has none."""
        return self._rate(RATES)

    @property
    def encoder_rate(self) -> int:
        """Of the audio that is encoded, Hz."""
        return self._rate(("input_sampling_rate", *RATES))

    def _rate(self, names: tuple[str, ...]) -> int:
        found = next((getattr(self.model.config, name) for name in names if hasattr(self.model.config, name)), None)
        if type(found) is not int or not 1 <= found <= 1 << 20:
            raise ValueError(f"config of '{self.model_type}': the sample rate must be in Hz, found {str(found)[:80]}")
        return found

    @property
    def codebook_size(self) -> int:
        """Codes of each codebook as the config states it; ValueError: it does not."""
        found = getattr(self.model.config, "codebook_size", None)
        levels = getattr(self.model.config, "quantization_levels", None)
        if found is None and levels:
            found = math.prod(levels)
        if type(found) is not int or not 1 <= found <= 1 << 32:
            raise ValueError(f"config of '{self.model_type}': codebook_size must be a number, found {str(found)[:80]}")
        return found

    def encode(self, samples: Tensor) -> Tensor:
        """Samples [n] at `encoder_rate` -> codes [K, T] long, as the class makes them.

        Raises:
            ValueError: the class cannot encode them; says why.
        """
        inputs = {"input_values": samples[None, None]}
        try:
            with exact_float32():
                if self.extractor is not None:
                    made = self.extractor(samples.cpu().numpy(), sampling_rate=self.encoder_rate, return_tensors="pt")
                    inputs = {name: value.to(samples.device) for name, value in made.items() if name in self.takes}
                found = self.model.encode(**inputs)
        except USUAL_ERRORS as error:
            raise ValueError(
                f"'{self.model_type}' cannot encode {len(samples)} samples ({one_line(error)[:150]})"
            ) from None
        codes = found if isinstance(found, Tensor) else getattr(found, "audio_codes", None)
        if not isinstance(codes, Tensor) or codes.dim() != 3 or len(codes) != 1 or codes.is_floating_point():
            shape = list(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise ValueError(f"'{self.model_type}' must encode to codes [1, K, T], found {shape}")
        return codes[0].long()

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [K, T] -> samples [1, n] float32; ValueError: the class cannot decode them."""
        try:
            with exact_float32():
                found = self.model.decode(audio_codes=codes[None])
        except USUAL_ERRORS as error:
            raise ValueError(
                f"'{self.model_type}' cannot decode codes {list(codes.shape)} ({one_line(error)[:150]})"
            ) from None
        samples = found if isinstance(found, Tensor) else getattr(found, "audio_values", None)
        if isinstance(samples, Tensor) and samples.dim() == 2:
            samples = samples[:, None]
        if not isinstance(samples, Tensor) or samples.dim() != 3 or samples.shape[:2] != (1, 1):
            shape = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
            raise ValueError(f"'{self.model_type}' must decode to mono audio [1, 1, n], found {shape}")
        return samples[0].float()


def _arguments(function: Any) -> dict[str, inspect.Parameter]:
    found = inspect.signature(function).parameters
    return {name: one for name, one in found.items() if name != "self"}


def _made(model_class: Any, hub_config: Any) -> Any:
    try:
        return model_class(hub_config)
    except ImportError as error:  # another package that this class needs
        raise ImportError(one_line(error)[:300]) from None
    except USUAL_ERRORS as error:
        if type(error).__name__ == "BudgetError":
            raise
        raise ValueError(f"config of '{hub_config.model_type}': {one_line(error)[:200]}") from None


def _make_extractor(settings: dict[str, Any]) -> Any:
    transformers = import_transformers("the preprocessor of this codec")
    name = settings.get("feature_extractor_type")
    known = isinstance(name, str) and name.isidentifier() and name.endswith("FeatureExtractor")
    if not known or not hasattr(transformers, str(name)):
        raise ValueError(
            f"preprocessor_config.json: feature_extractor_type {str(name)[:80]!r} is none of transformers "
            f"{transformers.__version__}"
        )
    try:
        return getattr(transformers, str(name)).from_dict(deepcopy(settings))
    except ImportError as error:  # torchaudio, for some
        raise ImportError(one_line(error)[:300]) from None
    except USUAL_ERRORS as error:
        raise ValueError(f"preprocessor_config.json: {one_line(error)[:200]}") from None
