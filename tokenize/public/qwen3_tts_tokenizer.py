"""Qwen3-TTS-Tokenizer-12Hz in the layout of the package qwen-tts: config.json and model.safetensors.

24 kHz, 12.5 frames a second, 16 codebooks of 2048 codes. The encoder is that of Mimi, of whose 32 codebooks the first
16 are used; the decoder (`code2wav`) has separate code vectors. Licence of code and weights: Apache-2.0.
Source: Qwen3-TTS, arXiv:2601.15621; tensor names, config keys and class defaults of qwen-tts 0.1.1.

The package decodes in chunks of 300 frames that see 25 frames before them, although attention reaches 71 frames
back in each of 8 layers: from frame 300 on its samples differ from those of one pass. Here all frames are decoded with
what they depend on, whole or as a stream.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...configs.files import write_json, write_safetensors
from ...configs.schema import check_config
from ..audio.code2wav import DILATIONS, Code2WavConfig
from ..audio.networks import AudioTokenizerConfig
from ..audio.seanet import SEANetConfig
from ..base import Tokenizer
from ..quantizers.combinators.branches import BranchesConfig
from ..quantizers.combinators.projected import ProjectConfig
from ..quantizers.combinators.two_sided import TwoSidedConfig
from .building import plain_weight, public_tensors, read_tokenizer, tokenizer_shapes
from .checkpoint import Checkpoint
from .folder import PublicFolder
from .layout import check_tokenizer_layout
from .mimi import (
    BRANCHES,
    HUB_NAMES,
    bottleneck_terms,
    branches_terms,
    chosen_levels,
    codebook_size,
    describe_mimi,
    held_levels,
    mimi_config,
)
from .mimi import DEFAULTS as ENCODER_DEFAULTS
from .seanet_names import TRANSFORMERS, seanet_terms
from .tensor_map import CannotWrite, Concat, Source, TensorMap, Term, equal_parts

MODEL_TYPE = "qwen3_tts_tokenizer_12hz"
LAYOUT = "Qwen3-TTS-Tokenizer-12Hz"
DEFAULTS: dict[str, Any] = {
    "encoder_valid_num_quantizers": 16,
    "input_sample_rate": 24000,
    "output_sample_rate": 24000,
    "decode_upsample_rate": 1920,
    "encode_downsample_rate": 1920,
}
"""Class defaults of Qwen3TTSTokenizerV2Config."""
DECODER_DEFAULTS: dict[str, Any] = {
    "codebook_size": 2048,
    "codebook_dim": None,
    "hidden_size": 1024,
    "latent_dim": 1024,
    "rope_theta": 10000.0,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": None,
    "attention_bias": False,
    "sliding_window": 72,
    "intermediate_size": 3072,
    "hidden_act": "silu",
    "layer_scale_initial_scale": 0.01,
    "rms_norm_eps": 1e-5,
    "num_hidden_layers": 8,
    "num_quantizers": 16,
    "upsample_rates": [8, 5, 4, 3],
    "upsampling_ratios": [2, 2],
    "decoder_dim": 1536,
    "rope_scaling": None,
}
"""Class defaults of Qwen3TTSTokenizerV2DecoderConfig."""
DECODER_NAMES = replace(
    HUB_NAMES,
    parts=("quantizer.rvq_first.", "quantizer.rvq_rest."),
    book="vq.layers.{}._codebook.",
    codebook=("embedding_sum", "cluster_usage", None),
)
"""Names of the decoder's quantizer."""


def is_qwen3_tts_tokenizer(folder: PublicFolder) -> bool:
    """Whether config.json describes a Qwen3TTSTokenizerV2Model."""
    return folder.config.get("model_type") == MODEL_TYPE


def read_qwen3_tts_tokenizer(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read the tokenizer.

    Args:
        codebooks: number of codebooks, the semantic one first; None: those that the config names as valid.
    Raises:
        ValueError: settings that are not supported, by name. WeightsError: tensors missing, left over or misshapen.
    """
    where = str(folder.config_path)
    values = folder.values(DEFAULTS)
    encoder, decoder = folder.values(ENCODER_DEFAULTS, "encoder_config"), _decoder_values(folder)
    valid = values["encoder_valid_num_quantizers"]
    if codebooks is not None and not 2 <= codebooks <= valid:
        raise ValueError(f"{folder.path}: {codebooks} codebooks were asked for, the model has 2 to {valid}")
    held = _held(folder.checkpoint)
    levels = [chosen_levels(one, codebooks or valid, folder.path) for one in held]
    if decoder["num_quantizers"] != valid or sum(held[1]) != valid:
        raise ValueError(
            f"{where}: encoder_valid_num_quantizers is {valid}, decoder_config.num_quantizers "
            f"{decoder['num_quantizers']} and the file has {sum(held[1])}; they must be equal"
        )
    if levels[0] != levels[1]:
        raise ValueError(
            f"{where}: the encoder has {levels[0][0]} semantic codebooks and the decoder {levels[1][0]}; they must be "
            "equal"
        )
    if encoder["frame_rate"] is None:
        encoder["frame_rate"] = values["input_sample_rate"] / values["encode_downsample_rate"]
    config = qwen3_tts_tokenizer_config(values, encoder, decoder, levels[0], where)
    return read_tokenizer(config, qwen3_tts_tokenizer_map(config, held), folder.checkpoint)


def _decoder_values(folder: PublicFolder) -> dict[str, Any]:
    return folder.values(DECODER_DEFAULTS, "decoder_config")


def _held(checkpoint: Checkpoint) -> list[list[int]]:
    """Semantic and acoustic levels of the encoder and of the decoder."""
    return [held_levels(checkpoint, HUB_NAMES, "encoder."), held_levels(checkpoint, DECODER_NAMES, "decoder.")]


def qwen3_tts_tokenizer_config(
    values: dict[str, Any], encoder: dict[str, Any], decoder: dict[str, Any], levels: list[int], where: str
) -> AudioTokenizerConfig:
    """Our config of a tokenizer with these settings, those of its encoder (keys of MimiConfig) and of its decoder, and
    semantic and acoustic levels."""
    encoding = mimi_config(encoder, levels, f"{where}: encoder_config", "padded")
    hop, rate = encoding.hop, encoding.sample_rate
    for key, wanted in (
        ("input_sample_rate", rate),
        ("output_sample_rate", rate),
        ("encode_downsample_rate", hop),
        ("decode_upsample_rate", hop),
    ):
        if values[key] != wanted:
            raise ValueError(f"{where}: {key} is {values[key]}, but encoder_config describes {wanted}")
    here, heads = f"{where}: decoder_config", decoder["num_attention_heads"]
    dim, width = encoding.latent_dim, decoder["hidden_size"]
    supported = {
        "num_key_value_heads": heads,
        "attention_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "codebook_dim": dim,
        "codebook_size": encoder["codebook_size"],
    }
    for key, allowed in supported.items():
        if decoder[key] != allowed:
            raise ValueError(f"{here}: {key} is {decoder[key]!r}; only {allowed!r} is supported here")
    if dim % 2:
        raise ValueError(f"{here}: codebook_dim {dim} is odd; the vectors of a code have half of it")
    if decoder["head_dim"] is None and (not heads or width % heads):
        raise ValueError(f"{here}: hidden_size {width} is no multiple of num_attention_heads {heads}; give head_dim")
    codebook = {"kind": "vq", "size": decoder["codebook_size"]}
    parts = (codebook if levels[0] == 1 else _residual(levels[0], codebook), _residual(levels[1], codebook))
    lookup = {
        name: {"kind": "project", "dim": dim // 2, "quantizer": one} for name, one in zip(BRANCHES, parts, strict=True)
    }
    described = encoding.model_dump(mode="json") | {
        "name": "qwen3-tts-12hz",
        "decoder": {
            "kind": "code2wav",
            "width": decoder["latent_dim"],
            "transformer": {
                "width": width,
                "layers": decoder["num_hidden_layers"],
                "heads": heads,
                "head_width": decoder["head_dim"] or width // heads,
                "feed_forward": decoder["intermediate_size"],
                "window": decoder["sliding_window"],
                "layer_scale": decoder["layer_scale_initial_scale"],
                "theta": decoder["rope_theta"],
            },
            "ratios": decoder["upsampling_ratios"],
            "channels": decoder["decoder_dim"],
            "strides": decoder["upsample_rates"],
            "norm": "none",
        },
        "quantizer": {
            "kind": "two_sided",
            "search": encoding.quantizer.model_dump(mode="json"),
            "lookup": {"kind": "branches", "branches": {name: {"quantizer": one} for name, one in lookup.items()}},
        },
    }
    return check_config(described, AudioTokenizerConfig, where)


def _residual(levels: int, codebook: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "residual", "levels": levels, "quantizer": codebook}


def qwen3_tts_tokenizer_map(config: AudioTokenizerConfig, held: list[list[int]] | None = None) -> TensorMap:
    """The map of the tokenizer. held: semantic and acoustic levels of the encoder and of the decoder in the file, if
    they are more."""
    encoder, decoder, quantizer = config.encoder, config.decoder, config.quantizer
    assert isinstance(encoder, SEANetConfig) and isinstance(decoder, Code2WavConfig)
    assert isinstance(quantizer, TwoSidedConfig)
    search, lookup = quantizer.search, quantizer.lookup
    assert isinstance(search, BranchesConfig) and isinstance(lookup, BranchesConfig)
    shapes = tokenizer_shapes(config)
    own = [name for name in shapes if name.startswith("encoder.")]
    terms = seanet_terms(own, encoder, encoder, plain_weight, TRANSFORMERS, "encoder.")
    terms |= bottleneck_terms("encoder", encoder, config.latent_dim, HUB_NAMES, "encoder.")
    terms |= _decoder_terms(decoder)
    sides = ((search, HUB_NAMES, "searched.", "encoder."), (lookup, DECODER_NAMES, "looked_up.", "decoder."))
    unused = {}
    for number, (branches, names, ours, prefix) in enumerate(sides):
        levels = None if held is None else held[number]
        found, more = branches_terms(branches, config.latent_dim, names, levels, f"quantizer.{ours}", prefix)
        terms, unused = terms | found, unused | more
    return TensorMap(terms, unused)


def _decoder_terms(config: Code2WavConfig) -> dict[str, Term]:
    """Terms of the decoder's network."""
    layers = {
        "first.0.conv": "pre_conv.conv",
        "transformer.enter": "pre_transformer.input_proj",
        "transformer.leave": "pre_transformer.output_proj",
    }
    for number in range(len(config.ratios)):
        ours, theirs = f"up.{2 * number}", f"upsample.{number}"
        layers[f"{ours}.conv"] = f"{theirs}.0.conv"
        ours = f"up.{2 * number + 1}.layers"
        layers |= {f"{ours}.0.conv": f"{theirs}.1.dwconv.conv", f"{ours}.1.norm": f"{theirs}.1.norm"}
        layers |= {f"{ours}.1.widen": f"{theirs}.1.pwconv1", f"{ours}.1.narrow": f"{theirs}.1.pwconv2"}
    place, snakes = 2 * len(config.ratios), {}
    layers[f"up.{place}.conv"] = "decoder.0.conv"
    for stage in range(len(config.strides)):
        theirs = f"decoder.{stage + 1}.block"
        snakes[f"up.{place + 1}.inner"] = f"{theirs}.0"
        layers[f"up.{place + 2}.conv"] = f"{theirs}.1.conv"
        for number in range(len(DILATIONS)):
            ours, unit = f"up.{place + 3 + number}.layers", f"{theirs}.{2 + number}"
            snakes |= {f"{ours}.0.inner": f"{unit}.act1", f"{ours}.2.inner": f"{unit}.act2"}
            layers |= {f"{ours}.1.conv": f"{unit}.conv1.conv", f"{ours}.3.conv": f"{unit}.conv2.conv"}
        place += 2 + len(DILATIONS)
    snakes[f"up.{place + 1}.inner"] = f"decoder.{len(config.strides) + 1}"
    layers[f"up.{place + 2}.conv"] = f"decoder.{len(config.strides) + 2}.conv"
    leaves = [(layers, ("weight", "bias")), (snakes, ("alpha", "beta"))]
    terms: dict[str, Term] = {
        f"decoder.{ours}.{leaf}": Source(f"decoder.{theirs}.{leaf}")
        for names, parts in leaves
        for ours, theirs in names.items()
        for leaf in parts
    }
    for number in range(len(config.ratios)):
        terms[f"decoder.up.{2 * number + 1}.layers.1.scale"] = Source(f"decoder.upsample.{number}.1.gamma")
    terms["decoder.transformer.norm.weight"] = Source("decoder.pre_transformer.norm.weight")
    for number in range(config.transformer.layers):
        theirs = f"decoder.pre_transformer.layers.{number}."
        terms |= {f"decoder.transformer.blocks.{number}.{name}": term for name, term in _block(theirs).items()}
    return terms


def _block(theirs: str) -> dict[str, Term]:
    return {
        "attention_norm.weight": Source(f"{theirs}input_layernorm.weight"),
        "query_key_value.weight": equal_parts([f"{theirs}self_attn.{part}_proj.weight" for part in "qkv"]),
        "out.weight": Source(f"{theirs}self_attn.o_proj.weight"),
        "mlp_norm.weight": Source(f"{theirs}post_attention_layernorm.weight"),
        "widen.weight": Concat(tuple(Source(f"{theirs}mlp.{part}_proj.weight") for part in ("gate", "up"))),
        "narrow.weight": Source(f"{theirs}mlp.down_proj.weight"),
        "attention_scale": Source(f"{theirs}self_attn_layer_scale.scale"),
        "mlp_scale": Source(f"{theirs}mlp_layer_scale.scale"),
    }


def write_qwen3_tts_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as a folder that the package qwen-tts loads, with the config of its feature extractor.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    described = describe_qwen3_tts_tokenizer(tokenizer.config)
    assert isinstance(tokenizer.config, AudioTokenizerConfig)
    tensors = public_tensors(tokenizer, qwen3_tts_tokenizer_map(tokenizer.config))
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", described)
    extractor = {"feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "padding_value": 0.0}
    extractor |= {"padding_side": "right", "return_attention_mask": True}
    write_json(folder / "preprocessor_config.json", extractor | {"sampling_rate": described["input_sample_rate"]})


def describe_qwen3_tts_tokenizer(config: Any) -> dict[str, Any]:
    """config.json of a tokenizer; CannotWrite: it does not describe all of it."""
    decoder = config.decoder if isinstance(config, AudioTokenizerConfig) else None
    quantizer = config.quantizer if isinstance(config, AudioTokenizerConfig) else None
    if not isinstance(decoder, Code2WavConfig) or not isinstance(quantizer, TwoSidedConfig):
        raise CannotWrite(
            f"{LAYOUT}'s layout holds audio tokenizers with decoder kind code2wav and quantizer kind two_sided"
        )
    assert isinstance(config, AudioTokenizerConfig)
    encoder = config.encoder
    if isinstance(encoder, SEANetConfig):  # Mimi's decoder has the settings of its encoder
        encoder = encoder.model_copy(update={"last_frame": "zeros"})
    encoding = config.model_copy(update={"name": "mimi", "decoder": encoder, "quantizer": quantizer.search})
    encoder_values, levels = describe_mimi(LAYOUT, encoding)
    lookup = quantizer.lookup
    if not isinstance(lookup, BranchesConfig) or lookup.branches.keys() != set(BRANCHES):
        raise CannotWrite(f"{LAYOUT}'s layout holds a quantizer.lookup of two branches, semantic and acoustic")
    semantic = lookup.branches["semantic"].quantizer
    try:
        size = codebook_size(semantic)
    except AttributeError:
        raise CannotWrite(f"{LAYOUT}'s layout holds codebooks of kind vq, found '{semantic.kind}'") from None
    if not isinstance(semantic, ProjectConfig):
        raise CannotWrite(f"{LAYOUT}'s layout holds a quantizer.lookup with branches of kind project")
    attention = decoder.transformer
    decoder_values = {
        "codebook_size": size,
        "codebook_dim": config.latent_dim,
        "hidden_size": attention.width,
        "latent_dim": decoder.width,
        "rope_theta": attention.theta,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "head_dim": attention.head_width,
        "attention_bias": False,
        "sliding_window": attention.window,
        "intermediate_size": attention.feed_forward,
        "hidden_act": "silu",
        "layer_scale_initial_scale": attention.layer_scale,
        "rms_norm_eps": 1e-5,
        "num_hidden_layers": attention.layers,
        "num_quantizers": sum(levels),
        "upsample_rates": list(decoder.strides),
        "upsampling_ratios": list(decoder.ratios),
        "decoder_dim": decoder.channels,
        "rope_scaling": None,
    }
    values = {
        "encoder_valid_num_quantizers": sum(levels),
        "input_sample_rate": config.sample_rate,
        "output_sample_rate": config.sample_rate,
        "decode_upsample_rate": math.prod(decoder.ratios) * math.prod(decoder.strides),
        "encode_downsample_rate": config.hop,
    }
    try:
        expected = qwen3_tts_tokenizer_config(values, encoder_values, decoder_values, levels, LAYOUT)
    except ValueError as error:
        raise CannotWrite(str(error)) from None
    check_tokenizer_layout(LAYOUT, config, expected)
    return {
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "model_type": MODEL_TYPE,
        **values,
        "encoder_config": {"model_type": "mimi", "num_quantizers": sum(levels)} | encoder_values,
        "decoder_config": decoder_values,
    }
