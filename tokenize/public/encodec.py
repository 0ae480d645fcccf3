"""EnCodec in the layout of transformers (`EncodecModel`): config.json and model.safetensors, or pytorch_model.bin.

The codecs at 24 kHz, 32 kHz (the one of MusicGen) and 48 kHz (stereo, in normalized segments). The reflection at the
signal's ends, which files differ in, is read from the config. Licences: code MIT; weights of audiocraft CC-BY-NC 4.0.
Source: EnCodec, arXiv:2210.13438; tensor names, config keys and class defaults of transformers 5 (Apache-2.0).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from ...configs.files import write_json, write_safetensors
from ...configs.schema import check_config
from ...configs.tensor_checks import WeightsError
from ..audio.networks import AudioTokenizerConfig
from ..audio.seanet import SEANetConfig
from ..base import Tokenizer
from ..quantizers.combinators.residual import ResidualConfig
from ..quantizers.vq import VQConfig
from .building import (
    WeightNorm,
    codebook_terms,
    count_levels,
    found_weight_norm,
    parametrized,
    plain_weight,
    public_tensors,
    read_tokenizer,
    tokenizer_shapes,
)
from .folder import PublicFolder
from .layout import check_tokenizer_layout
from .seanet_names import TRANSFORMERS, SEANetNames, seanet_terms
from .tensor_map import CannotWrite, Source, TensorMap, Unused

DEFAULTS: dict[str, Any] = {
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
    "sampling_rate": 24000,
    "audio_channels": 1,
    "normalize": False,
    "chunk_length_s": None,
    "overlap": None,
    "hidden_size": 128,
    "num_filters": 32,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 5, 4, 2],
    "norm_type": "weight_norm",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "reflect",
    "compress": 2,
    "num_lstm_layers": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": 1024,
    "codebook_dim": None,
    "use_conv_shortcut": True,
}
"""Class defaults of EncodecConfig."""
PADDINGS = {"reflect": "reflect", "constant": "zeros", "zero": "zeros", "replicate": "replicate"}
NORMS = {"weight_norm": "weight", "time_group_norm": "time_group"}
BOOK = "quantizer.layers.{}.codebook."
"""Prefix of a level's codebook."""


def is_encodec(folder: PublicFolder) -> bool:
    """Whether config.json describes an EncodecModel."""
    return folder.config.get("model_type") == "encodec"


def read_encodec(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read an EnCodec.

    Args:
        codebooks: number of codebooks, coarse first; None: all in the file.
    Raises:
        ValueError: settings that are not supported, by name. WeightsError: tensors missing, left over or misshapen.
    """
    return read_encodec_part(folder, codebooks)


def read_encodec_part(
    folder: PublicFolder, codebooks: int | None = None, within: str | None = None, prefix: str = ""
) -> Tokenizer:
    """As `read_encodec`, of a codec inside another model: key of its config, and prefix of its tensors' names."""
    where = str(folder.config_path)
    checkpoint = folder.checkpoint.within(prefix)
    before, after = f"{prefix}{BOOK}embed".split("{}")
    held = count_levels(checkpoint.shapes, before, after)
    if not held:
        raise WeightsError(f"{folder.path}: tensor '{before}0{after}' is missing; this is no EnCodec")
    if codebooks is not None and not 1 <= codebooks <= held:
        raise ValueError(f"{folder.path}: {codebooks} codebooks were asked for, the file has {held}")
    config = encodec_config(folder.values(DEFAULTS, within), codebooks or held, where)
    tensor_map = encodec_tensor_map(config, found_weight_norm(checkpoint), held, prefix)
    return read_tokenizer(config, tensor_map, checkpoint)


def seanet_settings(values: dict[str, Any], ratios: list[int]) -> dict[str, Any]:
    """What EnCodec and Mimi set alike in their SEANet: our config's keys from theirs."""
    return {
        "kind": "seanet",
        "channels": values["num_filters"],
        "ratios": ratios,
        "kernel": values["kernel_size"],
        "last_kernel": values["last_kernel_size"],
        "residual_kernel": values["residual_kernel_size"],
        "residual_layers": values["num_residual_layers"],
        "dilation_growth": values["dilation_growth_rate"],
        "compress": values["compress"],
        "shortcut": "convolution" if values["use_conv_shortcut"] else "identity",
        "padding": PADDINGS[values["pad_mode"]],
    }


def encodec_config(values: dict[str, Any], levels: int, where: str = "config.json") -> AudioTokenizerConfig:
    """Our config of an EnCodec with these settings (keys of EncodecConfig) and number of codebooks."""
    supported = {"norm_type": NORMS, "pad_mode": PADDINGS}
    for key, allowed in supported.items():
        if values[key] not in allowed:
            known = " or ".join(repr(one) for one in allowed)
            raise ValueError(f"{where}: {key} is {values[key]!r}; only {known} is supported")
    if values["codebook_dim"] not in (None, values["hidden_size"]):
        raise ValueError(f"{where}: codebook_dim is {values['codebook_dim']}, but hidden_size {values['hidden_size']}")
    part = seanet_settings(values, values["upsampling_ratios"]) | {
        "lstm_layers": values["num_lstm_layers"],
        "causal": values["use_causal_conv"],
        "norm": NORMS[values["norm_type"]],
        "trim_right": values["trim_right_ratio"],
    }
    codebook = {"kind": "vq", "size": values["codebook_size"], "commitment": 1.0}
    described = {
        "kind": "audio",
        "name": f"encodec-{round(values['sampling_rate'] / 1000)}khz",
        "sample_rate": values["sampling_rate"],
        "channels": values["audio_channels"],
        "hop": math.prod(values["upsampling_ratios"]),
        "latent_dim": values["hidden_size"],
        "encoder": part | {"last_frame": "padded"},
        "decoder": part,
        "quantizer": {"kind": "residual", "levels": levels, "quantizer": codebook},
        "segments": _segments(values, where),
    }
    return check_config(described, AudioTokenizerConfig, where)


def _segments(values: dict[str, Any], where: str) -> dict[str, Any] | None:
    seconds, overlap, rate = values["chunk_length_s"], values["overlap"], values["sampling_rate"]
    if seconds is None:
        for key, plain in (("normalize", False), ("norm_type", "weight_norm")):
            if values[key] != plain:
                raise ValueError(f"{where}: {key} {values[key]!r} is supported only with chunk_length_s, which is null")
        return None
    for key, value, most in (("chunk_length_s", seconds, 600), ("overlap", overlap, 1)):
        if type(value) not in (int, float) or not 0 <= value < most:
            raise ValueError(f"{where}: {key} must be a number from 0 to {most:g}, found {str(value)[:80]!r}")
    samples, hop = int(seconds * rate), math.prod(values["upsampling_ratios"])
    if not samples or samples % hop:
        raise ValueError(f"{where}: chunk_length_s {seconds} is {samples} samples, which is no multiple of {hop}")
    stride = max(1, int((1.0 - overlap) * samples))
    return {"frames": samples // hop, "stride": stride, "normalize": values["normalize"]}


def encodec_tensor_map(
    config: AudioTokenizerConfig,
    weight: WeightNorm = parametrized,
    levels: int | None = None,
    prefix: str = "",
    names: SEANetNames = TRANSFORMERS,
    book: str = BOOK,
) -> TensorMap:
    """The map of an EnCodec.

    Args:
        weight: how the file spells weight norm.
        levels: codebooks in the file, if more than the config's.
        prefix: of all names in the file, for a codec inside another model.
        names, book: names of the networks' layers, and the prefix of a level's codebook.
    """
    encoder, decoder, quantizer = config.encoder, config.decoder, config.quantizer
    assert isinstance(encoder, SEANetConfig) and isinstance(decoder, SEANetConfig)
    assert isinstance(quantizer, ResidualConfig) and isinstance(quantizer.quantizer, VQConfig)

    weight = weight if encoder.norm == "weight" else plain_weight
    terms = seanet_terms(tokenizer_shapes(config), encoder, decoder, weight, names, prefix)
    unused: dict[str, Unused] = {}
    size, dim = quantizer.quantizer.size, config.latent_dim
    for k in range(levels or quantizer.levels):
        theirs = prefix + book.format(k)
        if k < quantizer.levels:
            terms |= codebook_terms(f"quantizer.levels.{k}.codebook", Source(f"{theirs}embed"))
        else:
            unused[f"{theirs}embed"] = Unused((size, dim))
        unused |= {
            f"{theirs}inited": Unused((1,), 1.0),
            f"{theirs}cluster_size": Unused((size,), 1.0),
            f"{theirs}embed_avg": Unused((size, dim), f"{theirs}embed"),
        }
    return TensorMap(terms, unused)


def write_encodec(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as an `EncodecModel` folder.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    described, tensors = encodec_part(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", described)


def encodec_part(tokenizer: Tokenizer, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of an `EncodecModel` and its tensors, their names with a prefix; raises as `write_encodec`."""
    config = tokenizer.config
    values = describe_encodec(config)
    assert isinstance(config, AudioTokenizerConfig) and isinstance(config.quantizer, ResidualConfig)
    try:
        expected = encodec_config(values, config.quantizer.levels)
    except ValueError as error:
        raise CannotWrite(str(error)) from None
    check_tokenizer_layout("EnCodec", config, expected)
    described = {"architectures": ["EncodecModel"], "model_type": "encodec"} | values
    return described, public_tensors(tokenizer, encodec_tensor_map(config, prefix=prefix))


def describe_encodec(config: Any) -> dict[str, Any]:
    """Settings of a tokenizer by the keys of EncodecConfig; CannotWrite if the tokenizer is of another kind."""
    encoder, quantizer = seanet_encoder("EnCodec", config), config.quantizer
    if not isinstance(quantizer, ResidualConfig) or not isinstance(quantizer.quantizer, VQConfig):
        raise CannotWrite(f"EnCodec's layout holds a residual quantizer of kind vq, found '{quantizer.kind}'")
    return {
        "target_bandwidths": [_bandwidth(config, quantizer.quantizer.size, 1 + k) for k in range(quantizer.levels)],
        "sampling_rate": config.sample_rate,
        "audio_channels": config.channels,
        **_chunks(config),
        "hidden_size": config.latent_dim,
        "num_filters": encoder.channels,
        "num_residual_layers": encoder.residual_layers,
        "upsampling_ratios": list(encoder.ratios),
        "norm_type": "time_group_norm" if encoder.norm == "time_group" else "weight_norm",
        "kernel_size": encoder.kernel,
        "last_kernel_size": encoder.last_kernel,
        "residual_kernel_size": encoder.residual_kernel,
        "dilation_growth_rate": encoder.dilation_growth,
        "use_causal_conv": encoder.causal,
        "pad_mode": {ours: theirs for theirs, ours in PADDINGS.items() if theirs != "zero"}[encoder.padding],
        "compress": encoder.compress,
        "num_lstm_layers": encoder.lstm_layers,
        "trim_right_ratio": encoder.trim_right,
        "codebook_size": quantizer.quantizer.size,
        "codebook_dim": config.latent_dim,
        "use_conv_shortcut": encoder.shortcut == "convolution",
    }


def seanet_encoder(layout: str, config: Any) -> SEANetConfig:
    """The encoder's config; CannotWrite if it is not an audio tokenizer with an encoder and decoder of kind seanet."""
    if isinstance(config, AudioTokenizerConfig):
        encoder, decoder = config.encoder, config.decoder
        if isinstance(encoder, SEANetConfig) and isinstance(decoder, SEANetConfig):
            return encoder
    raise CannotWrite(f"{layout}'s layout holds audio tokenizers with an encoder and decoder of kind seanet")


def _chunks(config: AudioTokenizerConfig) -> dict[str, Any]:
    """Segments by the keys of EncodecConfig, which derives samples from seconds and fractions by truncation."""
    segments = config.segments
    if segments is None:
        return {"normalize": False, "chunk_length_s": None, "overlap": None}
    samples = segments.frames * config.hop
    seconds, overlap = samples / config.sample_rate, round(1 - segments.stride / samples, 6)
    if int((1.0 - overlap) * samples) != segments.stride:
        overlap = 1 - (segments.stride + 0.5) / samples
    if int(seconds * config.sample_rate) != samples:
        seconds = (samples + 0.5) / config.sample_rate
    return {"normalize": segments.normalize, "chunk_length_s": seconds, "overlap": max(0.0, overlap)}


def _bandwidth(config: AudioTokenizerConfig, size: int, levels: int) -> float:
    """Kilobits a second from which transformers derives this number of codebooks: bandwidth // bits of a level."""
    bits = math.ceil(config.sample_rate / config.hop) * math.ceil(math.log2(size))
    bandwidth = bits * levels / 1000
    return bandwidth if 1000 * bandwidth // bits == levels else math.nextafter(bandwidth, math.inf)
