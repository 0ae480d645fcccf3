"""EnCodec in the layout of transformers (`EncodecModel`): config.json and model.safetensors, or pytorch_model.bin.

The codecs at 24 kHz and 32 kHz (the one of MusicGen). The reflection at the signal's ends, which files differ in, is
read from the config. Licences: code MIT; weights of audiocraft CC-BY-NC 4.0.
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
    public_tensors,
    read_tokenizer,
    tokenizer_shapes,
)
from .folder import PublicFolder
from .layout import check_tokenizer_layout
from .seanet_names import TRANSFORMERS, seanet_terms
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
LEVEL = "quantizer.layers."
FIRST = ".codebook.embed"


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
    held = count_levels(checkpoint.shapes, f"{prefix}{LEVEL}", FIRST)
    if not held:
        raise WeightsError(f"{folder.path}: tensor '{prefix}{LEVEL}0{FIRST}' is missing; this is no EnCodec")
    if codebooks is not None and not 1 <= codebooks <= held:
        raise ValueError(f"{folder.path}: {codebooks} codebooks were asked for, the file has {held}")
    config = encodec_config(folder.values(DEFAULTS, within), codebooks or held, where)
    tensor_map = encodec_tensor_map(config, found_weight_norm(checkpoint), held, prefix)
    return read_tokenizer(config, tensor_map, checkpoint)


def encodec_config(values: dict[str, Any], levels: int, where: str = "config.json") -> AudioTokenizerConfig:
    """Our config of an EnCodec with these settings and number of codebooks."""
    supported = {"norm_type": ("weight_norm",), "normalize": (False,), "pad_mode": tuple(PADDINGS)}
    for key, allowed in supported.items():
        if values[key] not in allowed:
            known = " or ".join(repr(one) for one in allowed)
            raise ValueError(f"{where}: {key} is {values[key]!r}; only {known} is supported")
    if values["codebook_dim"] not in (None, values["hidden_size"]):
        raise ValueError(f"{where}: codebook_dim is {values['codebook_dim']}, but hidden_size {values['hidden_size']}")
    part: dict[str, Any] = {
        "kind": "seanet",
        "channels": values["num_filters"],
        "ratios": values["upsampling_ratios"],
        "kernel": values["kernel_size"],
        "last_kernel": values["last_kernel_size"],
        "residual_kernel": values["residual_kernel_size"],
        "residual_layers": values["num_residual_layers"],
        "dilation_growth": values["dilation_growth_rate"],
        "compress": values["compress"],
        "shortcut": "convolution" if values["use_conv_shortcut"] else "identity",
        "lstm_layers": values["num_lstm_layers"],
        "causal": values["use_causal_conv"],
        "padding": PADDINGS[values["pad_mode"]],
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
        "encoder": part,
        "decoder": part,
        "quantizer": {"kind": "residual", "levels": levels, "quantizer": codebook},
    }
    return check_config(described, AudioTokenizerConfig, where)


def encodec_tensor_map(
    config: AudioTokenizerConfig, weight: WeightNorm = parametrized, levels: int | None = None, prefix: str = ""
) -> TensorMap:
    """The map of an EnCodec. levels: codebooks in the file, if more than the config's; prefix: of their names."""
    encoder, decoder, quantizer = config.encoder, config.decoder, config.quantizer
    assert isinstance(encoder, SEANetConfig) and isinstance(decoder, SEANetConfig)
    assert isinstance(quantizer, ResidualConfig) and isinstance(quantizer.quantizer, VQConfig)

    terms = seanet_terms(tokenizer_shapes(config), encoder, decoder, weight, TRANSFORMERS, prefix)
    unused: dict[str, Unused] = {}
    size, dim = quantizer.quantizer.size, config.latent_dim
    for k in range(levels or quantizer.levels):
        book = f"{prefix}{LEVEL}{k}.codebook."
        if k < quantizer.levels:
            terms |= codebook_terms(f"quantizer.levels.{k}.codebook", Source(f"{book}embed"))
        else:
            unused[f"{book}embed"] = Unused((size, dim))
        unused |= {
            f"{book}inited": Unused((1,), 1.0),
            f"{book}cluster_size": Unused((size,), 1.0),
            f"{book}embed_avg": Unused((size, dim), f"{book}embed"),
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
    values = _describe(config)
    assert isinstance(config, AudioTokenizerConfig) and isinstance(config.quantizer, ResidualConfig)
    expected = encodec_config(values, config.quantizer.levels)
    check_tokenizer_layout("EnCodec", config, expected)
    described = {"architectures": ["EncodecModel"], "model_type": "encodec"} | values
    return described, public_tensors(tokenizer, encodec_tensor_map(config, prefix=prefix))


def _describe(config: Any) -> dict[str, Any]:
    """config.json of an EncodecModel; CannotWrite if the tokenizer is of another kind."""
    parts = (config.encoder, config.decoder) if isinstance(config, AudioTokenizerConfig) else ()
    if not parts or not all(isinstance(part, SEANetConfig) for part in parts):
        raise CannotWrite("EnCodec's layout holds audio tokenizers with an encoder and decoder of kind seanet")
    encoder, quantizer = config.encoder, config.quantizer
    if not isinstance(quantizer, ResidualConfig) or not isinstance(quantizer.quantizer, VQConfig):
        raise CannotWrite(f"EnCodec's layout holds a residual quantizer of kind vq, found '{quantizer.kind}'")
    return {
        "target_bandwidths": [_bandwidth(config, quantizer.quantizer.size, 1 + k) for k in range(quantizer.levels)],
        "sampling_rate": config.sample_rate,
        "audio_channels": config.channels,
        "normalize": False,
        "chunk_length_s": None,
        "overlap": None,
        "hidden_size": config.latent_dim,
        "num_filters": encoder.channels,
        "num_residual_layers": encoder.residual_layers,
        "upsampling_ratios": list(encoder.ratios),
        "norm_type": "weight_norm",
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


def _bandwidth(config: AudioTokenizerConfig, size: int, levels: int) -> float:
    """Kilobits a second from which transformers derives this number of codebooks: bandwidth // bits of a level."""
    bits = math.ceil(config.sample_rate / config.hop) * math.ceil(math.log2(size))
    bandwidth = bits * levels / 1000
    return bandwidth if 1000 * bandwidth // bits == levels else math.nextafter(bandwidth, math.inf)
