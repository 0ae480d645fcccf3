"""Teachers of a tokenizer: frozen media features to compare (perceptual.py) or to predict (distillation.py).

A kind consists of a config, a module with `layers(media) -> features`, and one line in `TEACHERS`. Features are [B, C,
*places]: [B, C, T] for audio, [B, C, h, w] for images, at any resolution. Multi-channel audio is mixed down to mono.
Gradients reach the media, never the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, ConfigError
from ...tokenize.hub.tokenizer import TransformersTokenizer
from ...tokenize.spec import AudioGeometry, ImageGeometry
from ...tokenize.tokenizer import Tokenizer, load_tokenizer
from .codec_forward import encode_latents
from .stft import magnitudes, mel_filters

Geometry = AudioGeometry | ImageGeometry


class TokenizerTeacherConfig(Config):
    """The encoder of a frozen Tessera tokenizer."""

    kind: Literal["tokenizer"] = "tokenizer"
    path: str
    """Folder of the tokenizer."""
    layers: tuple[str, ...] = ()
    """Encoder modules whose outputs are the features, in order, as names with wildcards ("blocks.*"); empty: the
    latents only."""
    channels_last: bool = True
    """Channel axis of three-axis module outputs: True for [B, T, C], False for [B, C, T]."""


class MelTeacherConfig(Config):
    """Log-mel bands; needs no download."""

    kind: Literal["mel"] = "mel"
    window: PositiveInt = 1024
    """Window in samples; the hop is a quarter of it."""
    bands: PositiveInt = 80
    """Number of mel bands."""


class CepstrumTeacherConfig(Config):
    """Mel-frequency cepstral coefficients (MFCC)."""

    kind: Literal["mfcc"] = "mfcc"
    window: PositiveInt = 1024
    """Window in samples; the hop is a quarter of it."""
    bands: PositiveInt = 80
    """Number of mel bands."""
    coefficients: PositiveInt = 20
    """Number of coefficients per frame, at most `bands`."""


class GradientTeacherConfig(Config):
    """Histograms of oriented gradients of brightness in square cells (HOG, doi:10.1109/CVPR.2005.177)."""

    kind: Literal["hog"] = "hog"
    cell: PositiveInt = 8
    """Side of a cell in pixels."""
    directions: PositiveInt = 9
    """Number of gradient directions in a histogram, spread over half a turn."""


class ModuleTeacherConfig(Config):
    """A torch module passed to `train_tokenizer` in Python: media [B, N] or [B, C, height, width] -> features [B, C,
    *places], or a list of these."""

    kind: Literal["module"] = "module"
    name: str
    """Key of the module in the argument `teachers` of `train_tokenizer`."""


TeacherConfig = Annotated[
    TokenizerTeacherConfig | MelTeacherConfig | CepstrumTeacherConfig | GradientTeacherConfig | ModuleTeacherConfig,
    Field(discriminator="kind"),
]


def load_teacher(path: str, geometry: Geometry, where: str) -> Tokenizer:
    """Load a frozen tokenizer for the same media; ConfigError if it does not exist or is for other media."""
    try:
        tokenizer = load_tokenizer(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: {error}") from None
    other = tokenizer.spec.geometry
    same = ("sample_rate", "channels") if geometry.kind == "audio" else ("height", "width", "channels")
    for name in ("kind", *same):
        # Multi-channel audio is mixed down for teachers.
        wanted = 1 if name == "channels" and geometry.kind == "audio" else getattr(geometry, name)
        if getattr(other, name, None) != wanted:
            raise ConfigError(
                f"{where}: {path} is a tokenizer of {name} {getattr(other, name, None)}, {wanted} is needed here; "
                "choose another teacher"
            )
    return tokenizer


class TokenizerTeacher(nn.Module):
    """See TokenizerTeacherConfig."""

    def __init__(self, config: TokenizerTeacherConfig, geometry: Geometry, given: Mapping[str, nn.Module], where: str):
        super().__init__()
        tokenizer = load_teacher(config.path, geometry, f"{where}.path")
        if isinstance(tokenizer, TransformersTokenizer):
            raise ConfigError(
                f"{where}.path: {config.path} is computed by transformers, whose layers are not named here; choose "
                "another teacher"
            )
        self.config, self.geometry = config, tokenizer.spec.geometry
        self.net = tokenizer.net
        named = dict(self.net.encoder.named_modules())
        self.taken = [name for pattern in config.layers for name in named if name and fnmatchcase(name, pattern)]
        for pattern in config.layers:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ConfigError(
                    f"{where}.layers: the encoder of {config.path} has no part '{pattern}'; it has, for instance, "
                    f"{', '.join(list(named)[1:6])}"
                )

    def layers(self, media: Tensor) -> list[Tensor]:
        """List of features [B, C, *places], one per layer."""
        seen: dict[str, Tensor] = {}
        hooks = [
            self.net.encoder.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: output})
            )
            for name in self.taken
        ]
        try:
            latents = self._latents(media)
        finally:
            for hook in hooks:
                hook.remove()
        if not self.taken:
            return [latents]
        found = [seen[name] for name in self.taken]
        return [x.transpose(1, 2) if x.dim() == 3 and self.config.channels_last else x for x in found]

    def _latents(self, media: Tensor) -> Tensor:
        geometry = self.geometry
        if geometry.kind == "picture":
            latents = encode_latents(self.net, media, None).transpose(1, 2)
            grid = (geometry.rows, geometry.columns)
            return latents.unflatten(2, grid) if latents.shape[2] == grid[0] * grid[1] else latents
        hop = geometry.samples_per_frame
        whole = F.pad(media, (0, -media.shape[1] % hop))
        mask = torch.ones(len(media), whole.shape[1] // hop, dtype=torch.bool, device=media.device)
        return encode_latents(self.net, whole, mask).transpose(1, 2)


class MelTeacher(nn.Module):
    """See MelTeacherConfig and CepstrumTeacherConfig."""

    filters: Tensor
    cosines: Tensor | None

    def __init__(
        self,
        config: MelTeacherConfig | CepstrumTeacherConfig,
        geometry: Geometry,
        given: Mapping[str, nn.Module],
        where: str,
    ):
        super().__init__()
        self.config = config
        assert isinstance(geometry, AudioGeometry)
        self.register_buffer("filters", mel_filters(geometry.sample_rate, config.window, config.bands))
        cosines = None
        if config.kind == "mfcc":
            if config.coefficients > config.bands:
                raise ConfigError(
                    f"{where}.coefficients: {config.coefficients} cannot come from {config.bands} bands; use fewer"
                )
            cosines = cosine_transform(config.bands, config.coefficients)
        self.register_buffer("cosines", cosines)

    def layers(self, media: Tensor) -> list[Tensor]:
        """List of features [B, C, *places], one per layer."""
        mel = torch.log(magnitudes(media.float(), self.config.window) @ self.filters + 1e-4)
        return [(mel if self.cosines is None else mel @ self.cosines).transpose(1, 2)]


class GradientTeacher(nn.Module):
    """See GradientTeacherConfig. Each gradient votes for its two nearest directions, linearly weighted."""

    def __init__(self, config: GradientTeacherConfig, geometry: Geometry, given: Mapping[str, nn.Module], where: str):
        super().__init__()
        self.config = config
        assert isinstance(geometry, ImageGeometry)
        if geometry.height < config.cell or geometry.width < config.cell:
            raise ConfigError(
                f"{where}.cell: {config.cell} pixels are larger than an image of {geometry.height} "
                f"x {geometry.width}; use a smaller cell"
            )

    def layers(self, media: Tensor) -> list[Tensor]:
        """List of features [B, C, *places], one per layer."""
        grey = F.pad(media.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
        down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
        length = (across.square() + down.square() + 1e-8).sqrt()
        count = self.config.directions
        # Orientations have no sign: half a turn is the full range.
        angle = torch.atan2(down, across + 1e-8 * (across == 0)) / torch.pi * count
        places = torch.arange(count, device=media.device).view(1, count, 1, 1)
        away = (angle - places + count / 2) % count - count / 2
        votes = length * F.relu(1 - away.abs())
        histogram = F.avg_pool2d(votes, self.config.cell, ceil_mode=True)
        return [histogram / (histogram.square().sum(1, keepdim=True) + 1e-4).sqrt()]


class ModuleTeacher(nn.Module):
    """See ModuleTeacherConfig."""

    def __init__(self, config: ModuleTeacherConfig, geometry: Geometry, given: Mapping[str, nn.Module], where: str):
        super().__init__()
        if config.name not in given:
            known = ", ".join(sorted(given)) or "none"
            raise ConfigError(
                f"{where}.name: no module '{config.name}' was given (given: {known}); call "
                f"train_tokenizer(config, out, teachers={{'{config.name}': module}})"
            )
        self.module = given[config.name]

    def layers(self, media: Tensor) -> list[Tensor]:
        """List of features [B, C, *places], one per layer."""
        found = self.module(media)
        return [found] if isinstance(found, Tensor) else list(found)


TEACHERS = {
    "tokenizer": (TokenizerTeacher, ("audio", "picture")),
    "mel": (MelTeacher, ("audio",)),
    "mfcc": (MelTeacher, ("audio",)),
    "hog": (GradientTeacher, ("picture",)),
    "module": (ModuleTeacher, ("audio", "picture")),
}
"""Kind -> teacher class and supported media."""

Teacher = TokenizerTeacher | MelTeacher | GradientTeacher | ModuleTeacher


def make_teacher(
    config: TeacherConfig,
    geometry: Geometry,
    given: Mapping[str, nn.Module],
    where: str,
) -> Teacher:
    """Build the frozen teacher of a config, for media of `geometry`.

    Raises:
        ConfigError: the teacher does not fit; the message begins with `where`.
    """
    made, media = TEACHERS[config.kind]
    if geometry.kind not in media:
        raise ConfigError(
            f"{where}.kind: '{config.kind}' is a teacher for {media[0]}, this tokenizer is for {geometry.kind}"
        )
    return made(config, geometry, given, where).eval().requires_grad_(False)


@torch.no_grad()
def feature_size(teacher: Teacher, geometry: Geometry, layer: int, where: str) -> int:
    """Channels of a teacher layer, measured on one second of silence or a gray image.

    Raises ConfigError if the layer does not exist.
    """
    if geometry.kind == "audio":
        media = torch.zeros(1, -(-geometry.sample_rate // geometry.samples_per_frame) * geometry.samples_per_frame)
    else:
        media = torch.zeros(1, geometry.channels, geometry.height, geometry.width)
    layers = teacher.layers(media)
    if not -len(layers) <= layer < len(layers):
        raise ConfigError(f"{where}.layer: there is no layer {layer}; the teacher has {len(layers)}")
    return layers[layer].shape[1]


def cosine_transform(size: int, count: int) -> Tensor:
    """The first `count` rows of the orthonormal DCT-II of vectors of `size`, as a matrix [size, count]."""
    place = torch.arange(size, dtype=torch.float64)[:, None]
    order = torch.arange(count, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (place + 0.5) * order) * (2 / size) ** 0.5
    matrix[:, 0] /= 2**0.5
    return matrix.float()


def fit_places(features: Tensor, places: Sequence[int]) -> Tensor:
    """Resample features [B, C, *] to `places` by linear interpolation (averaging, to at most half) -> [B, prod, C]."""
    if features.dim() - 2 != len(places):
        raise ValueError(
            f"the teacher's features have {features.dim() - 2} axes, the tokens {len(places)} ({list(places)}); "
            "choose another teacher"
        )
    if tuple(features.shape[2:]) != tuple(places):
        if all(a >= 2 * b for a, b in zip(features.shape[2:], places, strict=True)):
            if len(places) == 1:
                features = F.adaptive_avg_pool1d(features, places[0])
            else:
                features = F.adaptive_avg_pool2d(features, (places[0], places[1]))
        else:
            mode = "linear" if len(places) == 1 else "bilinear"
            features = F.interpolate(features, size=tuple(places), mode=mode, align_corners=False)
    return features.flatten(2).transpose(1, 2)
