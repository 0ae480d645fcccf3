"""DAC in the layout of transformers (`DacModel`): config.json and model.safetensors.

The codecs at 16, 24 and 44.1 kHz. The network decides the samples per frame: the published hop_length of 16 and 24 kHz
is wrong and not read. A recording whose length is no multiple of it is padded with zeros on the right, as transformers'
processor does. Licence of code and weights: MIT.
Source: DAC, arXiv:2306.06546; tensor names, config keys and class defaults of transformers 5 (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...configs.files import write_json, write_safetensors
from ...configs.schema import check_config
from ...configs.tensor_checks import WeightsError
from ..audio.dac import DACConfig
from ..audio.networks import AudioTokenizerConfig
from ..base import Tokenizer
from ..quantizers.combinators.residual import ResidualConfig
from ..quantizers.vq import VQConfig
from .building import (
    WeightNorm,
    count_levels,
    found_weight_norm,
    learned_codebook_terms,
    plain_weight,
    public_tensors,
    read_tokenizer,
    tokenizer_shapes,
)
from .checkpoint import Checkpoint
from .folder import PublicFolder
from .layout import check_tokenizer_layout
from .tensor_map import CannotWrite, Shape, Source, TensorMap, Term, Unused, View

DEFAULTS: dict[str, Any] = {
    "encoder_hidden_size": 64,
    "downsampling_ratios": [2, 4, 8, 8],
    "decoder_hidden_size": 1536,
    "codebook_size": 1024,
    "codebook_dim": 8,
    "sampling_rate": 16000,
}
"""Class defaults of DacConfig; `upsampling_ratios` and `hidden_size` follow from these where absent."""
DILATIONS = (1, 3, 9)
LEVELS = "quantizer.quantizers."
FIRST = ".codebook.weight"

LayerNames = Mapping[str, str]
"""Names of a library for the places of the network; in braces: stage (from 0), after (stage + 1), unit (from 0), number
(unit + 1), below (unit + 2), end (stages + 1), last (stages + 2)."""
TRANSFORMERS: LayerNames = {
    "encoder.first": "encoder.conv1",
    "encoder.unit": "encoder.block.{stage}.res_unit{number}",
    "encoder.snake": "encoder.block.{stage}.snake1",
    "encoder.strided": "encoder.block.{stage}.conv1",
    "encoder.last_snake": "encoder.snake1",
    "encoder.last": "encoder.conv2",
    "decoder.first": "decoder.conv1",
    "decoder.snake": "decoder.block.{stage}.snake1",
    "decoder.strided": "decoder.block.{stage}.conv_t1",
    "decoder.unit": "decoder.block.{stage}.res_unit{number}",
    "decoder.last_snake": "decoder.snake1",
    "decoder.last": "decoder.conv2",
    "unit": "snake1 conv1 snake2 conv2",
}


def is_dac(folder: PublicFolder) -> bool:
    """Whether config.json describes a DacModel."""
    return folder.config.get("model_type") == "dac"


def read_dac(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read a DAC.

    Args:
        codebooks: number of codebooks, coarse first; None: all in the file.
    Raises:
        ValueError: settings that are not supported, by name. WeightsError: tensors missing, left over or misshapen.
    """
    return read_dac_part(folder, codebooks)


def read_dac_part(
    folder: PublicFolder, codebooks: int | None = None, within: str | None = None, prefix: str = ""
) -> Tokenizer:
    """As `read_dac`, of a codec inside another model: key of its config, and prefix of its tensors' names."""
    values = folder.values(DEFAULTS, within)
    ratios, widest = values["downsampling_ratios"], values["encoder_hidden_size"]
    values |= folder.values({"upsampling_ratios": ratios[::-1], "hidden_size": widest << min(len(ratios), 64)}, within)
    settings = {
        "encoder_dim": widest,
        "encoder_rates": ratios,
        "latent_dim": values["hidden_size"],
        "decoder_dim": values["decoder_hidden_size"],
        "decoder_rates": values["upsampling_ratios"],
        "codebook_size": values["codebook_size"],
        "codebook_dim": values["codebook_dim"],
        "sample_rate": values["sampling_rate"],
    }
    checkpoint = folder.checkpoint.within(prefix)
    return read_dac_tensors(checkpoint, settings, codebooks, TRANSFORMERS, str(folder.config_path), prefix)


def read_dac_tensors(
    checkpoint: Checkpoint, settings: dict[str, Any], codebooks: int | None, names: LayerNames, where: str, prefix=""
) -> Tokenizer:
    """Read a DAC with these settings (`dac_config`) whose layers are named so."""
    held = count_levels(checkpoint.shapes, f"{prefix}{LEVELS}", FIRST)
    if not held:
        raise WeightsError(f"{checkpoint.path}: tensor '{prefix}{LEVELS}0{FIRST}' is missing; this is no DAC")
    if codebooks is not None and not 1 <= codebooks <= held:
        raise ValueError(f"{checkpoint.path}: {codebooks} codebooks were asked for, the file has {held}")
    config = dac_config(settings, codebooks or held, where)
    return read_tokenizer(
        config, dac_tensor_map(config, names, found_weight_norm(checkpoint), held, prefix), checkpoint
    )


def dac_config(settings: dict[str, Any], levels: int, where: str = "config.json") -> AudioTokenizerConfig:
    """Our config of a DAC with these settings, in the words of the original library, and number of codebooks."""
    odd = any(stride % 2 for stride in settings["decoder_rates"])
    codebook = {"kind": "vq", "size": settings["codebook_size"], "code_dim": settings["codebook_dim"]}
    codebook |= {"normalise": True, "keep_length": True, "update": "gradient"}
    described = {
        "kind": "audio",
        "name": f"dac-{round(settings['sample_rate'] / 1000)}khz",
        "sample_rate": settings["sample_rate"],
        "hop": math.prod(settings["encoder_rates"]),
        "latent_dim": settings["latent_dim"],
        "encoder": {"kind": "dac", "channels": settings["encoder_dim"], "strides": settings["encoder_rates"]},
        "decoder": {"kind": "dac", "channels": settings["decoder_dim"], "strides": settings["decoder_rates"]}
        | ({"tail": "short"} if odd else {}),
        "quantizer": {"kind": "residual", "levels": levels, "quantizer": codebook},
    }
    return check_config(described, AudioTokenizerConfig, where)


def dac_tensor_map(
    config: AudioTokenizerConfig,
    names: LayerNames = TRANSFORMERS,
    weight: WeightNorm = plain_weight,
    levels: int | None = None,
    prefix: str = "",
) -> TensorMap:
    """The map of a DAC. levels: codebooks in the file, if more than the config's; prefix: of their names."""
    encoder, decoder, quantizer = config.encoder, config.decoder, config.quantizer
    assert isinstance(encoder, DACConfig) and isinstance(decoder, DACConfig) and isinstance(quantizer, ResidualConfig)
    shapes = tokenizer_shapes(config)
    layers = dac_layers(len(encoder.strides), len(decoder.strides), names)
    terms = layer_terms(shapes, {ours: f"{prefix}{theirs}" for ours, theirs in layers.items()}, weight)
    unused: dict[str, Unused] = {}
    for k in range(levels or quantizer.levels):
        theirs = f"{prefix}{LEVELS}{k}"
        if k < quantizer.levels:
            terms |= level_terms(shapes, f"quantizer.levels.{k}", theirs, weight)
        else:
            unused |= unused_level(shapes, "quantizer.levels.0", theirs, weight)
    return TensorMap(terms, unused)


def dac_layers(down: int, up: int, names: LayerNames) -> dict[str, str]:
    """Our names of layers -> theirs, for numbers of strides of the encoder and the decoder."""
    unit = names["unit"].split()

    def name(place: str, stages: int, stage: int = 0, number: int = 0) -> str:
        units = {"unit": number, "number": number + 1, "below": number + 2}
        return names[place].format(stage=stage, after=stage + 1, end=stages + 1, last=stages + 2, **units)

    layers = {"encoder.down.0.conv": name("encoder.first", down)}
    for stage in range(down):
        first = 1 + 5 * stage
        for number in range(3):
            layers |= unit_layers(f"encoder.down.{first + number}", name("encoder.unit", down, stage, number), unit)
        layers[f"encoder.down.{first + 3}.inner"] = name("encoder.snake", down, stage)
        layers[f"encoder.down.{first + 4}.conv"] = name("encoder.strided", down, stage)
    layers[f"encoder.down.{1 + 5 * down}.inner"] = name("encoder.last_snake", down)
    layers[f"encoder.down.{2 + 5 * down}.conv"] = name("encoder.last", down)
    layers["decoder.up.0.conv"] = name("decoder.first", up)
    for stage in range(up):
        first = 1 + 5 * stage
        layers[f"decoder.up.{first}.inner"] = name("decoder.snake", up, stage)
        layers[f"decoder.up.{first + 1}.conv"] = name("decoder.strided", up, stage)
        for number in range(3):
            layers |= unit_layers(f"decoder.up.{first + 2 + number}", name("decoder.unit", up, stage, number), unit)
    layers[f"decoder.up.{1 + 5 * up}.inner"] = name("decoder.last_snake", up)
    layers[f"decoder.up.{2 + 5 * up}.conv"] = name("decoder.last", up)
    return layers


def unit_layers(ours: str, theirs: str, names: list[str]) -> dict[str, str]:
    """The layers of a residual unit, whose names are given in order."""
    own = ("layers.0.inner", "layers.1.conv", "layers.2.inner", "layers.3.conv")
    return {f"{ours}.{layer}": f"{theirs}.{name}" for layer, name in zip(own, names, strict=True)}


def layer_terms(shapes: Mapping[str, Shape], layers: Mapping[str, str], weight: WeightNorm) -> dict[str, Term]:
    """Terms of convolutions and Snakes by their names."""
    terms: dict[str, Term] = {}
    for ours, theirs in layers.items():
        if f"{ours}.alpha" in shapes:
            terms[f"{ours}.alpha"] = View(Source(f"{theirs}.alpha"), (1, *shapes[f"{ours}.alpha"]))
            continue
        terms[f"{ours}.weight"] = weight(theirs)
        if f"{ours}.bias" in shapes:
            terms[f"{ours}.bias"] = Source(f"{theirs}.bias")
    return terms


def level_terms(shapes: Mapping[str, Shape], ours: str, theirs: str, weight: WeightNorm) -> dict[str, Term]:
    """Terms of a codebook with projections, which are convolutions of kernel 1 there."""
    terms = learned_codebook_terms(f"{ours}.codebook", Source(f"{theirs}.codebook.weight"))
    for own, other in (("project_in", "in_proj"), ("project_out", "out_proj")):
        terms[f"{ours}.{own}.weight"] = View(weight(f"{theirs}.{other}"), (*shapes[f"{ours}.{own}.weight"], 1))
        terms[f"{ours}.{own}.bias"] = Source(f"{theirs}.{other}.bias")
    return terms


def unused_level(shapes: Mapping[str, Shape], like: str, theirs: str, weight: WeightNorm) -> dict[str, Unused]:
    """A codebook of the file that is not read, of the shape of our codebook `like`."""
    terms = level_terms(shapes, like, theirs, weight)
    return {
        name: Unused(shape)
        for ours, term in terms.items()
        for name, shape in term.sources(shapes.get(ours, ())).items()
    }


def write_dac(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as a `DacModel` folder, with the config of transformers' processor.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    described, tensors = dac_part(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", described)
    processor = {"feature_extractor_type": "DacFeatureExtractor", "feature_size": 1, "padding_value": 0.0}
    processor |= {"hop_length": described["hop_length"], "sampling_rate": described["sampling_rate"]}
    write_json(folder / "preprocessor_config.json", processor)


def dac_part(tokenizer: Tokenizer, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of a `DacModel` and its tensors, their names with a prefix; raises as `write_dac`."""
    settings = describe_dac(tokenizer, "DAC")
    size = settings["codebook_size"]
    if size & (size - 1):
        raise CannotWrite(f"transformers' DAC needs a number of codes that is a power of 2, found {size}")
    config = tokenizer.config
    assert isinstance(config, AudioTokenizerConfig)
    described = {
        "architectures": ["DacModel"],
        "model_type": "dac",
        "encoder_hidden_size": settings["encoder_dim"],
        "downsampling_ratios": settings["encoder_rates"],
        "decoder_hidden_size": settings["decoder_dim"],
        "upsampling_ratios": settings["decoder_rates"],
        "hidden_size": settings["latent_dim"],
        "n_codebooks": settings["n_codebooks"],
        "codebook_size": size,
        "codebook_dim": settings["codebook_dim"],
        "hop_length": config.hop,
        "sampling_rate": config.sample_rate,
    }
    return described, public_tensors(tokenizer, dac_tensor_map(config, prefix=prefix))


def describe_dac(tokenizer: Tokenizer, layout: str) -> dict[str, Any]:
    """Settings of a DAC in the words of the original library; CannotWrite if the tokenizer is none."""
    config = tokenizer.config
    parts = (config.encoder, config.decoder) if isinstance(config, AudioTokenizerConfig) else ()
    if not parts or not all(isinstance(part, DACConfig) for part in parts):
        raise CannotWrite(f"{layout}'s layout holds audio tokenizers with an encoder and decoder of kind dac")
    assert isinstance(config, AudioTokenizerConfig)
    quantizer = config.quantizer
    if not isinstance(quantizer, ResidualConfig) or not isinstance(quantizer.quantizer, VQConfig):
        raise CannotWrite(f"{layout}'s layout holds a residual quantizer of kind vq, found '{quantizer.kind}'")
    assert isinstance(config.encoder, DACConfig) and isinstance(config.decoder, DACConfig)
    settings = {
        "encoder_dim": config.encoder.channels,
        "encoder_rates": list(config.encoder.strides),
        "latent_dim": config.latent_dim,
        "decoder_dim": config.decoder.channels,
        "decoder_rates": list(config.decoder.strides),
        "n_codebooks": quantizer.levels,
        "codebook_size": quantizer.quantizer.size,
        "codebook_dim": quantizer.quantizer.code_dim or 0,
        "sample_rate": config.sample_rate,
    }
    if not settings["codebook_dim"]:
        raise CannotWrite(f"{layout}'s layout does not support quantizer.quantizer.code_dim: found null, it needs one")
    check_tokenizer_layout(layout, config, dac_config(settings, quantizer.levels))
    return settings
