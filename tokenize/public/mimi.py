"""Mimi in the layout of transformers (`MimiModel`): config.json and model.safetensors.

24 kHz, 12.5 frames a second; one semantic codebook beside up to 31 acoustic ones, of which a user may take the first
few. Licence of the weights: CC-BY 4.0.
Source: Moshi, arXiv:2410.00037; tensor names, config keys and class defaults of transformers 5 (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...configs.files import write_json, write_safetensors
from ...configs.schema import check_config
from ...configs.tensor_checks import WeightsError
from ..audio.networks import AudioTokenizerConfig
from ..audio.seanet import SEANetConfig
from ..base import Tokenizer
from ..quantizers.combinators.branches import BranchesConfig
from ..quantizers.combinators.projected import ProjectConfig
from ..quantizers.combinators.residual import ResidualConfig
from ..quantizers.vq import VQConfig
from .building import codebook_terms, count_levels, plain_weight, public_tensors, read_tokenizer, tokenizer_shapes
from .checkpoint import Checkpoint
from .encodec import PADDINGS, seanet_encoder, seanet_settings
from .folder import PublicFolder
from .layout import check_tokenizer_layout
from .seanet_names import TRANSFORMERS, SEANetNames, seanet_terms
from .tensor_map import CannotWrite, Quotient, Source, TensorMap, Term, Unused, View, equal_parts

DEFAULTS: dict[str, Any] = {
    "sampling_rate": 24000,
    "frame_rate": None,
    "audio_channels": 1,
    "hidden_size": 512,
    "num_filters": 64,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "compress": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": 2048,
    "codebook_dim": 256,
    "use_conv_shortcut": False,
    "vector_quantization_hidden_dimension": 256,
    "num_semantic_quantizers": 1,
    "upsample_groups": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "rope_theta": None,
    "rope_parameters": None,
    "sliding_window": 250,
    "layer_scale_initial_scale": 0.01,
    "attention_bias": False,
}
"""Class defaults of MimiConfig."""
BRANCHES = ("semantic", "acoustic")
MOST_SCALE = 1e6
"""Largest initial value of a layer scale; no tensor confirms it."""
MOST_STEPS = 4096
"""Largest number of steps of the networks in a frame."""


@dataclass(frozen=True)
class MimiNames:
    """Spelling of a library."""

    seanet: SEANetNames
    """Names of the layers of the convolutional networks."""
    down: str
    """Convolution to frames."""
    up: str
    """Transposed convolution to steps."""
    blocks: str
    """Prefix of a transformer block, with {side} and {number}."""
    block: Callable[[str, int, int], dict[str, Term]]
    """block(prefix, heads, width): terms of a block by our names."""
    parts: tuple[str, str]
    """Prefixes of the semantic and the acoustic quantizer."""
    book: str
    """Prefix of a level's codebook, after that of its quantizer."""
    codebook: tuple[str, str, str | None]
    """Sum of a code's vectors, their count, and whether the codebook is initialized, if that is stored."""


def _block(theirs: str, heads: int, width: int) -> dict[str, Term]:
    return {
        "attention_norm.weight": Source(f"{theirs}input_layernorm.weight"),
        "attention_norm.bias": Source(f"{theirs}input_layernorm.bias"),
        "query_key_value.weight": equal_parts([f"{theirs}self_attn.{part}_proj.weight" for part in "qkv"]),
        "out.weight": Source(f"{theirs}self_attn.o_proj.weight"),
        "mlp_norm.weight": Source(f"{theirs}post_attention_layernorm.weight"),
        "mlp_norm.bias": Source(f"{theirs}post_attention_layernorm.bias"),
        "widen.weight": Source(f"{theirs}mlp.fc1.weight"),
        "narrow.weight": Source(f"{theirs}mlp.fc2.weight"),
        "attention_scale": Source(f"{theirs}self_attn_layer_scale.scale"),
        "mlp_scale": Source(f"{theirs}mlp_layer_scale.scale"),
    }


HUB_NAMES = MimiNames(
    seanet=TRANSFORMERS,
    down="downsample.conv.weight",
    up="upsample.conv.weight",
    blocks="{side}_transformer.layers.{number}.",
    block=_block,
    parts=("quantizer.semantic_residual_vector_quantizer.", "quantizer.acoustic_residual_vector_quantizer."),
    book="layers.{}.codebook.",
    codebook=("embed_sum", "cluster_usage", "initialized"),
)
"""Names in files of transformers; in memory they differ."""


def is_mimi(folder: PublicFolder) -> bool:
    """Whether config.json describes a MimiModel."""
    return folder.config.get("model_type") == "mimi"


def read_mimi(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read a Mimi; see read_encodec for arguments and errors."""
    return read_mimi_part(folder, codebooks)


def read_mimi_part(
    folder: PublicFolder, codebooks: int | None = None, within: str | None = None, prefix: str = ""
) -> Tokenizer:
    """As `read_mimi`, of a codec inside another model: key of its config, and prefix of its tensors' names."""
    config, held = mimi_part_config(folder, codebooks, within, prefix)
    checkpoint = folder.checkpoint.within(prefix)
    return read_tokenizer(config, mimi_tensor_map(config, HUB_NAMES, held, prefix), checkpoint)


def mimi_part_config(
    folder: PublicFolder, codebooks: int | None, within: str | None, prefix: str
) -> tuple[AudioTokenizerConfig, list[int]]:
    """Config of the codec that `read_mimi_part` reads, and the semantic and acoustic levels in its file; the same
    arguments and errors."""
    held = held_levels(folder.checkpoint, HUB_NAMES, prefix)
    levels = chosen_levels(held, codebooks, folder.path)
    where = str(folder.config_path) if within is None else f"{folder.config_path}: {within}"
    values = folder.values(DEFAULTS, within)
    down = folder.checkpoint.shapes.get(prefix + HUB_NAMES.down, ())
    if values["frame_rate"] is None and len(down) == 3:  # transformers 5 does not save it
        values["frame_rate"] = 2 * _step_rate(values) / down[2]
    return mimi_config(values, levels, where, "padded"), held


def held_levels(checkpoint: Checkpoint, names: MimiNames, prefix: str = "") -> list[int]:
    """Semantic and acoustic levels in a file; WeightsError: it has none."""
    held = []
    for part in names.parts:
        before, after = f"{prefix}{part}{names.book}{names.codebook[0]}".split("{}")
        held.append(count_levels(checkpoint.shapes, before, after))
        if not held[-1]:
            raise WeightsError(f"{checkpoint.path}: tensor '{before}0{after}' is missing; this is no Mimi")
    return held


def chosen_levels(held: list[int], codebooks: int | None, path: Path) -> list[int]:
    """Semantic and acoustic levels to use, if the file has `held`; ValueError: it has too few."""
    semantic, acoustic = held
    total = semantic + acoustic if codebooks is None else codebooks
    if not semantic <= total <= semantic + acoustic:
        raise ValueError(
            f"{path}: {codebooks} codebooks were asked for, the file has {semantic + acoustic}; choose from {semantic} "
            f"(all semantic ones) to {semantic + acoustic}"
        )
    return [semantic, total - semantic]


def mimi_config(
    values: dict[str, Any], levels: list[int], where: str, last_frame: Literal["zeros", "padded"]
) -> AudioTokenizerConfig:
    """Our config of a Mimi with these settings (keys of MimiConfig) and numbers of semantic and acoustic levels.

    last_frame: MimiModel pads in each convolution where the audio is no multiple of a frame, moshi appends zeros.
    """
    dim, heads = values["hidden_size"], values["num_attention_heads"]
    ratios = values["upsampling_ratios"]
    width, inner = values["codebook_dim"], values["vector_quantization_hidden_dimension"]
    supported = {
        "use_causal_conv": True,
        "trim_right_ratio": 1.0,
        "upsample_groups": dim,
        "num_key_value_heads": heads,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "attention_bias": False,
        "codebook_dim": inner,
        "num_semantic_quantizers": levels[0],
    }
    for key, allowed in supported.items():
        if values[key] != allowed:
            raise ValueError(f"{where}: {key} is {values[key]!r}; only {allowed!r} is supported here")
    if values["pad_mode"] not in PADDINGS:
        raise ValueError(f"{where}: pad_mode is {values['pad_mode']!r}; only {' or '.join(PADDINGS)} is supported")
    if not heads or values["head_dim"] not in (None, dim // heads):
        raise ValueError(f"{where}: head_dim is {values['head_dim']}; only {dim} / {heads} heads is supported here")
    if abs(values["layer_scale_initial_scale"]) > MOST_SCALE:
        found = values["layer_scale_initial_scale"]
        raise ValueError(f"{where}: layer_scale_initial_scale must be at most {MOST_SCALE:g}, found {found}")
    part = seanet_settings(values, ratios) | {
        "lstm_layers": 0,
        "norm": "none",
        "bottleneck": {
            "stride": _stride(values, where),
            "layers": values["num_hidden_layers"],
            "heads": heads,
            "feed_forward": values["intermediate_size"],
            "window": values["sliding_window"],
            "layer_scale": values["layer_scale_initial_scale"],
            "theta": _theta(values, where),
        },
    }
    codebook = {"kind": "vq", "size": values["codebook_size"]}
    branches = {"semantic": codebook if levels[0] == 1 else _residual(levels[0], codebook)}
    if levels[1]:
        branches["acoustic"] = _residual(levels[1], codebook)
    if inner != dim:
        branches = {name: {"kind": "project", "dim": width, "quantizer": one} for name, one in branches.items()}
    described = {
        "kind": "audio",
        "name": "mimi",
        "sample_rate": values["sampling_rate"],
        "channels": values["audio_channels"],
        "hop": math.prod(ratios) * part["bottleneck"]["stride"],
        "latent_dim": dim,
        "encoder": part | {"chunk": 16, "last_frame": last_frame},
        "decoder": part | {"chunk": 1},
        "quantizer": {"kind": "branches", "branches": {name: {"quantizer": one} for name, one in branches.items()}},
    }
    return check_config(described, AudioTokenizerConfig, where)


def _residual(levels: int, codebook: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "residual", "levels": levels, "quantizer": codebook}


def _step_rate(values: dict[str, Any]) -> int:
    """Steps per second of the networks."""
    return math.ceil(values["sampling_rate"] / max(1, math.prod(values["upsampling_ratios"])))


def _stride(values: dict[str, Any], where: str) -> int:
    """Steps of the networks per frame: 2 unless frame_rate says otherwise."""
    rate = values["frame_rate"]
    if rate is None:
        return 2
    if type(rate) not in (int, float) or not rate > 0:
        raise ValueError(f"{where}: frame_rate must be a number above 0, found {str(rate)[:80]!r}")
    steps = _step_rate(values) / rate
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(
            f"{where}: frame_rate {rate} makes frames of {steps:g} steps of the networks; only 2 to {MOST_STEPS} steps "
            "are supported"
        )
    return int(steps)


def _theta(values: dict[str, Any], where: str) -> float:
    """Base of the rotary embedding: `rope_parameters.rope_theta` since transformers 5, `rope_theta` before."""
    rope = values["rope_parameters"] or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise ValueError(f"{where}: rope_parameters is {str(rope)[:80]!r}; only rope_type 'default' is supported")
    theta = rope.get("rope_theta", values["rope_theta"])
    if theta is None:
        return 10000.0
    if type(theta) not in (int, float) or not 0 < theta <= 1e12:
        raise ValueError(f"{where}: rope_theta must be a number above 0, at most 1e12, found {str(theta)[:80]!r}")
    return float(theta)


def mimi_tensor_map(
    config: AudioTokenizerConfig, names: MimiNames, held: list[int] | None = None, prefix: str = ""
) -> TensorMap:
    """The map of a Mimi. held: semantic and acoustic levels in the file, if they are more; prefix: of all names."""
    encoder, decoder = config.encoder, config.decoder
    assert isinstance(encoder, SEANetConfig) and isinstance(decoder, SEANetConfig)
    terms = seanet_terms(tokenizer_shapes(config), encoder, decoder, plain_weight, names.seanet, prefix)
    terms |= bottleneck_terms("encoder", encoder, config.latent_dim, names, prefix)
    terms |= bottleneck_terms("decoder", decoder, config.latent_dim, names, prefix)
    assert isinstance(config.quantizer, BranchesConfig)
    found, unused = branches_terms(config.quantizer, config.latent_dim, names, held, "quantizer.", prefix)
    return TensorMap(terms | found, unused)


def bottleneck_terms(
    side: Literal["encoder", "decoder"], part: SEANetConfig, width: int, names: MimiNames, prefix: str = ""
) -> dict[str, Term]:
    """Terms of the transformer and the change of frame rate of one side."""
    ours = f"{side}.bottleneck."
    if side == "encoder":
        terms: dict[str, Term] = {f"{ours}down.0.conv.weight": Source(prefix + names.down)}
    else:
        terms = {f"{ours}up.0.conv.weight": Source(prefix + names.up)}
    for number in range(part.bottleneck.layers):
        theirs = prefix + names.blocks.format(side=side, number=number)
        for name, term in names.block(theirs, part.bottleneck.heads, width).items():
            terms[f"{ours}transformer.blocks.{number}.{name}"] = term
    return terms


def branches_terms(
    quantizer: BranchesConfig, dim: int, names: MimiNames, held: list[int] | None = None, ours: str = "", prefix=""
) -> tuple[dict[str, Term], dict[str, Unused]]:
    """Terms of the two quantizers of latents of width `dim`, and what else the file has of them. ours: prefix of our
    names; held, prefix: as for `mimi_tensor_map`."""
    terms: dict[str, Term] = {}
    unused: dict[str, Unused] = {}
    levels = quantizer_levels(quantizer)
    for number, (branch, part) in enumerate(zip(BRANCHES, names.parts, strict=True)):
        found, left_out = _branch(
            quantizer, dim, branch, (ours, prefix + part), levels[number], (held or levels)[number], names
        )
        terms, unused = terms | found, unused | left_out
    return terms, unused


def _branch(
    quantizer: BranchesConfig,
    dim: int,
    branch: str,
    prefixes: tuple[str, str],
    levels: int,
    held: int,
    names: MimiNames,
) -> tuple[dict[str, Term], dict[str, Unused]]:
    """Terms of one of the two quantizers, and what else the file has of it. prefixes: ours and theirs."""
    semantic = quantizer.branches["semantic"].quantizer
    projected, ours, theirs = isinstance(semantic, ProjectConfig), f"{prefixes[0]}branches.{branch}.", prefixes[1]
    width = semantic.dim if isinstance(semantic, ProjectConfig) else dim
    terms: dict[str, Term] = {}
    unused: dict[str, Unused] = {}
    if projected:
        for name, theirs_name, shape in (
            ("project_in", "input_proj", (width, dim, 1)),
            ("project_out", "output_proj", (dim, width, 1)),
        ):
            if levels:
                terms[f"{ours}{name}.weight"] = View(Source(f"{theirs}{theirs_name}.weight"), shape)
            else:
                unused[f"{theirs}{theirs_name}.weight"] = Unused(shape)
        ours += "inner."
    size = codebook_size(semantic)
    for k in range(held):
        total, count, started = (name and theirs + names.book.format(k) + name for name in names.codebook)
        assert total and count
        if k < levels:
            number = "" if branch == "semantic" and levels == 1 else f"levels.{k}."
            terms |= codebook_terms(f"{ours}{number}codebook", Quotient(total, count, 1e-5))
        else:
            unused |= {total: Unused((size, width)), count: Unused((size,), 1.0)}
        if started:
            unused[started] = Unused((1,), 1.0)
    return terms, unused


def quantizer_levels(quantizer: BranchesConfig) -> list[int]:
    """Semantic and acoustic levels of a quantizer."""
    levels = []
    for name in BRANCHES:
        branch = quantizer.branches.get(name)
        inner = None if branch is None else branch.quantizer
        inner = inner.quantizer if isinstance(inner, ProjectConfig) else inner
        levels.append(0 if inner is None else inner.levels if isinstance(inner, ResidualConfig) else 1)
    return levels


def codebook_size(quantizer: Any) -> int:
    """Codes of the codebooks of a branch."""
    while not isinstance(quantizer, VQConfig):
        quantizer = quantizer.quantizer
    return quantizer.size


def write_mimi(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as a `MimiModel` folder.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    described, tensors = mimi_part(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", {"architectures": ["MimiModel"]} | described)


def mimi_part(tokenizer: Tokenizer, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a tokenizer as a `MimiModel`, for a separate folder or inside another model; raises as
    `write_mimi`. prefix: of the tensors' names."""
    values, levels = describe_mimi("Mimi", tokenizer.config)
    assert isinstance(tokenizer.config, AudioTokenizerConfig)
    tensors = public_tensors(tokenizer, mimi_tensor_map(tokenizer.config, HUB_NAMES, prefix=prefix))
    return {"model_type": "mimi", "num_quantizers": sum(levels)} | values, tensors


def describe_mimi(layout: str, config: Any) -> tuple[dict[str, Any], list[int]]:
    """Settings of a tokenizer by the keys of MimiConfig, and its levels.

    Raises:
        CannotWrite: they do not describe all of it; names the first setting that differs.
    """
    encoder, quantizer = seanet_encoder(layout, config), config.quantizer
    if not isinstance(quantizer, BranchesConfig) or quantizer.branches.keys() != set(BRANCHES):
        raise CannotWrite(f"{layout}'s layout holds a quantizer of two branches, semantic and acoustic")
    semantic, levels = quantizer.branches["semantic"].quantizer, quantizer_levels(quantizer)
    try:
        size = codebook_size(semantic)
    except AttributeError:
        raise CannotWrite(f"{layout}'s layout holds codebooks of kind vq, found '{semantic.kind}'") from None
    inner = semantic.dim if isinstance(semantic, ProjectConfig) else config.latent_dim
    values = {
        "sampling_rate": config.sample_rate,
        "frame_rate": config.sample_rate / config.hop,
        "audio_channels": config.channels,
        "hidden_size": config.latent_dim,
        "num_filters": encoder.channels,
        "num_residual_layers": encoder.residual_layers,
        "upsampling_ratios": list(encoder.ratios),
        "kernel_size": encoder.kernel,
        "last_kernel_size": encoder.last_kernel,
        "residual_kernel_size": encoder.residual_kernel,
        "dilation_growth_rate": encoder.dilation_growth,
        "use_causal_conv": True,
        "pad_mode": {ours: theirs for theirs, ours in PADDINGS.items() if theirs != "zero"}[encoder.padding],
        "compress": encoder.compress,
        "trim_right_ratio": 1.0,
        "codebook_size": size,
        "codebook_dim": inner,
        "use_conv_shortcut": encoder.shortcut == "convolution",
        "vector_quantization_hidden_dimension": inner,
        "num_semantic_quantizers": levels[0],
        "upsample_groups": config.latent_dim,
        "num_hidden_layers": encoder.bottleneck.layers,
        "intermediate_size": encoder.bottleneck.feed_forward,
        "num_attention_heads": encoder.bottleneck.heads,
        "num_key_value_heads": encoder.bottleneck.heads,
        "head_dim": config.latent_dim // encoder.bottleneck.heads,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "rope_theta": encoder.bottleneck.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": encoder.bottleneck.theta},
        "sliding_window": encoder.bottleneck.window,
        "layer_scale_initial_scale": encoder.bottleneck.layer_scale,
        "attention_bias": False,
    }
    try:
        expected = mimi_config(values, levels, layout, "zeros")
    except ValueError as error:
        raise CannotWrite(str(error)) from None
    check_tokenizer_layout(layout, config, expected)
    return values, levels
