"""SNAC in the files of its authors (hubertsiuzdak/snac): config.json without model_type, and pytorch_model.bin.

The codecs at 24, 32 and 44.1 kHz. A codebook of stride s has one code for s frames; here, each of them repeats it:

    their codes  [T / 4], [T / 2], [T]        ours  codes [K, T]        theirs = [codes[k, ::stride] for each k]

As there, audio is encoded with silence up to whole blocks; the codes of frames of silence alone are dropped here.
Their decoder adds noise to what it decodes; here it is off, so that codes always give the same samples. With
`noise="seeded"` (`read_snac`), or `noise: seeded` in the config of a new tokenizer, it is drawn per (seed, place).
Licence of code and weights: MIT. Source: SNAC, arXiv:2410.14411, `snac/snac.py`: names, arguments and defaults.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch

from ...configs.files import write_atomic, write_json
from ...configs.schema import check_config
from ...configs.tensor_checks import WeightsError
from ..audio.networks import AudioTokenizerConfig
from ..audio.snac import SNACConfig
from ..base import Tokenizer
from ..quantizers.combinators.residual import ChainConfig
from ..quantizers.combinators.strided import StrideConfig
from ..quantizers.vq import VQConfig
from .building import (
    WeightNorm,
    count_levels,
    found_weight_norm,
    parametrized,
    public_tensors,
    read_tokenizer,
    tokenizer_shapes,
)
from .dac import FIRST, LEVELS, layer_terms, level_terms, unit_layers, unused_level
from .folder import MOST_SAMPLES, PublicFolder, check_whole
from .layout import check_tokenizer_layout
from .tensor_map import CannotWrite, Source, TensorMap, Term, Unused

DEFAULTS: dict[str, Any] = {
    "sampling_rate": 44100,
    "encoder_dim": 64,
    "encoder_rates": [3, 3, 7, 7],
    "latent_dim": None,
    "decoder_dim": 1536,
    "decoder_rates": [7, 7, 3, 3],
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [8, 4, 2, 1],
    "noise": True,
    "depthwise": True,
}
"""Defaults of the class SNAC; `attn_window_size`, 32 or null for no attention, is read apart."""
ATTENTION = 32
HEAD_WIDTH = 64
UNIT = ["block.0", "block.1", "block.2", "block.3"]
FILE = "pytorch_model.bin"


def is_snac(folder: PublicFolder) -> bool:
    """Whether config.json holds the arguments of SNAC."""
    return "model_type" not in folder.config and {"vq_strides", "encoder_rates"} <= folder.config.keys()


def read_snac(folder: PublicFolder, codebooks: int | None = None, noise: Literal["off", "seeded"] = "off") -> Tokenizer:
    """Read a SNAC.

    Args:
        codebooks: number of codebooks, coarse first; None: all.
        noise: of the decoder, if it has any: see `SNACConfig`.
    Raises:
        ValueError: settings that are not supported, by name. WeightsError: tensors missing, left over or misshapen.
    """
    where = str(folder.config_path)
    values = folder.values(DEFAULTS)
    values["attn_window_size"] = folder.config.get("attn_window_size", ATTENTION)
    checkpoint = folder.checkpoint
    held = count_levels(checkpoint.shapes, LEVELS, FIRST)
    if not held:
        raise WeightsError(f"{folder.path}: tensor '{LEVELS}0{FIRST}' is missing; this is no SNAC")
    if held != len(values["vq_strides"]):
        raise ValueError(f"{where}: vq_strides has {len(values['vq_strides'])} entries, the file has {held} codebooks")
    if codebooks is not None and not 1 <= codebooks <= held:
        raise ValueError(f"{folder.path}: {codebooks} codebooks were asked for, the file has {held}")
    config = snac_config(values, codebooks, where, noise)
    for name in attention_rates(config):
        _check_rates(name, checkpoint.tensors([name]).get(name))
    return read_tokenizer(config, snac_tensor_map(config, found_weight_norm(checkpoint), held), checkpoint)


def snac_config(
    values: dict[str, Any], codebooks: int | None = None, where: str = "config.json", noise: str = "off"
) -> AudioTokenizerConfig:
    """Our config of a SNAC with these arguments, and with its first codebooks or all."""
    strides, rates, window = values["vq_strides"], values["encoder_rates"], values["attn_window_size"]
    if window is not None:
        check_whole(window, "attn_window_size", f"{where}: attn_window_size")
    if not strides or min(strides) < 1 or any(strides[0] % stride for stride in strides):
        raise ValueError(f"{where}: vq_strides {str(strides)[:80]} must all divide the first")
    latents = values["encoder_dim"] << len(rates)
    if values["latent_dim"] not in (None, latents):
        raise ValueError(f"{where}: latent_dim is {str(values['latent_dim'])[:80]}, but the encoder makes {latents}")
    codebook = {"kind": "vq", "size": values["codebook_size"], "code_dim": values["codebook_dim"]}
    codebook |= {"normalise": True, "keep_length": True, "update": "gradient"}
    part: dict[str, Any] = {"kind": "snac", "depthwise": values["depthwise"]}
    block = math.lcm(strides[0], window or 1)
    if block * math.prod(rates) > MOST_SAMPLES:
        raise ValueError(
            f"{where}: vq_strides and attn_window_size make blocks of {block} frames, {block * math.prod(rates)} "
            f"samples; the limit is {MOST_SAMPLES}"
        )
    part["chunk"] = -(-32 // block) * block
    if window is not None:
        part |= {"attention": window, "head_width": HEAD_WIDTH}
    stages = [
        codebook if stride == 1 else {"kind": "stride", "every": stride, "quantizer": codebook}
        for stride in strides[:codebooks]
    ]
    described = {
        "kind": "audio",
        "name": f"snac-{round(values['sampling_rate'] / 1000)}khz",
        "sample_rate": values["sampling_rate"],
        "hop": math.prod(rates),
        "pad_frames": block,
        "latent_dim": latents,
        "encoder": part | {"channels": values["encoder_dim"], "strides": rates},
        "decoder": part
        | {"channels": values["decoder_dim"], "strides": values["decoder_rates"]}
        | {"noise": noise if values["noise"] else "none"},
        "quantizer": {"kind": "chain", "stages": stages},
    }
    return check_config(described, AudioTokenizerConfig, where)


def snac_tensor_map(
    config: AudioTokenizerConfig, weight: WeightNorm = parametrized, levels: int | None = None
) -> TensorMap:
    """The map of a SNAC. levels: codebooks in the file, if more than the config's."""
    encoder, decoder, quantizer = config.encoder, config.decoder, config.quantizer
    assert isinstance(encoder, SNACConfig) and isinstance(decoder, SNACConfig) and isinstance(quantizer, ChainConfig)
    shapes = tokenizer_shapes(config)
    terms = layer_terms(shapes, encoder_layers(encoder) | decoder_layers(decoder), weight)
    unused = {name: Unused((HEAD_WIDTH // 2,)) for name in attention_rates(config)}
    for name in attention_rates(config):
        side = name.split(".")[0]
        terms |= attention_terms(f"{side}.attention", name.removesuffix(".rel_pos.inv_freq"))
    ours = [
        f"quantizer.levels.{k}" + (".inner" if isinstance(stage, StrideConfig) else "")
        for k, stage in enumerate(quantizer.stages)
    ]
    for k in range(levels or len(ours)):
        if k < len(ours):
            terms |= level_terms(shapes, ours[k], f"{LEVELS}{k}", weight)
        else:
            unused |= unused_level(shapes, ours[0], f"{LEVELS}{k}", weight)
    return TensorMap(terms, unused)


def encoder_layers(config: SNACConfig) -> dict[str, str]:
    """Our names of the encoder's layers -> theirs."""
    layers = {"encoder.down.0.conv": "encoder.block.0"}
    count = len(config.strides)
    for stage in range(count):
        ours, theirs = 1 + 5 * stage, f"encoder.block.{1 + stage}.block"
        for unit in range(3):
            layers |= unit_layers(f"encoder.down.{ours + unit}", f"{theirs}.{unit}", UNIT)
        layers[f"encoder.down.{ours + 3}.inner"] = f"{theirs}.3"
        layers[f"encoder.down.{ours + 4}.conv"] = f"{theirs}.4"
    if config.attention:
        layers["encoder.last.0.conv"] = f"encoder.block.{count + 2}"
    else:
        layers[f"encoder.down.{1 + 5 * count}.conv"] = f"encoder.block.{count + 1}"
    return layers


def decoder_layers(config: SNACConfig) -> dict[str, str]:
    """Our names of the decoder's layers -> theirs."""
    before = 2 if config.depthwise else 1
    side = "first" if config.attention else "up"
    layers = {f"decoder.{side}.{place}.conv": f"decoder.model.{place}" for place in range(before)}
    ours = 0 if config.attention else before
    theirs = before + 1 if config.attention else before
    for _ in config.strides:
        layers[f"decoder.up.{ours}.inner"] = f"decoder.model.{theirs}.block.0"
        layers[f"decoder.up.{ours + 1}.conv"] = f"decoder.model.{theirs}.block.1"
        noisy = config.noise != "none"
        if noisy:
            layers[f"decoder.up.{ours + 2}.conv"] = f"decoder.model.{theirs}.block.2.linear"
        for unit in range(2 + noisy, 5 + noisy):
            layers |= unit_layers(f"decoder.up.{ours + unit}", f"decoder.model.{theirs}.block.{unit}", UNIT)
        ours, theirs = ours + 5 + noisy, theirs + 1
    layers[f"decoder.up.{ours}.inner"] = f"decoder.model.{theirs}"
    layers[f"decoder.up.{ours + 1}.conv"] = f"decoder.model.{theirs + 1}"
    return layers


def attention_terms(ours: str, theirs: str) -> dict[str, Term]:
    """Terms of the attention of one side."""
    names = {"norm.weight": "norm.weight", "norm.bias": "norm.bias", "out.weight": "to_out.weight"}
    names["query_key_value.weight"] = "to_qkv.weight"
    return {f"{ours}.{own}": Source(f"{theirs}.{other}") for own, other in names.items()}


def attention_rates(config: AudioTokenizerConfig) -> list[str]:
    """Names of the files' tables of rotary rates [32], which are constants, of the encoder and the decoder."""
    encoder, decoder = config.encoder, config.decoder
    assert isinstance(encoder, SNACConfig) and isinstance(decoder, SNACConfig)
    if encoder.attention is None:
        return []
    places = (f"encoder.block.{len(encoder.strides) + 1}", f"decoder.model.{2 if decoder.depthwise else 1}")
    return [f"{place}.rel_pos.inv_freq" for place in places]


def rotary_rates() -> torch.Tensor:
    """Their table of rotary rates, [32] float32."""
    return 10000 ** (-torch.arange(0, HEAD_WIDTH, 2).float() / HEAD_WIDTH)


def _check_rates(name: str, found: torch.Tensor | None) -> None:
    """Raise ValueError if a table of rotary rates has other values. A missing or misshapen one is reported later."""
    wanted = rotary_rates()
    if found is not None and found.shape == wanted.shape and not torch.allclose(found.float(), wanted, rtol=1e-4):
        raise ValueError(f"tensor '{name}' has other rotary rates than those of base 10000; this is not supported")


def write_snac(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as a folder of SNAC: config.json and pytorch_model.bin.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    config = tokenizer.config
    values = _describe(config)
    assert isinstance(config, AudioTokenizerConfig) and isinstance(config.decoder, SNACConfig)
    expected = snac_config(values, noise=config.decoder.noise)
    check_tokenizer_layout("SNAC", config, _with_seed(expected, config.decoder.noise_seed))
    tensors = public_tensors(tokenizer, snac_tensor_map(config))
    tensors |= {name: rotary_rates() for name in attention_rates(config)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, lambda part: torch.save(tensors, part))
    write_json(folder / "config.json", values)


def _with_seed(config: AudioTokenizerConfig, seed: int) -> AudioTokenizerConfig:
    """The config with this seed of the noise, which the files do not have."""
    return config.model_copy(update={"decoder": config.decoder.model_copy(update={"noise_seed": seed})})


def _describe(config: Any) -> dict[str, Any]:
    """config.json of a SNAC; CannotWrite if the tokenizer is of another kind."""
    parts = (config.encoder, config.decoder) if isinstance(config, AudioTokenizerConfig) else ()
    if not parts or not all(isinstance(part, SNACConfig) for part in parts):
        raise CannotWrite("SNAC's layout holds audio tokenizers with an encoder and decoder of kind snac")
    encoder, decoder, quantizer = config.encoder, config.decoder, config.quantizer
    assert isinstance(encoder, SNACConfig) and isinstance(decoder, SNACConfig)
    if not isinstance(quantizer, ChainConfig):
        raise CannotWrite(f"SNAC's layout holds a quantizer of kind chain, found '{quantizer.kind}'")
    leaves = [stage.quantizer if isinstance(stage, StrideConfig) else stage for stage in quantizer.stages]
    first = leaves[0]
    if not isinstance(first, VQConfig) or first.code_dim is None:
        raise CannotWrite("SNAC's layout holds codebooks of kind vq with a code_dim, each alone or in a stride")
    return {
        "sampling_rate": config.sample_rate,
        "encoder_dim": encoder.channels,
        "encoder_rates": list(encoder.strides),
        "latent_dim": None,
        "decoder_dim": decoder.channels,
        "decoder_rates": list(decoder.strides),
        "attn_window_size": encoder.attention,
        "codebook_size": first.size,
        "codebook_dim": first.code_dim,
        "vq_strides": [stage.every if isinstance(stage, StrideConfig) else 1 for stage in quantizer.stages],
        "noise": decoder.noise != "none",
        "depthwise": decoder.depthwise,
    }
